// The gpt-oss family (arXiv 2508.10925): a window in every other layer, a learned sink per head,
// experts with biases and a clamped SwiGLU.
#include <algorithm>
#include <utility>

#include "base/error.h"
#include "model/families.h"
#include "model/families/gguf_decoder.h"
#include "model/families/gguf_experts.h"
#include "model/families/mixture.h"

namespace pronghorn {
namespace {

constexpr const char* kCount = "num_local_experts";
constexpr int64_t kPeriod = 2;   // of layers with a window and one without, in GGUF files
constexpr double kGain = 1.702;  // of the sigmoid in the experts

ModelConfig read(ConfigReader reader) {
  require(reader.has("rope_scaling") || reader.has("rope_parameters"), reader.path("rope_scaling"),
          "is missing: the family has no positions without it");
  Decoder decoder = read_decoder(
      reader, {.kv_heads = 8, .head_dim = 64, .epsilon = 1e-5, .rope = {.theta = 150000}});
  read_attention_bias(reader, decoder, true);
  decoder.mixer["sinks"] = true;
  require(reader.number("swiglu_alpha", kGain) == kGain, reader.path("swiglu_alpha"),
          "only {} is supported", kGain);
  read_experts(reader, decoder, {kCount, 128, 4},
               {{"activation", "clamped_swiglu"},
                {"clamp", reader.number("swiglu_limit", 7.0, 0)},
                {"bias", true},
                {"router_bias", true}});
  reader.ignore("experts_per_token");  // num_experts_per_tok again
  reader.ignore("initial_context_length");
  const int64_t absent = is_null(reader, "sliding_window") ? 0 : 128;
  const int64_t window = reader.integer("sliding_window", absent, 1);
  const std::vector<bool> sliding =
      read_sliding_layers(reader, decoder.layers, [](int64_t i) { return i % 2 == 0; });
  return decoder.finish(reader, [&](int64_t layer, nlohmann::json& mixer) {
    mixer["window"] = sliding[static_cast<size_t>(layer)] ? window : 0;
  });
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = mixture_layers(config);
  if (layers.empty()) return {};
  nlohmann::json json = write_mixture(config, "gpt_oss", "GptOssForCausalLM", kCount);
  const std::vector<int64_t> windows = layer_windows(config);
  const int64_t window = *std::ranges::max_element(windows);
  json["hidden_act"] = "silu";
  json["attention_bias"] = layers.front()->mixers.front().at("bias");
  json["swiglu_limit"] = experts_of(config).at("clamp");
  json["layer_types"] = write_layer_types(windows);
  json["sliding_window"] = nullptr;
  if (window > 0) json["sliding_window"] = window;
  if (!json.contains("rope_scaling")) json["rope_scaling"] = {{"rope_type", "default"}};
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  const std::string theirs = "model.layers.*.mlp.";
  const auto experts = experts_of(config).at("experts").get<int64_t>();
  // Rows of the two alternate.
  const Transform apart =
      transforms::fold(experts).then(transforms::rope_pairs(experts)).then(transforms::split());
  TensorRules rest = decoder_tensors(config);
  // MXFP4 has the rows of products in blocks, as others have them.
  rest.layouts = {{expert_names(config, {"gate_proj.weight", "up_proj.weight"}),
                   {theirs + "experts.gate_up_proj_blocks"},
                   apart},
                  {expert_names(config, {"down_proj.weight"}),
                   {theirs + "experts.down_proj_blocks"},
                   transforms::unstack()}};
  return with_rules(std::move(rest), {{{"layers.*.ffn.gate.*"}, {theirs + "router.*"}, {}},
                                      {expert_names(config, {"gate_proj.weight", "up_proj.weight"}),
                                       {theirs + "experts.gate_up_proj"},
                                       transforms::transpose().then(apart)},
                                      {expert_names(config, {"gate_proj.bias", "up_proj.bias"}),
                                       {theirs + "experts.gate_up_proj_bias"},
                                       apart},
                                      {expert_names(config, {"down_proj.weight"}),
                                       {theirs + "experts.down_proj"},
                                       transforms::transpose().then(transforms::unstack())},
                                      {expert_names(config, {"down_proj.bias"}),
                                       {theirs + "experts.down_proj_bias"},
                                       transforms::unstack()}});
}

std::vector<std::string_view> gguf_other_keys() {
  std::vector<std::string_view> keys = gguf_mixture_other_keys();
  keys.push_back("attention.sliding_window_pattern");
  return keys;
}

void read_gguf(const GgufModel& file, nlohmann::json& config) {
  read_gguf_softmax_experts(file, config);
  config["attention_bias"] = file.has("blk.0.attn_q.bias");
  if (config.value("sliding_window", int64_t{0}) == 0) config["sliding_window"] = nullptr;
  read_gguf_windows(file, kPeriod, config);
  nlohmann::json& rope = config["rope_scaling"];
  if (rope.is_null()) rope = {{"rope_type", "default"}};
  // Files have no key for it; published models all say so.
  if (rope.at("rope_type") == "yarn") rope["truncate"] = false;
}

void write_gguf(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  write_gguf_attention(config, json, file);
  write_gguf_windows(json, kPeriod, file);
}

TensorRules gguf_tensors(const ModelConfig& config) {
  TensorRules tensors = with_gguf_experts(
      gguf_decoder_tensors(config, {.biases = true, .ffn_norm = "post_attention_norm"}), config);
  return with_rules(std::move(tensors),
                    {{{"layers.*.mixer.sinks"}, {"blk.*.attn_sinks.weight"}, {}}});
}

}  // namespace

Family gpt_oss_family() {
  static const GgufFormat gguf = {
      "gpt-oss",
      gguf_mixture_keys(kCount,
                        {{"expert_feed_forward_length", "intermediate_size"},
                         {"attention.sliding_window", "sliding_window", GgufKind::u32, false}}),
      gguf_other_keys(),
      read_gguf,
      write_gguf,
      gguf_tensors,
      false};
  return {"gpt_oss", read, write, tensors, &gguf};
}

}  // namespace pronghorn
