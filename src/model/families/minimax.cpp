// The MiniMax-01 family (arXiv 2501.08313), as transformers' model_type "minimax": Lightning
// attention, in some layers softmax attention, and experts; a stream that goes on from norms.
#include "base/error.h"
#include "model/families.h"
#include "model/families/hybrid.h"
#include "model/families/mixture.h"

namespace pronghorn {
namespace {

constexpr double kLightningEpsilon = 1e-6;  // of its norm, whatever rms_norm_eps is
constexpr double kMostFactor = 1e6;
constexpr const char* kCount = "num_local_experts";

// What the stream and a part are multiplied with.
struct Factors {
  double stream = 1, part = 1;
};

Factors read_factors(ConfigReader& reader, const std::string& part) {
  const auto read = [&](const char* name) {
    return reader.number(part + name, 1.0, -kMostFactor, kMostFactor);
  };
  return {read("_alpha_factor"), read("_beta_factor")};
}

ModelConfig read(ConfigReader reader) {
  Decoder decoder = read_decoder(reader, {.kv_heads = 8, .epsilon = 1e-5, .rope = {.theta = 1e6}});
  read_no_bias(reader);
  require(decoder.activation == "silu", reader.path("hidden_act"), "only \"silu\" is supported");
  read_window(reader, decoder, 0);
  // Of the first release; transformers turns whole heads.
  const int64_t turned = reader.integer("rotary_dim", 0, 0, head_dim(decoder));
  if (turned > 0) decoder.mixer["rope"]["rotary_dim"] = turned;
  read_experts(reader, decoder, {kCount, 8, 2}, {});
  for (const char* key : {"router_jitter_noise", "block_size"}) reader.ignore(key);
  const std::vector<bool> attention =
      read_attention_layers(reader, "layer_types", decoder.layers, {"linear_attention"},
                            [](int64_t layer) { return layer % 2 == 0; });
  const Factors full = read_factors(reader, "full_attn"), mlp = read_factors(reader, "mlp");
  const Factors linear = read_factors(reader, "linear_attn");
  const nlohmann::json lightning = {{"type", "lightning"},
                                    {"heads", decoder.mixer.at("heads")},
                                    {"head_dim", head_dim(decoder)},
                                    {"norm_epsilon", kLightningEpsilon}};
  return decoder.finish_layers(reader, [&](int64_t layer, nlohmann::json& block) {
    const bool softmax = attention[static_cast<size_t>(layer)];
    if (!softmax) block["mixer"] = lightning;
    const Factors& mixer = softmax ? full : linear;
    block["norm_residual"] = {{"mixer_stream", mixer.stream},
                              {"mixer_part", mixer.part},
                              {"ffn_stream", mlp.stream},
                              {"ffn_part", mlp.part}};
  });
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const auto layers = hybrid_layers(config, "lightning");
  const auto full = layers_with(layers, "attention"), linear = layers_with(layers, "lightning");
  if (full.empty() || linear.empty() || !has_experts(config)) return {};
  const auto &first = full.front()->norm_residual, &second = linear.front()->norm_residual;
  if (!first || !second) return {};
  nlohmann::json json = write_decoder(config, full, "minimax", "MiniMaxForCausalLM");
  json.update(write_experts(config, kCount));
  const int64_t window = full.front()->mixers.front().at("window");
  json["sliding_window"] = nullptr;
  if (window > 0) json["sliding_window"] = window;
  if (json.contains("partial_rotary_factor")) {
    json.erase("partial_rotary_factor");
    json["rotary_dim"] = full.front()->mixers.front().at("rope").at("rotary_dim");
  }
  json["layer_types"] = write_layer_kinds(layers, "linear_attention");
  json.update({{"full_attn_alpha_factor", first->mixer_stream},
               {"full_attn_beta_factor", first->mixer_part},
               {"linear_attn_alpha_factor", second->mixer_stream},
               {"linear_attn_beta_factor", second->mixer_part},
               {"mlp_alpha_factor", first->ffn_stream},
               {"mlp_beta_factor", first->ffn_part}});
  return json;
}

TensorRules tensors(const ModelConfig& config) {
  const auto lightning = mixers_of(config, "lightning");
  const int64_t heads = lightning.empty() ? 1 : lightning.front()->at("heads").get<int64_t>();
  const std::string moe = "model.layers.*.block_sparse_moe.", ffn = "layers.*.ffn.";
  std::vector<TensorRule> rules =
      mixer_rules(config, "model.layers",
                  {{"lightning",
                    "self_attn",
                    {{{"q_proj.weight", "k_proj.weight", "v_proj.weight"},
                      {"qkv_proj.weight"},
                      transforms::split(0, heads)}}}});
  rules.insert(rules.end(), {{{ffn + "experts.*.gate_proj.*"}, {moe + "experts.*.w1.*"}, {}},
                             {{ffn + "experts.*.down_proj.*"}, {moe + "experts.*.w2.*"}, {}},
                             {{ffn + "experts.*.up_proj.*"}, {moe + "experts.*.w3.*"}, {}},
                             {{ffn + "gate.*"}, {moe + "gate.*"}, {}}});
  TensorRules tensors = with_rules(decoder_tensors(config), rules);
  // The reference stores decays, which follow from the configuration.
  for (const char* table : {"slope_rate", "query_decay", "key_decay", "diagonal_decay"}) {
    tensors.passed_over.push_back(fmt::format("model.layers.*.self_attn.{}", table));
  }
  return tensors;
}

}  // namespace

Family minimax_family() { return {"minimax", read, write, tensors}; }

}  // namespace pronghorn
