// The RecurrentGemma family (arXiv 2404.07839), Griffin as Google published it: the RG-LRU, and
// attention in a window, each with a gated feed-forward; norms are published less 1.
#include <cmath>

#include "base/error.h"
#include "base/float16.h"
#include "model/families.h"
#include "model/families/gemma.h"
#include "model/families/hybrid.h"

namespace pronghorn {
namespace {

// The reference holds the factor in bf16, whatever the type of the weights.
double embedding_scale(int64_t hidden_size) {
  const double root = std::sqrt(static_cast<double>(hidden_size));
  return static_cast<double>(from_bf16(to_bf16(static_cast<float>(root))));
}

// A list of "recurrent" and "attention" that is repeated until there are enough.
std::vector<bool> read_attention_blocks(ConfigReader& reader, int64_t layers) {
  const nlohmann::json given = reader.raw("block_types");
  const nlohmann::json kinds =
      given.is_null() ? nlohmann::json({"recurrent", "recurrent", "attention"}) : given;
  require(kinds.is_array() && !kinds.empty(), reader.path("block_types"), "must be a list");
  std::vector<bool> attention;
  for (const nlohmann::json& kind : kinds) {
    require(kind == "recurrent" || kind == "attention", reader.path("block_types"),
            "{} is neither \"recurrent\" nor \"attention\"", kind.dump());
  }
  for (int64_t i = 0; i < layers; ++i) {
    attention.push_back(kinds[static_cast<size_t>(i) % kinds.size()] == "attention");
  }
  return attention;
}

ModelConfig read(ConfigReader reader) {
  HybridDecoder hybrid;
  Decoder& decoder = hybrid.decoder;
  decoder = read_decoder(reader, {.tied = true,
                                  .activation_key = "hidden_activation",
                                  .activation = "gelu_pytorch_tanh",
                                  .rope = {.partial = 0.5, .has_partial = true}});
  const int64_t hidden_size = decoder.settings.at("hidden_size");
  const int64_t heads = decoder.mixer.at("heads");
  require(decoder.mixer.value("head_dim", hidden_size / heads) == hidden_size / heads,
          reader.path("head_dim"), "is not hidden_size {} / num_attention_heads {}", hidden_size,
          heads);
  read_attention_bias(reader, decoder);
  decoder.mixer["output_bias"] = true;
  decoder.mixer["window"] = reader.integer("attention_window_size", 2048, 1);
  require(decoder.size % 2 == 0, reader.path("intermediate_size"), "{} is odd", decoder.size);
  decoder.size /= 2;
  decoder.mlp_bias = true;
  decoder.settings["embedding_scale"] = embedding_scale(hidden_size);
  require(reader.boolean("embeddings_scale_by_sqrt_dim", true),
          reader.path("embeddings_scale_by_sqrt_dim"), "false is not what the reference computes");
  decoder.settings["logit_soft_cap"] = read_cap(reader, "logits_soft_cap", 30);
  hybrid.other = {{"type", "rg_lru"},
                  {"width", reader.integer("lru_width", hidden_size, 1)},
                  {"gate_blocks", heads},
                  {"conv_kernel", reader.integer("conv1d_width", 4, 1)},
                  {"activation", decoder.activation}};
  hybrid.attention = read_attention_blocks(reader, decoder.layers);
  for (const char* key : {"w_init_variance_scale", "final_w_init_variance_scale"}) {
    reader.ignore(key);
  }
  return hybrid.finish(reader);
}

std::optional<nlohmann::json> write(const ModelConfig& config) {
  const auto layers = hybrid_layers(config, "rg_lru");
  const auto recurrent = layers_with(layers, "rg_lru"), seeing = layers_with(layers, "attention");
  if (recurrent.empty()) return {};
  const nlohmann::json& attention = seeing.front()->mixers.front();
  if (!heads_share_width(config, attention)) return {};
  nlohmann::json json = write_decoder(config, seeing, "recurrent_gemma",
                                      "RecurrentGemmaForCausalLM", "hidden_activation");
  json["attention_bias"] = attention.at("bias");
  json["attention_window_size"] = attention.at("window");
  json["intermediate_size"] = 2 * seeing.front()->feed_forward.at("size").get<int64_t>();
  json["logits_soft_cap"] = write_cap(config.logit_soft_cap);
  const nlohmann::json& lru = recurrent.front()->mixers.front();
  json["lru_width"] = lru.at("width");
  json["conv1d_width"] = lru.at("conv_kernel");
  nlohmann::json kinds = nlohmann::json::array();
  for (const BlockConfig* layer : layers) {
    const bool is_attention = layer->mixers.front().at("type") == "attention";
    kinds.push_back(is_attention ? "attention" : "recurrent");
  }
  json["block_types"] = std::move(kinds);
  return json;
}

// A gate's blocks are published in one tensor each, and multiply from the other side.
std::vector<TensorRule> gate_rules(const std::string& gate, int64_t blocks) {
  const std::string name = "rg_lru." + gate + "_gate_";
  return {{numbered(name + "weight.#", static_cast<size_t>(blocks)),
           {name + "weight"},
           transforms::transpose().then(transforms::unstack())},
          {{name + "bias"}, {name + "bias"}, transforms::fold(blocks)}};
}

TensorRules tensors(const ModelConfig& config) {
  const std::string layer = "layers.*.", theirs = "model.layers.*.";
  const Transform less_one = transforms::plus(1);
  const nlohmann::json& lru = *mixers_of(config, "rg_lru").front();
  const int64_t blocks = lru.at("gate_blocks");
  std::vector<TensorRule> recurrent = gate_rules("input", blocks);
  for (TensorRule& rule : gate_rules("recurrent", blocks)) recurrent.push_back(std::move(rule));
  recurrent.push_back(convolution_rule("conv_1d.weight"));
  TensorRules tensors;
  tensors.rules = mixer_rules(
      config, "model.layers",
      {{"attention", "temporal_block", {}}, {"rg_lru", "temporal_block", std::move(recurrent)}});
  const std::vector<TensorRule> rest = {
      {{"embeddings.weight"}, {"model.embed_tokens.weight"}, {}},
      {{layer + "mixer_norm.*"}, {theirs + "temporal_pre_norm.*"}, less_one},
      {{layer + "ffn_norm.*"}, {theirs + "channel_pre_norm.*"}, less_one},
      {{layer + "ffn.*"}, {theirs + "mlp_block.*"}, {}},
      {{"norm.*"}, {"model.final_norm.*"}, less_one},
      {{"lm_head.weight"}, {"lm_head.weight"}, {}}};
  tensors.rules.insert(tensors.rules.end(), rest.begin(), rest.end());
  tensors.passed_over = tied_head(config, "lm_head.weight");
  tensors.passed_over.push_back(theirs + "temporal_block.rotary_emb.inv_freq");
  return tensors;
}

}  // namespace

Family recurrent_gemma_family() { return {"recurrent_gemma", read, write, tensors}; }

}  // namespace pronghorn
