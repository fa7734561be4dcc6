#include "model/upcycle.h"

#include <map>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/random.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "upcycling";
// Switch Transformer's weight (arXiv 2101.03961, section 2.2). A router that has learned nothing
// gives nearly all tokens to the same few copies, and without it training keeps to them.
constexpr double kBalanceLoss = 0.01;

nlohmann::json mixture_of(const nlohmann::json& ffn, const UpcycleOptions& options) {
  const std::string type = ffn.at("type");
  require(type != "moe", kWhere, "the model has experts already (name a dense one)");
  require(type == "swiglu" || type == "glu", kWhere,
          "a feed-forward \"{}\" has no gate, as experts have (\"swiglu\" and \"glu\" do)", type);
  require(!ffn.value("norm", false) && ffn.value("bits", "whole") == "whole", kWhere,
          "experts have no norm inside, and no products in few bits");
  require(ffn.value("gate_scale", 1.0) == 1 && ffn.value("output_scale", 1.0) == 1 &&
              ffn.value("adapter_rank", 0) == 0,
          kWhere, "experts have no factors (gate_scale, output_scale) and no adapters");
  return {{"type", "moe"},
          {"experts", options.experts},
          {"top_k", options.top_k},
          {"size", ffn.at("size")},
          {"activation", ffn.value("activation", "silu")},
          {"bias", ffn.value("bias", false)},
          {"balance_loss", kBalanceLoss}};
}

ModelConfig upcycled(const ModelConfig& dense, const UpcycleOptions& options) {
  nlohmann::json json = write_pronghorn_config(dense);
  int64_t changed = 0;
  for (auto& [name, block] : json.at("blocks").items()) {
    if (!block.contains("ffn")) continue;
    block["ffn"] = mixture_of(block["ffn"], options);
    ++changed;
  }
  require(changed > 0, kWhere, "the model has no feed-forwards");
  return read_pronghorn_config(ConfigReader(json, kWhere));
}

// "layers.0.ffn.experts.3.up_proj.weight" -> "layers.0.ffn.up_proj.weight"
std::string name_in_dense(std::string name) {
  constexpr std::string_view kExperts = ".ffn.experts.";
  const size_t begin = name.find(kExperts);
  if (begin == std::string::npos) return name;
  const size_t rest = name.find('.', begin + kExperts.size());
  return name.replace(begin, rest - begin, ".ffn");
}

}  // namespace

std::unique_ptr<Model> upcycle(const Model& dense, const UpcycleOptions& options) {
  std::unique_ptr<Model> model = Model::outline(upcycled(dense.config(), options));
  std::map<std::string, const Parameter*> known;
  for (const Parameter& parameter : dense.parameters()) known[parameter.name] = &parameter;
  for (size_t i = 0; i < model->parameters().size(); ++i) {
    const Parameter& parameter = model->parameters()[i];
    const auto found = known.find(name_in_dense(parameter.name));
    if (found != known.end()) {
      model->assign(i, found->second->stored());
      continue;
    }
    Random random(options.seed, parameter.name);
    const auto size = static_cast<size_t>(parameter.size());
    const auto numbers = std::make_shared<std::vector<float>>(size);
    for (float& value : *numbers) {
      value = static_cast<float>(model->config().initializer_range * random.normal());
    }
    model->assign(i, {&encodings::f32, std::as_bytes(std::span(*numbers)), numbers, nullptr});
  }
  return model;
}

}  // namespace pronghorn
