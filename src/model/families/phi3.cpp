// The Phi-3 family (arXiv 2404.14219): Llama whose projections are published in one piece; one
// window for all layers, LongRoPE.
#include "base/error.h"
#include "model/families.h"
#include "model/families/decoder.h"
#include "model/families/gguf_decoder.h"

namespace pronghorn {
namespace {

ModelConfig read(ConfigReader reader) {
  DecoderDefaults defaults{.epsilon = 1e-5};
  defaults.rope.has_partial = true;
  Decoder decoder = read_decoder(reader, defaults);
  read_window(reader, decoder, 0);
  reader.ignore("attention_bias");  // the reference does not look at it
  return decoder.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<int64_t> windows = layer_windows(config);
  if (windows.empty()) return {};
  nlohmann::json json = write_decoder(config, "phi3", "Phi3ForCausalLM");
  const nlohmann::json& rope = decoder_layers(config).front()->mixers.front().at("rope");
  if (rope.is_null()) return {};
  // The reference's default counts for more than what the object says.
  if (!rope.at("scaling").is_null() && rope.at("scaling").at("original_context") != 0) {
    json["original_max_position_embeddings"] = rope.at("scaling").at("original_context");
  }
  json["sliding_window"] = nullptr;
  if (windows.front() > 0) json["sliding_window"] = windows.front();
  // The reference's default, which it cannot build a smaller vocabulary with.
  constexpr int64_t kPadding = 32000;
  if (config.vocab_size <= kPadding) json["pad_token_id"] = nullptr;
  return json;
}

// These rules, after those of the projections that are published in one piece.
TensorRules with_fused(TensorRules tensors, const std::string& qkv, const std::string& gate_up) {
  const std::string layer = "layers.*.";
  const std::vector<TensorRule> fused = {
      {{layer + "mixer.q_proj.weight", layer + "mixer.k_proj.weight",
        layer + "mixer.v_proj.weight"},
       {qkv},
       transforms::split()},
      {{layer + "ffn.gate_proj.weight", layer + "ffn.up_proj.weight"},
       {gate_up},
       transforms::split()}};
  tensors.rules.insert(tensors.rules.begin(), fused.begin(), fused.end());
  return tensors;
}

TensorRules tensors(const ModelConfig& config) {
  return with_fused(decoder_tensors(config), "model.layers.*.self_attn.qkv_proj.weight",
                    "model.layers.*.mlp.gate_up_proj.weight");
}

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_gguf_attention(file, config);
  if (config.value("sliding_window", 0) == 0) config["sliding_window"] = nullptr;
}

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  // llama.cpp passes over windows of this architecture, so other families' are not written in it.
  require(config.family == "phi3" || json.at("sliding_window").is_null(), file.metadata.where(),
          "files of the architecture phi3 hold windows of that family only");
  write_gguf_attention(config, json, file);
}

TensorRules gguf_tensors(const ModelConfig& config) {
  return with_fused(gguf_decoder_tensors(config, {.rope_tables = true}), "blk.*.attn_qkv.weight",
                    "blk.*.ffn_up.weight");
}

}  // namespace

Family phi3_family() {
  static const GgufFormat gguf = {
      "phi3",
      gguf_decoder_keys({{"attention.sliding_window", "sliding_window", GgufKind::u32, false}}),
      gguf_decoder_other_keys(),
      read_gguf,
      write_gguf,
      gguf_tensors};
  return {"phi3", read, write, tensors, &gguf};
}

}  // namespace pronghorn
