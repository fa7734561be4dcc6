#include "model/families/predictor.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/error.h"

namespace pronghorn {
namespace {

PredictorNames gguf_names(int64_t layer) {
  const std::string blk = fmt::format("blk.{}", layer), nextn = blk + ".nextn.";
  return {blk,
          nextn + "enorm",
          nextn + "hnorm",
          nextn + "eh_proj",
          nextn + "shared_head_norm",
          {nextn + "embed_tokens", nextn + "shared_head_head"}};
}

// A model whose only layer is the heads' block.
ModelConfig one_layer(const ModelConfig& config) {
  ModelConfig one = config;
  one.steps = {{PatternStep::Kind::block, config.mtp_block()}};
  one.mtp = {};
  return one;
}

// "layers.0.x" and "layers.*.x" of `from` = "layers" to what `to` has for that layer.
bool rename(const std::string& from, const std::string& to, std::string& name) {
  for (const char* layer : {".0.", ".*."}) {
    const std::string prefix = from + layer;
    if (!name.starts_with(prefix)) continue;
    name.replace(0, prefix.size(), to + ".");
    return true;
  }
  return false;
}

std::vector<TensorRule> renamed(const std::vector<TensorRule>& rules, const std::string& layers,
                                int64_t head, const std::string& layer) {
  std::vector<TensorRule> result;
  const std::string ours = fmt::format("mtp.{}.block", head);
  for (TensorRule rule : rules) {
    const auto rename_ours = [&](std::string& name) { return rename("layers", ours, name); };
    const auto rename_theirs = [&](std::string& name) { return rename(layers, layer, name); };
    if (std::ranges::all_of(rule.ours, rename_ours) &&
        std::ranges::all_of(rule.published, rename_theirs)) {
      result.push_back(std::move(rule));
    }
  }
  return result;
}

void put_first(std::vector<TensorRule>& rules, const std::vector<TensorRule>& first) {
  rules.insert(rules.begin(), first.begin(), first.end());
}

}  // namespace

void add_predictors(ModelConfig& config, int64_t heads) {
  config.mtp.heads = config.mtp.published = heads;
  if (heads == 0) return;
  for (const PatternStep& step : config.steps) {
    if (step.kind != PatternStep::Kind::block) continue;
    const nlohmann::json& mixers = config.blocks.at(step.block).mixers;
    const bool attends = std::ranges::any_of(mixers, [](const nlohmann::json& mixer) {
      return mixer.at("type") == "attention" || mixer.at("type") == "mla" ||
             mixer.at("type") == "dsa";
    });
    if (attends) config.mtp.block = step.block;
  }
}

TensorRules with_predictors(TensorRules tensors, const ModelConfig& config,
                            const std::function<TensorRules(const ModelConfig&)>& family,
                            const std::string& layers,
                            const std::function<PredictorNames(int64_t head)>& names,
                            const Transform& norm) {
  TensorRules one;
  if (config.mtp.heads > 0) one = family(one_layer(config));
  for (int64_t head = 0; head < std::max(config.mtp.heads, config.mtp.published); ++head) {
    const PredictorNames theirs = names(head);
    if (head >= config.mtp.heads) {
      tensors.passed_over.push_back(theirs.layer + ".*");
      continue;
    }
    put_first(tensors.rules, renamed(one.rules, layers, head, theirs.layer));
    put_first(tensors.layouts, renamed(one.layouts, layers, head, theirs.layer));
    const std::string ours = fmt::format("mtp.{}.", head);
    put_first(tensors.rules,
              {{{ours + "embedding_norm.weight"}, {theirs.embedding_norm + ".weight"}, norm},
               {{ours + "hidden_norm.weight"}, {theirs.hidden_norm + ".weight"}, norm},
               {{ours + "norm.weight"}, {theirs.norm + ".weight"}, norm},
               {{ours + "projection.weight"},
                {theirs.projection + ".weight"},
                transforms::swap_halves()}});
    for (const std::string& copy : theirs.copies) tensors.passed_over.push_back(copy + ".weight");
  }
  return tensors;
}

void read_gguf_predictors(const GgufModel& file, const char* key, nlohmann::json& config,
                          int64_t most) {
  const auto all = config.at("num_hidden_layers").get<int64_t>();
  const std::string count = file.key(kGgufPredictors);
  const int64_t heads = file.metadata.integer(count, 0, 0, most);
  require(heads < all, file.metadata.path(count), "{} of {} layers", heads, all);
  config["num_hidden_layers"] = all - heads;
  config[key] = heads;
}

void write_gguf_predictors(const ModelConfig& config, GgufModel& file) {
  if (config.mtp.heads == 0) return;
  const auto count = [](int64_t value) { return GgufValue::u32(static_cast<uint32_t>(value)); };
  file.metadata.set(file.key("block_count"), count(config.block_count() + config.mtp.heads));
  file.metadata.set(file.key(kGgufPredictors), count(config.mtp.heads));
}

TensorRules with_gguf_predictors(const ModelConfig& config,
                                 const std::function<TensorRules(const ModelConfig&)>& family) {
  const auto names = [&](int64_t head) { return gguf_names(config.block_count() + head); };
  return with_predictors(family(config), config, family, "blk", names);
}

}  // namespace pronghorn
