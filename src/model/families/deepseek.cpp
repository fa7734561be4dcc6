#include "model/families/deepseek.h"

#include <utility>

#include "base/error.h"
#include "layers/toolbox.h"

namespace pronghorn {
namespace {

constexpr const char* kCount = "n_routed_experts";
// Layers that predict further tokens follow the last one in published files.
constexpr int64_t kMostPredictors = 8;

}  // namespace

nlohmann::json read_corrected_router(ConfigReader& reader, const DeepseekDefaults& defaults) {
  reader.one_of("scoring_func", {"sigmoid"}, "sigmoid");
  reader.one_of("topk_method", {"noaux_tc"}, "noaux_tc");
  return {{"scores", "sigmoid"},
          {"correction", true},
          {"normalize", reader.boolean("norm_topk_prob", !is_null(reader, "norm_topk_prob"))},
          {"groups", reader.integer("n_group", defaults.groups, 1, limits::kExperts)},
          {"top_groups", reader.integer("topk_group", defaults.top_groups, 1, limits::kExperts)}};
}

void read_deepseek_experts(ConfigReader& reader, Decoder& decoder, const DeepseekDefaults& defaults,
                           const nlohmann::json& router, std::vector<bool> sparse) {
  constexpr double kMostScale = 1e4;
  nlohmann::json settings = router;
  const int64_t size = reader.integer("moe_intermediate_size", defaults.size, 1, limits::kWidth);
  const int64_t shared = is_null(reader, "n_shared_experts") ? 0 : defaults.shared;
  settings["size"] = size;
  settings["shared_size"] =
      size * reader.integer("n_shared_experts", shared, 0, limits::kWidth / size);
  settings["scale"] = reader.number("routed_scaling_factor", defaults.scale, 0, kMostScale);
  const int64_t dense = reader.integer("first_k_dense_replace", defaults.dense, 0);
  for (int64_t i = std::ssize(sparse); i < decoder.layers; ++i) sparse.push_back(i >= dense);
  reader.integer("num_nextn_predict_layers", 0, 0, kMostPredictors);
  read_experts(reader, decoder, {kCount, defaults.experts, defaults.top_k}, settings,
               std::move(sparse));
}

std::vector<bool> read_layer_types_of_mlp(ConfigReader& reader, int64_t layers) {
  const std::string key = "mlp_layer_types";
  const nlohmann::json& types = reader.raw(key);
  if (types.is_null()) return {};
  require(types.is_array() && std::ssize(types) == layers, reader.path(key),
          "must be a list with one entry for each of {} layers", layers);
  std::vector<bool> sparse;
  for (const nlohmann::json& type : types) {
    sparse.push_back(type == "sparse");
    require(sparse.back() || type == "dense", reader.path(key),
            "{} is neither \"dense\" nor \"sparse\"", type.dump());
  }
  return sparse;
}

nlohmann::json write_deepseek_experts(const ModelConfig& config) {
  const nlohmann::json& moe = experts_of(config);
  const int64_t size = moe.at("size"), shared = moe.at("shared_size");
  nlohmann::json json = write_expert_counts(config, kCount);
  json.update({{"moe_intermediate_size", size},
               {"intermediate_size", dense_size(config)},
               {"n_shared_experts", shared / size},
               {"routed_scaling_factor", moe.at("scale")},
               {"first_k_dense_replace", leading_dense_layers(config)},
               {"norm_topk_prob", moe.at("normalize")},
               {"scoring_func", moe.at("scores")},
               {"topk_method", "noaux_tc"},
               {"n_group", moe.at("groups")},
               {"topk_group", moe.at("top_groups")},
               {"num_nextn_predict_layers", 0}});
  return json;
}

TensorRules deepseek_tensors(TensorRules tensors, const ModelConfig& config) {
  for (int64_t i = 0; i < kMostPredictors; ++i) {
    tensors.passed_over.push_back(fmt::format("model.layers.{}.*", config.block_count() + i));
  }
  return with_rules(
      std::move(tensors),
      {{{"layers.*.ffn.shared_expert.*"}, {"model.layers.*.mlp.shared_experts.*"}, {}}});
}

}  // namespace pronghorn
