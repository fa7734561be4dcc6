// The xLSTM family (xLSTM-7B, arXiv 2503.13427): mLSTM and a gated feed-forward.
#include <cmath>

#include "base/error.h"
#include "model/families.h"
#include "model/families/decoder.h"
#include "model/families/published_keys.h"

namespace pronghorn {
namespace {

constexpr int64_t kMostMultiple = 1 << 16;

// As the reference rounds up: a fraction above a multiple is cut off where `multiple` is 1.
int64_t rounded_up(double width, int64_t multiple) {
  const double more = width + static_cast<double>(multiple - 1);
  return static_cast<int64_t>(std::floor(more / static_cast<double>(multiple))) * multiple;
}

// A factor that makes `width` of `hidden` again, although products are cut off.
double factor_of(int64_t width, int64_t hidden) {
  const auto whole = static_cast<double>(hidden);
  const double factor = static_cast<double>(width) / whole;
  constexpr double kLittle = 1e-4;
  return static_cast<int64_t>(whole * factor) == width
             ? factor
             : (static_cast<double>(width) + kLittle) / whole;
}

// hidden_size x `key`, in heads.
int64_t read_head(ConfigReader& reader, const std::string& key, double fallback, int64_t hidden,
                  int64_t heads) {
  const auto width =
      static_cast<int64_t>(static_cast<double>(hidden) * reader.number(key, fallback, 1e-3, 64));
  require(width > 0 && width % heads == 0, reader.path(key),
          "makes {} columns, which {} heads do not divide", width, heads);
  return width / heads;
}

ModelConfig read(ConfigReader reader) {
  const char* size_key = reader.has("hidden_size") ? "hidden_size" : "embedding_dim";
  const int64_t hidden = reader.integer(size_key, 4096, 1, 1 << 17);
  const char* count_key = reader.has("num_hidden_layers") ? "num_hidden_layers" : "num_blocks";
  const int64_t layers = reader.integer(count_key, 32, 1, kMaxBlocks);
  const int64_t heads = reader.integer("num_heads", 8, 1, 1 << 16);
  require(!reader.boolean("use_bias", false), reader.path("use_bias"), "true is not supported");
  for (const char* key : {"add_out_norm", "add_post_blocks_norm"}) {
    require(reader.boolean(key, true), reader.path(key), "false is not supported");
  }
  for (const char* key : {"add_qk_norm", "add_post_norm"}) {
    require(!reader.boolean(key, false), reader.path(key), "true is not supported");
  }
  reader.one_of("weight_mode", {"single"}, "single");
  const nlohmann::json mixer = {
      {"type", "mlstm"},
      {"heads", heads},
      {"head_dim", read_head(reader, "qk_dim_factor", 0.5, hidden, heads)},
      {"value_head_dim", read_head(reader, "v_dim_factor", 1.0, hidden, heads)},
      {"gate_soft_cap", reader.number("gate_soft_cap", 15.0)}};
  const double factor = reader.number("ffn_proj_factor", 2.667, 1e-3, 64);
  const int64_t multiple = reader.integer("ffn_round_up_to_multiple_of", 64, 1, kMostMultiple);
  const int64_t size = rounded_up(static_cast<double>(hidden) * factor, multiple);
  nlohmann::json settings = {
      {"vocab_size", reader.integer("vocab_size", 50304, 1)},
      {"hidden_size", hidden},
      {"tie_embeddings", reader.boolean("tie_word_embeddings", false)},
      {"logit_soft_cap", reader.number("output_logit_soft_cap", 30.0)},
      {"norm", {{"type", "rms_norm"}, {"epsilon", reader.number("norm_eps", 1e-6, 0)}}}};
  // Which of two names is read, and which kernels the reference runs; eps is added to a sum whose
  // scale the norm of heads takes away again.
  for (const char* key :
       {"hidden_size", "embedding_dim", "num_hidden_layers", "num_blocks", "chunk_size", "mode",
        "eps", "chunkwise_kernel", "sequence_kernel", "step_kernel", "autocast_kernel_dtype",
        "inference_state_dtype", "return_last_states", "norm_reduction_force_float32",
        "max_inference_chunksize"}) {
    reader.ignore(key);
  }
  finish_published(reader);
  const nlohmann::json layer = {{"mixer", mixer}, {"ffn", gated_ffn(size, "silu", false, false)}};
  return uniform_config(reader, settings, layer, layers);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const BlockConfig* block = uniform_block(config, "mlstm");
  if (block == nullptr || block->feed_forward.is_null() ||
      block->feed_forward.at("type") != "swiglu") {
    return {};
  }
  const nlohmann::json& mixer = block->mixers.front();
  const int64_t hidden = config.hidden_size, heads = mixer.at("heads");
  const auto columns = [&](const char* width) { return heads * mixer.at(width).get<int64_t>(); };
  return nlohmann::json{{"model_type", "xlstm"},
                        {"architectures", {"xLSTMForCausalLM"}},
                        {"vocab_size", config.vocab_size},
                        {"hidden_size", config.hidden_size},
                        {"embedding_dim", config.hidden_size},
                        {"num_hidden_layers", config.block_count()},
                        {"num_blocks", config.block_count()},
                        {"num_heads", mixer.at("heads")},
                        {"qk_dim_factor", factor_of(columns("head_dim"), hidden)},
                        {"v_dim_factor", factor_of(columns("value_head_dim"), hidden)},
                        {"gate_soft_cap", mixer.at("gate_soft_cap")},
                        {"output_logit_soft_cap", config.logit_soft_cap},
                        {"ffn_proj_factor", factor_of(block->feed_forward.at("size"), hidden)},
                        {"ffn_round_up_to_multiple_of", 1},
                        {"norm_eps", config.norm_epsilon},
                        {"use_bias", false},
                        {"add_out_norm", true},
                        {"weight_mode", "single"},
                        {"tie_word_embeddings", config.tie_embeddings},
                        {"torch_dtype", "float32"}};
}

TensorRules tensors(const ModelConfig& config) {
  const std::string layer = "layers.*.", theirs = "backbone.blocks.*.";
  TensorRules tensors;
  tensors.rules = {{{"embeddings.weight"}, {"backbone.embeddings.weight"}, {}},
                   {{layer + "mixer_norm.*"}, {theirs + "norm_mlstm.*"}, {}},
                   {{layer + "mixer.*"}, {theirs + "mlstm_layer.*"}, {}},
                   {{layer + "ffn_norm.*"}, {theirs + "norm_ffn.*"}, {}},
                   {{layer + "ffn.gate_proj.*"}, {theirs + "ffn.proj_up_gate.*"}, {}},
                   {{layer + "ffn.up_proj.*"}, {theirs + "ffn.proj_up.*"}, {}},
                   {{layer + "ffn.down_proj.*"}, {theirs + "ffn.proj_down.*"}, {}},
                   {{"norm.*"}, {"backbone.out_norm.*"}, {}},
                   {{"lm_head.weight"}, {"lm_head.weight"}, {}}};
  // The reference's own names for the projections, and what it calls its model.
  for (const char* name : {"q", "k", "v"}) {
    const std::string other = name[0] == 'q' ? "query" : name[0] == 'k' ? "key" : "value";
    tensors.aliases.push_back(
        {theirs + "mlstm_layer." + name + ".weight", theirs + "mlstm_layer." + other + ".weight"});
  }
  tensors.passed_over = tied_head(config, "lm_head.weight");
  return tensors;
}

}  // namespace

Family xlstm_family() { return {"xlstm", read, write, tensors}; }

}  // namespace pronghorn
