#include "model/families/published_keys.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/quote.h"
#include "base/warning.h"

namespace pronghorn {
namespace {

// Keys of other tools, of training and of generation: whatever their value, a forward is the same.
constexpr std::string_view kHarmless[] = {
    // where a model comes from, and how a library is to handle it
    "architectures", "auto_map", "model_type", "torch_dtype", "dtype", "transformers_version",
    "transformers.js_config", "tokenizer_class", "processor_class", "custom_pipelines", "use_cache",
    "attn_implementation", "use_flash_attn", "use_flash_attention", "use_flash_attention_2",
    "flash_attention", "is_llama_config", "unsloth_version", "unsloth_fixed", "is_decoder",
    "output_attentions", "output_hidden_states", "output_past", "return_dict", "torchscript",
    "use_bfloat16", "fp16", "bf16", "fp32", "tf_legacy_loss", "pruned_heads", "tie_encoder_decoder",
    "chunk_size_feed_forward", "problem_type", "id2label", "label2id", "num_labels",
    "finetuning_task", "task_specific_params", "keys_to_ignore_at_inference",
    "reorder_and_upcast_attn", "name", "license", "language", "base_model", "base_model_name",
    "use_mambapy", "use_associative_scan", "use_mamba_kernels", "residual_in_fp32",
    "fused_add_norm", "use_fast_path", "use_mem_eff_path", "pad_vocab_size_multiple",
    "max_window_layers",
    // training
    "train", "initializer_range", "embedding_initializer_range", "initializer_factor",
    "init_method", "init_std", "rescale_prenorm_residual", "pretraining_tp",
    "tensor_parallel_degree", "gradient_checkpointing", "output_router_logits",
    "router_aux_loss_coef", "router_z_loss_coef", "aux_loss_alpha", "seq_aux", "ep_size",
    "label_smoothing", "time_step_scale", "time_step_init_scheme", "pretrain", "sft",
    "fuse_cross_entropy", "fuse_norm", "fuse_swiglu", "z_loss_coefficient", "num_logits_to_keep",
    // positions of images, which text does not have
    "mrope_section", "mrope_interleaved",
    // generation
    "max_length", "min_length", "max_new_tokens", "do_sample", "num_beams", "num_beam_groups",
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty",
    "diversity_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "early_stopping",
    "num_return_sequences", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens",
    "output_scores", "return_dict_in_generate", "remove_invalid_values",
    "exponential_decay_length_penalty", "generation_config", "prefix", "add_bos_token",
    "add_eos_token",
    // the context that a model was trained for: trained_context() reads them
    "max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len",
    "max_seq_length", "model_max_length", "seq_length", "seq_len",
    "original_max_position_embeddings"};

constexpr std::string_view kHarmlessEnds[] = {"_token_id", "_token_ids",    "_dropout",
                                              "_pdrop",    "_dropout_prob", "_dropout_rate"};

// A key that is known to change the computation, with the values that do not, as a JSON list. Null
// and empty values never do.
struct ChangingKey {
  std::string_view key;
  const char* off;
};

constexpr ChangingKey kChanging[] = {
    // how weights are stored
    {"quantization_config", "[]"},
    {"quantization", "[]"},
    {"compression_config", "[]"},
    // projections and feed-forwards
    {"attention_bias", "[false]"},
    {"attention_out_bias", "[false]"},
    {"mlp_bias", "[false]"},
    {"qkv_bias", "[false]"},
    {"use_qkv_bias", "[false]"},
    {"add_qkv_bias", "[false]"},
    {"o_proj_bias", "[false]"},
    {"add_bias_linear", "[false]"},
    {"bias", "[false]"},
    {"use_bias", "[false]"},
    {"hidden_act", R"(["silu"])"},
    {"hidden_activation", R"(["silu"])"},
    {"num_experts", "[0]"},
    {"num_local_experts", "[0]"},
    {"n_routed_experts", "[0]"},
    {"n_shared_experts", "[0]"},
    {"moe_layer_freq", "[1]"},
    {"d_intermediate", "[0]"},
    // positions
    {"rope_scaling", R"([{"rope_type": "default"}])"},
    {"rope_parameters", R"([{"rope_type": "default"}])"},
    {"rope_type", R"(["default"])"},
    {"rope_interleaved", "[false]"},
    {"rope_interleave", "[false]"},
    {"rope_local_base_freq", "[]"},
    {"rope_ratio", "[1]"},
    {"rope_scaling_factor", "[1]"},
    {"partial_rotary_factor", "[1]"},
    {"rotary_pct", "[1]"},
    {"rope_pct", "[1]"},
    {"use_rope", "[true]"},
    {"no_rope_layers", "[]"},
    {"no_rope_layer_interval", "[0]"},
    {"use_dynamic_ntk", "[false]"},
    {"use_logn_attn", "[false]"},
    {"use_mrope", "[false]"},
    {"position_embedding_type", R"(["rope", "rotary", "absolute"])"},
    {"alibi", "[false]"},
    {"use_alibi", "[false]"},
    // attention
    {"use_sliding_window", "[false]"},
    {"sliding_window_pattern", "[]"},
    {"attention_chunk_size", "[]"},
    {"attn_logit_softcapping", "[]"},
    {"attn_logit_softcap", "[]"},
    {"query_pre_attn_scalar", "[]"},
    {"attention_multiplier", "[]"},
    {"scale_attn_weights", "[true]"},
    {"scale_attn_by_inverse_layer_idx", "[false]"},
    {"qk_norm", "[false]"},
    {"use_qk_norm", "[false]"},
    {"qk_layernorm", "[false]"},
    {"use_qk_layernorm", "[false]"},
    {"clip_qkv", "[]"},
    {"attn_output_gate", "[false]"},
    {"attention_output_gate", "[false]"},
    {"add_cross_attention", "[false]"},
    {"is_encoder_decoder", "[false]"},
    {"is_causal", "[true]"},
    {"kv_lora_rank", "[]"},
    {"q_lora_rank", "[]"},
    {"num_kv_shared_layers", "[0]"},
    // norms, residuals, scores
    {"rms_norm", "[true]"},
    {"use_parallel_residual", "[false]"},
    {"parallel_residual", "[false]"},
    {"parallel_attn", "[false]"},
    {"apply_residual_connection_post_layernorm", "[false]"},
    {"use_post_norm", "[false]"},
    {"embedding_multiplier", "[1]"},
    {"embedding_scale", "[1]"},
    {"scale_emb", "[1]"},
    {"scale_depth", "[]"},
    {"scale_embedding", "[false]"},
    {"residual_multiplier", "[1]"},
    {"logit_scale", "[1]"},
    {"logits_scaling", "[1]"},
    {"lm_head_multiplier", "[1]"},
    {"final_logit_softcapping", "[]"},
    {"final_logit_softcap", "[]"},
    {"logits_soft_cap", "[]"},
    // Mamba's original library
    {"ssm_cfg", "[]"},
    {"attn_cfg", "[]"},
    {"attn_layer_idx", "[]"},
    {"use_bcdt_rms", "[false]"},
    {"norm_before_gate", "[false]"},
};

// Other names of a size, which some files have besides the family's own.
constexpr std::string_view kOtherNames[][6] = {
    {"hidden_size", "d_model", "n_embd", "dim", "n_embed", "model_dim"},
    {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "", ""},
    {"num_attention_heads", "n_head", "n_heads", "num_heads", "", ""},
    {"num_key_value_heads", "n_kv_heads", "num_kv_heads", "multi_query_group_num", "", ""},
    {"intermediate_size", "d_inner", "n_inner", "ffn_hidden_size", "d_ff", ""},
    {"vocab_size", "padded_vocab_size", "n_vocab", "", "", ""},
    {"head_dim", "d_head", "kv_channels", "", "", ""},
    {"rms_norm_eps", "layernorm_epsilon", "layer_norm_eps", "norm_eps", "", ""},
    {"rope_theta", "rotary_emb_base", "rope_base", "rotary_base", "", ""},
};

bool is_harmless(std::string_view key) {
  if (key.starts_with('_') || key == "dropout") return true;
  if (std::ranges::find(kHarmless, key) != std::end(kHarmless)) return true;
  return std::ranges::any_of(kHarmlessEnds,
                             [&](std::string_view end) { return key.ends_with(end); });
}

bool is_empty(const nlohmann::json& value) {
  return value.is_null() || value.empty() || value == "";
}

// Whether the key only repeats, under another name, what the family reads.
bool is_repeated(const ConfigReader& reader, std::string_view key, const nlohmann::json& value) {
  for (const auto& names : kOtherNames) {
    if (!key.empty() && std::ranges::find(names, key) != std::end(names)) {
      return std::ranges::any_of(names, [&](std::string_view other) {
        return other != key && !other.empty() && reader.peek(other) == value;
      });
    }
  }
  return false;
}

// Forms in which newer files say that there is nothing to say: all layers attend to everything, and
// rotary positions are not scaled.
bool is_plain(std::string_view key, const nlohmann::json& value) {
  if (key == "layer_types" && value.is_array()) {
    return std::ranges::all_of(value, [](const auto& type) { return type == "full_attention"; });
  }
  if (key != "rope_scaling" && key != "rope_parameters") return false;
  for (const char* type : {"rope_type", "type"}) {
    if (value.is_object() && value.contains(type)) return value.at(type) == "default";
  }
  return false;
}

// Ways of storing weights that readers of checkpoints undo, so that no forward sees them.
bool is_undone(std::string_view key, const nlohmann::json& value) {
  if (key != "quantization_config" || !value.is_object()) return false;
  const nlohmann::json method = value.value("quant_method", nlohmann::json());
  if (method != "compressed-tensors") return method == "fp8" || method == "mxfp4";
  // Its 8-bit floats; not rotated weights, nor what has zeros left out.
  return value.value("format", nlohmann::json()) == "float-quantized" &&
         is_empty(value.value("transform_config", nlohmann::json())) &&
         is_empty(value.value("sparsity_config", nlohmann::json()));
}

// Whether the key is known to change the computation, and has a value that does not. Throws Error
// if it has one that does.
bool is_off(const ConfigReader& reader, std::string_view key, const nlohmann::json& value) {
  std::vector<std::string> supported;
  if (key == "quantization_config") {
    supported = {
        R"(the quant_method "fp8", "mxfp4", or "compressed-tensors" of the format "float-quantized")"};
  }
  if (key == "layer_types") {
    supported = {R"(only "full_attention")"};
  } else {
    const auto* changing = std::ranges::find(kChanging, key, &ChangingKey::key);
    if (changing == std::end(kChanging)) return false;
    for (const nlohmann::json& off : nlohmann::json::parse(changing->off)) {
      if (off == value) return true;
      supported.push_back(off.dump());
    }
    supported.emplace_back("null");
  }
  throw Error(reader.path(key),
              fmt::format("{} changes the computation in a way that is not "
                          "supported here",
                          shown_json(value)),
              fmt::format("supported: {}", fmt::join(supported, ", ")));
}

}  // namespace

void finish_published(const ConfigReader& reader) {
  std::string unknown;
  for (const std::string& key : reader.unread()) {
    const nlohmann::json& value = reader.peek(key);
    if (is_empty(value) || is_harmless(key) || is_repeated(reader, key, value) ||
        is_plain(key, value) || is_undone(key, value) || is_off(reader, key, value)) {
      continue;
    }
    unknown += (unknown.empty() ? "" : ", ") + quote(key);
    // A key that is near one that is missing may be meant for it.
    const std::string near = reader.nearest(key);
    if (!near.empty() && !reader.has(near)) unknown += fmt::format(" (did you mean '{}'?)", near);
  }
  if (unknown.empty()) return;
  warn_once(fmt::format("{}: passed over what is not known here: {}", reader.where(), unknown));
}

}  // namespace pronghorn
