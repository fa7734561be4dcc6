#include "model/families/mixture.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "layers/toolbox.h"

namespace pronghorn {
namespace {

bool is_sparse(const BlockConfig& block) {
  return !block.feed_forward.is_null() && block.feed_forward.at("type") == "moe";
}

// The reference's balance loss is a mean over the layers, and its shares add up to top_k.
double loss_factor(int64_t layers, int64_t top_k) {
  return static_cast<double>(std::max<int64_t>(1, layers)) / static_cast<double>(top_k);
}

// Newer files of some families have the other name.
std::string count_key(const ConfigReader& reader, const std::string& own) {
  const std::string other = own == "num_experts" ? "num_local_experts" : "num_experts";
  return !reader.has(own) && reader.has(other) ? other : own;
}

}  // namespace

void read_experts(ConfigReader& reader, Decoder& decoder, const ExpertDefaults& defaults,
                  const nlohmann::json& settings, std::vector<bool> sparse) {
  constexpr double kMostLoss = 100;
  if (sparse.empty()) sparse.assign(static_cast<size_t>(decoder.layers), true);
  const std::string key = count_key(reader, defaults.count_key);
  const int64_t experts = reader.integer(key, defaults.experts, 1, limits::kExperts);
  const int64_t top_k = reader.integer("num_experts_per_tok", defaults.top_k, 1, experts);
  const int64_t layers = std::ranges::count(sparse, true);
  // Without this switch the reference adds no loss.
  const bool loss = reader.boolean("output_router_logits", false);
  const double balance = reader.number("router_aux_loss_coef", 0.0, 0, kMostLoss);
  nlohmann::json moe = {{"type", "moe"},
                        {"experts", experts},
                        {"top_k", top_k},
                        {"size", decoder.size},
                        {"activation", decoder.activation},
                        {"balance_loss", loss ? balance / loss_factor(layers, top_k) : 0},
                        {"z_loss", reader.number("router_z_loss_coef", 0.0, 0, kMostLoss)}};
  if (settings.is_object()) moe.update(settings);
  decoder.experts = [moe = std::move(moe), sparse = std::move(sparse)](int64_t layer) {
    return sparse[static_cast<size_t>(layer)] ? moe : nlohmann::json();
  };
}

std::vector<bool> read_sparse_layers(ConfigReader& reader, int64_t layers) {
  const int64_t step = reader.integer("decoder_sparse_step", 1, 1);
  std::vector<bool> sparse;
  for (int64_t i = 0; i < layers; ++i) sparse.push_back((i + 1) % step == 0);
  const nlohmann::json& dense = reader.raw("mlp_only_layers");
  if (dense.is_null()) return sparse;
  require(dense.is_array(), reader.path("mlp_only_layers"), "must be a list of layers");
  for (const nlohmann::json& layer : dense) {
    require(layer.is_number_integer(), reader.path("mlp_only_layers"), "{} is no layer",
            layer.dump());
    // Numbers beyond the last layer are in published files, and mean nothing.
    const auto i = layer.get<int64_t>();
    if (i >= 0 && i < layers) sparse[static_cast<size_t>(i)] = false;
  }
  return sparse;
}

std::vector<bool> sparse_layers(const ModelConfig& config) {
  std::vector<bool> sparse;
  for (const BlockConfig* block : layer_blocks(config)) sparse.push_back(is_sparse(*block));
  return sparse;
}

bool has_experts(const ModelConfig& config) {
  return std::ranges::count(sparse_layers(config), true) > 0;
}

std::vector<const BlockConfig*> mixture_layers(const ModelConfig& config) {
  return has_experts(config) ? decoder_layers(config) : std::vector<const BlockConfig*>();
}

const nlohmann::json& experts_of(const ModelConfig& config) {
  const std::vector<const BlockConfig*> layers = layer_blocks(config);
  return (*std::ranges::find_if(layers, [](const auto* block) { return is_sparse(*block); }))
      ->feed_forward;
}

int64_t leading_dense_layers(const ModelConfig& config) {
  const std::vector<bool> sparse = sparse_layers(config);
  return std::ranges::find(sparse, true) - sparse.begin();
}

int64_t dense_size(const ModelConfig& config) {
  for (const BlockConfig* block : layer_blocks(config)) {
    if (!is_sparse(*block)) return block->feed_forward.at("size");
  }
  return experts_of(config).at("size");
}

nlohmann::json write_expert_counts(const ModelConfig& config, const std::string& count_key) {
  const nlohmann::json& moe = experts_of(config);
  nlohmann::json json = {{count_key, moe.at("experts")}, {"num_experts_per_tok", moe.at("top_k")}};
  const auto balance = moe.at("balance_loss").get<double>();
  if (balance > 0) {
    const int64_t layers = std::ranges::count(sparse_layers(config), true);
    json["output_router_logits"] = true;
    json["router_aux_loss_coef"] = balance * loss_factor(layers, moe.at("top_k"));
  }
  if (moe.at("z_loss") > 0) json["router_z_loss_coef"] = moe.at("z_loss");
  return json;
}

nlohmann::json write_experts(const ModelConfig& config, const std::string& count_key) {
  nlohmann::json json = write_expert_counts(config, count_key);
  json["intermediate_size"] = experts_of(config).at("size");
  return json;
}

nlohmann::json write_mixture(const ModelConfig& config, const std::string& model_type,
                             const std::string& architecture, const std::string& count_key) {
  nlohmann::json json = write_decoder(config, model_type, architecture);
  json.update(write_experts(config, count_key));
  return json;
}

nlohmann::json write_sparse_layers(const ModelConfig& config) {
  const nlohmann::json& moe = experts_of(config);
  nlohmann::json only = nlohmann::json::array();
  int64_t layer = 0;
  for (const bool sparse : sparse_layers(config)) {
    if (!sparse) only.push_back(layer);
    ++layer;
  }
  return {{"moe_intermediate_size", moe.at("size")},
          {"intermediate_size", dense_size(config)},
          {"norm_topk_prob", moe.at("normalize")},
          {"decoder_sparse_step", 1},
          {"mlp_only_layers", only}};
}

std::vector<std::string> expert_names(const ModelConfig& config,
                                      const std::vector<std::string>& matrices) {
  std::vector<std::string> names;
  const auto experts = experts_of(config).at("experts").get<int64_t>();
  for (int64_t e = 0; e < experts; ++e) {
    for (const std::string& matrix : matrices) {
      names.push_back(fmt::format("layers.*.ffn.experts.{}.{}", e, matrix));
    }
  }
  return names;
}

std::vector<TensorRule> single_experts(const std::string& theirs) {
  std::vector<TensorRule> rules;
  for (const std::string matrix : {"gate_proj.*", "up_proj.*", "down_proj.*"}) {
    rules.push_back({{"layers.*.ffn.experts.*." + matrix}, {theirs + "experts.*." + matrix}, {}});
  }
  return rules;
}

std::vector<TensorRule> stacked_experts(const ModelConfig& config, const std::string& gate_up,
                                        const std::string& down) {
  const auto experts = experts_of(config).at("experts").get<int64_t>();
  return {{expert_names(config, {"gate_proj.weight", "up_proj.weight"}),
           {gate_up},
           transforms::fold(experts).then(transforms::split())},
          {expert_names(config, {"down_proj.weight"}), {down}, transforms::unstack()}};
}

TensorRules with_rules(TensorRules tensors, const std::vector<TensorRule>& rules) {
  tensors.rules.insert(tensors.rules.begin(), rules.begin(), rules.end());
  return tensors;
}

}  // namespace pronghorn
