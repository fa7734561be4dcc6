#include "model/gguf_format.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "base/error.h"
#include "formats/safetensors.h"
#include "model/computation.h"
#include "model/families.h"

namespace pronghorn {
namespace {

constexpr const char* kArchitecture = "general.architecture";
constexpr std::string_view kHead = "output.weight", kEmbedding = "token_embd.weight";

std::string full_key(std::string_view architecture, std::string_view key) {
  return fmt::format("{}.{}", architecture, key);
}

// One value for all layers, from a number or from a list of equal ones.
nlohmann::json read_key(const GgufMetadata& metadata, const std::string& key, GgufKind kind,
                        bool by_layer) {
  if (metadata.find(key)->kind() == GgufKind::array) {
    std::vector<int64_t> all = metadata.integers(key);
    if (by_layer && std::ranges::count(all, 0) < std::ssize(all)) std::erase(all, 0);
    const bool equal = !all.empty() && std::ranges::count(all, all.front()) == std::ssize(all);
    require(equal, metadata.path(key), "differs between layers, which is not supported");
    return all.front();
  }
  if (kind == GgufKind::f32) return decimal_number(metadata.number(key));
  if (kind == GgufKind::boolean) return metadata.boolean(key);
  return metadata.integer(key, {}, 0);
}

bool has_layer(const GgufModel& file, int64_t layer) {
  const std::string prefix = fmt::format("blk.{}.", layer);
  const auto first = file.shapes.lower_bound(prefix);
  return first != file.shapes.end() && first->first.starts_with(prefix);
}

bool says_nothing(const GgufValue& value) {
  if (const auto truth = value.as_boolean()) return !*truth;
  if (const auto number = value.as_number()) return *number == 0;
  if (const auto text = value.as_text()) return text->empty();
  return value.count() == 0;
}

void refuse_unknown_keys(const GgufFormat& format, const GgufMetadata& metadata) {
  const std::string prefix = full_key(metadata.text(kArchitecture), "");
  for (const auto& [key, value] : metadata.all()) {
    if (!key.starts_with(prefix) || says_nothing(value)) continue;
    const std::string_view name = std::string_view(key).substr(prefix.size());
    const bool known =
        std::ranges::any_of(format.keys, [&](const GgufKey& each) { return each.key == name; }) ||
        std::ranges::count(format.other_keys, name) > 0;
    require(known, metadata.path(key), "{} is not supported", value.description());
  }
}

GgufValue value_of(const nlohmann::json& json, GgufKind kind) {
  if (kind == GgufKind::f32) return GgufValue::f32(json.get<float>());
  if (kind == GgufKind::boolean) return GgufValue::boolean(json.get<bool>());
  return GgufValue::u32(json.get<uint32_t>());
}

void write_keys(const GgufFormat& format, const nlohmann::json& config, GgufModel& file) {
  for (const GgufKey& key : format.keys) {
    const auto found = config.find(key.config_key);
    if (found == config.end() || found->is_null()) {
      require(!key.required, file.metadata.where(), "the configuration does not say {}",
              key.config_key);
      continue;
    }
    file.metadata.set(file.key(key.key), value_of(*found, key.kind));
  }
}

// Throws Error unless the file is read as what `config` computes.
void read_back(const ModelConfig& config, const GgufModel& file) {
  const Family& family = gguf_family(file);  // perhaps another of the same architecture
  const std::string architecture(file.metadata.text(kArchitecture));
  const ModelConfig read = family.read(ConfigReader(gguf_config(file), architecture));
  const std::string difference = computes_otherwise(config, read);
  require(difference.empty(), file.metadata.where(), "files of the architecture {} cannot say {}",
          architecture, difference);
}

}  // namespace

double decimal_number(double value) {
  const std::string text = fmt::format("{}", static_cast<float>(value));
  return std::strtod(text.c_str(), nullptr);
}

std::string_view GgufFormat::architecture_of(const ModelConfig& config) const {
  const bool experts = std::ranges::any_of(config.blocks, [](const auto& named) {
    const nlohmann::json& ffn = named.second.feed_forward;
    return !ffn.is_null() && ffn.at("type") == "moe";
  });
  return experts && !with_experts.empty() ? with_experts : architecture;
}

std::string GgufModel::key(std::string_view name) const {
  return full_key(metadata.text(kArchitecture), name);
}

GgufModel gguf_model(const GgufFile& file) {
  GgufModel model{file.metadata(), {}, {}, {}};
  for (const GgufTensor& tensor : file.tensors()) {
    model.shapes.emplace(tensor.name, tensor.shape());
    model.blocks.emplace(tensor.name, tensor.type->block);
    if (!tensor.name.starts_with("rope_")) continue;
    std::vector<float>& table = model.tables[std::string(tensor.name)];
    table.resize(static_cast<size_t>(tensor.elements()));
    to_f32({std::string(tensor.type->name), tensor.shape(), tensor.bytes, nullptr, nullptr},
           table.data(), fmt::format("{}: {}", file.path().string(), tensor.name));
  }
  return model;
}

const Family& gguf_family(const GgufModel& file) {
  const GgufMetadata& metadata = file.metadata;
  const std::string_view architecture = metadata.text(kArchitecture);
  std::vector<std::string_view> names;
  for (const Family& family : families()) {
    if (family.gguf == nullptr) continue;
    for (const std::string_view name : {family.gguf->architecture, family.gguf->with_experts}) {
      if (name.empty()) continue;
      if (name == architecture &&
          (family.gguf->reads_it == nullptr || family.gguf->reads_it(file))) {
        return family;
      }
      if (std::ranges::count(names, name) == 0) names.push_back(name);
    }
  }
  throw Error(metadata.path(kArchitecture),
              fmt::format("{} is not known here", metadata.find(kArchitecture)->description()),
              fmt::format("known: {}", fmt::join(names, ", ")));
}

nlohmann::json gguf_config(const GgufModel& file) {
  const GgufMetadata& metadata = file.metadata;
  const Family& family = gguf_family(file);
  const GgufFormat& format = *family.gguf;
  refuse_unknown_keys(format, metadata);
  nlohmann::json config = {{"model_type", family.model_type}};
  for (const GgufKey& key : format.keys) {
    const std::string name = file.key(key.key);
    if (!metadata.has(name)) {
      require(!key.required, metadata.path(name), "is missing");
      continue;
    }
    config[std::string(key.config_key)] = read_key(metadata, name, key.kind, key.by_layer);
  }
  // Before anything loops over them.
  const std::string layers = file.key("block_count");
  const int64_t count = metadata.integer(layers, {}, 1, kMaxBlocks);
  require(has_layer(file, count - 1), metadata.path(layers),
          "{}, but there is no tensor of layer {}", count, count - 1);
  for (const GgufKey& key : format.keys) {
    const std::string name = file.key(key.key);
    const GgufValue* value = metadata.find(name);
    require(value == nullptr || value->kind() != GgufKind::array ||
                std::cmp_equal(value->count(), count),
            metadata.path(name), "a list where there are {} layers", count);
  }
  const std::string causal = file.key("attention.causal");
  require(metadata.boolean(causal, !format.both_ways) != format.both_ways, metadata.path(causal),
          "{} is not supported for this architecture", format.both_ways);
  const auto embedding = file.shapes.find(kEmbedding);
  require(embedding != file.shapes.end() && embedding->second.size() == 2, metadata.where(),
          "no matrix '{}'", kEmbedding);
  config["vocab_size"] = embedding->second.front();
  config["tie_word_embeddings"] = !file.has(kHead);
  if (format.read != nullptr) format.read(file, config);
  return config;
}

ModelConfig read_gguf_config(const GgufFile& file) {
  const GgufModel model = gguf_model(file);
  const Family& family = gguf_family(model);
  ConfigReader reader(gguf_config(model), file.path().string());
  reader.set_file_names([&](std::string_view name, const nlohmann::json&) {
    for (const GgufKey& key : family.gguf->keys) {
      const std::string whole = model.key(key.key);
      if (key.config_key == name && model.metadata.has(whole)) return whole;
    }
    return std::string();
  });
  ModelConfig config = family.read(std::move(reader));
  config.family = family.model_type;
  return config;
}

GgufModel write_gguf_config(const Family& family, const ModelConfig& config,
                            std::map<std::string, std::vector<int64_t>, std::less<>> shapes,
                            const std::string& where) {
  const GgufFormat& format = *family.gguf;
  const std::string_view architecture = format.architecture_of(config);
  require(!format.tied || *format.tied == config.tie_embeddings, where,
          "files of the architecture {} have {}", architecture,
          config.tie_embeddings ? "a head besides the embedding" : "no head besides the embedding");
  const ModelConfig said = format.folded == nullptr ? config : format.folded(config);
  const nlohmann::json json = family.write(said).value();
  GgufModel file{GgufMetadata(where), std::move(shapes), {}, {}};
  file.metadata.set(kArchitecture, GgufValue::text(architecture));
  write_keys(format, json, file);
  if (format.write != nullptr) format.write(said, json, file);
  const TensorRules rules = format.tensors(config);
  for (const auto& [name, table] : file.tables) {
    require(is_passed_over(rules, name), where,
            "files of the architecture {} cannot say how rotary positions are scaled",
            architecture);
    file.shapes[name] = {static_cast<int64_t>(table.size())};
  }
  read_back(said, file);
  return file;
}

}  // namespace pronghorn
