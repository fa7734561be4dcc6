#include "model/families/deepseek.h"

#include <utility>

#include "base/error.h"
#include "layers/toolbox.h"
#include "model/families/gguf_mla.h"
#include "model/families/predictor.h"

namespace pronghorn {
namespace {

constexpr const char *kCount = "n_routed_experts", *kPredictors = "num_nextn_predict_layers";
// Layers that predict further tokens, which follow the last one, are at most so many.
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
  decoder.predictors = reader.integer(kPredictors, 0, 0, kMostPredictors);
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

nlohmann::json layer_types_of_mlp(const ModelConfig& config) {
  nlohmann::json types = nlohmann::json::array();
  for (const bool sparse : sparse_layers(config)) types.push_back(sparse ? "sparse" : "dense");
  return types;
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
               {kPredictors, config.mtp.heads}});
  return json;
}

std::vector<GgufKey> gguf_deepseek_keys() {
  std::vector<GgufKey> keys = gguf_expert_keys(kCount);
  keys.insert(keys.end(),
              {{"expert_feed_forward_length", "moe_intermediate_size"},
               {"expert_shared_count", "n_shared_experts", GgufKind::u32, false},
               {"expert_weights_scale", "routed_scaling_factor", GgufKind::f32, false},
               {"expert_weights_norm", "norm_topk_prob", GgufKind::boolean, false},
               {"expert_group_count", "n_group", GgufKind::u32, false},
               {"expert_group_used_count", "topk_group", GgufKind::u32, false},
               {"leading_dense_block_count", "first_k_dense_replace", GgufKind::u32, false}});
  return keys;
}

std::string gguf_router_scores(const GgufModel& file) {
  const std::string key = file.key(kGgufScores);
  switch (const int64_t function = file.metadata.integer(key, 0); function) {
    case gguf_scores::kNotSaid:
      // Files of before there was such a key, and of families that the converter forgets it for.
      for (const auto& [name, shape] : file.shapes) {
        if (name.ends_with(".exp_probs_b.bias")) return "sigmoid";
      }
      return "softmax";
    case gguf_scores::kSoftmax:
      return "softmax";
    case gguf_scores::kSigmoid:
      return "sigmoid";
    default:
      throw Error(file.metadata.path(key), fmt::format("{} is not supported", function));
  }
}

void read_gguf_deepseek_experts(const GgufModel& file, nlohmann::json& config) {
  read_gguf_predictors(file, kPredictors, config, kMostPredictors);
  const auto absent = [&](const char* key, const nlohmann::json& value) {
    if (!config.contains(key) || config.at(key) == 0) config[key] = value;
  };
  absent("n_shared_experts", 0);
  absent("routed_scaling_factor", 1.0);
  absent("n_group", 1);
  absent("topk_group", 1);
  // The converter may say 0 of a family that lists its layers in another way.
  absent("first_k_dense_replace",
         gguf_leading_dense_layers(file, config.at("num_hidden_layers").get<int64_t>()));
  if (!config.contains("norm_topk_prob")) config["norm_topk_prob"] = false;
}

void write_gguf_deepseek_experts(const ModelConfig& config, GgufModel& file) {
  const bool sigmoid = experts_of(config).at("scores") == "sigmoid";
  file.metadata.set(file.key(kGgufScores),
                    GgufValue::u32(sigmoid ? gguf_scores::kSigmoid : gguf_scores::kSoftmax));
  write_gguf_predictors(config, file);
}

void read_gguf_deepseek2(const GgufModel& file, nlohmann::json& config) {
  read_gguf_mla(file, config);
  read_gguf_deepseek_experts(file, config);
}

namespace {

std::vector<std::string_view> gguf_deepseek_other_keys() {
  std::vector<std::string_view> keys = gguf_mla_other_keys();
  keys.emplace_back(kGgufPredictors);
  return keys;
}

}  // namespace

GgufFormat gguf_deepseek2(void (*read)(const GgufModel& file, nlohmann::json& config),
                          bool (*reads_it)(const GgufModel& file)) {
  const auto write = [](const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
    write_gguf_mla(config, json, file);
    write_gguf_deepseek_experts(config, file);
  };
  const auto tensors = [](const ModelConfig& config) {
    return with_gguf_predictors(config, [](const ModelConfig& some) {
      return with_gguf_experts(gguf_mla_tensors(some), some);
    });
  };
  return {"deepseek2",
          gguf_mla_keys(gguf_deepseek_keys()),
          gguf_deepseek_other_keys(),
          read,
          write,
          tensors,
          {},
          reads_it};
}

TensorRules deepseek_tensors(const ModelConfig& config,
                             TensorRules (*layers)(const ModelConfig& config)) {
  const auto family = [&](const ModelConfig& some) {
    return with_rules(
        layers(some),
        {{{"layers.*.ffn.shared_expert.*"}, {"model.layers.*.mlp.shared_experts.*"}, {}}});
  };
  const auto names = [&](int64_t head) {
    const std::string layer = fmt::format("model.layers.{}", config.block_count() + head);
    return PredictorNames{layer,
                          layer + ".enorm",
                          layer + ".hnorm",
                          layer + ".eh_proj",
                          layer + ".shared_head.norm",
                          {layer + ".embed_tokens", layer + ".shared_head.head"}};
  };
  return with_predictors(family(config), config, family, "model.layers", names);
}

}  // namespace pronghorn
