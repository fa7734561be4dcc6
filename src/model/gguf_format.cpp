#include "model/gguf_format.h"

#include <algorithm>

#include "base/error.h"
#include "model/families.h"

namespace pronghorn {
namespace {

constexpr const char* kArchitecture = "general.architecture";

std::string full_key(std::string_view architecture, std::string_view key) {
  return fmt::format("{}.{}", architecture, key);
}

// One value for all layers, from a number or from a list of equal ones.
nlohmann::json read_key(const GgufMetadata& metadata, const std::string& key, GgufKind kind) {
  if (metadata.find(key)->kind() == GgufKind::array) {
    const std::vector<int64_t> all = metadata.integers(key);
    const bool equal = !all.empty() && std::ranges::count(all, all.front()) == std::ssize(all);
    require(equal, metadata.path(key), "differs between layers, which is not supported");
    return all.front();
  }
  if (kind == GgufKind::f32) {
    // The shortest decimal number that is this f32: what the configuration once said.
    const auto value = static_cast<float>(metadata.number(key));
    return nlohmann::json::parse(fmt::format("{}", value), nullptr, false);
  }
  if (kind == GgufKind::boolean) return metadata.boolean(key);
  return metadata.integer(key, {}, 0);
}

bool says_nothing(const GgufValue& value) {
  if (const auto truth = value.as_boolean()) return !*truth;
  if (const auto number = value.as_number()) return *number == 0;
  if (const auto text = value.as_text()) return text->empty();
  return value.count() == 0;
}

void refuse_unknown_keys(const GgufFormat& format, const GgufMetadata& metadata) {
  const std::string prefix = full_key(format.architecture, "");
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

int64_t head_dim_of(const nlohmann::json& config) {
  const auto found = config.find("head_dim");
  if (found != config.end() && found->is_number_integer()) return found->get<int64_t>();
  return config.at("hidden_size").get<int64_t>() /
         std::max<int64_t>(1, config.at("num_attention_heads").get<int64_t>());
}

}  // namespace

const Family& gguf_family(const GgufFile& file) {
  const GgufMetadata& metadata = file.metadata();
  const std::string_view architecture = metadata.text(kArchitecture);
  std::vector<std::string_view> names;
  for (const Family& family : families()) {
    if (family.gguf == nullptr) continue;
    if (family.gguf->architecture == architecture) return family;
    if (std::ranges::count(names, family.gguf->architecture) == 0) {
      names.push_back(family.gguf->architecture);
    }
  }
  throw Error(metadata.path(kArchitecture),
              fmt::format("{} is not known here", metadata.find(kArchitecture)->description()),
              fmt::format("known: {}", fmt::join(names, ", ")));
}

nlohmann::json gguf_config(const GgufFile& file) {
  const Family& family = gguf_family(file);
  const GgufFormat& format = *family.gguf;
  const GgufMetadata& metadata = file.metadata();
  refuse_unknown_keys(format, metadata);
  nlohmann::json config = {{"model_type", family.model_type}};
  for (const GgufKey& key : format.keys) {
    const std::string name = full_key(format.architecture, key.key);
    if (!metadata.has(name)) {
      require(!key.required, metadata.path(name), "is missing");
      continue;
    }
    config[std::string(key.config_key)] = read_key(metadata, name, key.kind);
  }
  const GgufTensor* embedding = file.find("token_embd.weight");
  require(embedding != nullptr && embedding->rank == 2, file.path().string(),
          "no matrix 'token_embd.weight'");
  config["vocab_size"] = embedding->sizes[0];
  config["tie_word_embeddings"] = file.find("output.weight") == nullptr;
  if (format.read != nullptr) format.read(file, config);
  return config;
}

GgufMetadata gguf_metadata(const Family& family, const nlohmann::json& config,
                           const std::string& where) {
  const GgufFormat& format = *family.gguf;
  GgufMetadata metadata(where);
  metadata.set(kArchitecture, GgufValue::text(format.architecture));
  for (const GgufKey& key : format.keys) {
    const auto found = config.find(key.config_key);
    if (found == config.end() || found->is_null()) {
      require(!key.required, where, "the configuration does not say {}", key.config_key);
      continue;
    }
    metadata.set(full_key(format.architecture, key.key), value_of(*found, key.kind));
  }
  const bool has_window = config.contains("sliding_window") &&
                          !config["sliding_window"].is_null() &&
                          config.value("use_sliding_window", true);
  const bool can_say = std::ranges::any_of(
      format.keys, [](const GgufKey& key) { return key.config_key == "sliding_window"; });
  require(!has_window || can_say, where,
          "files of the architecture {} cannot say that attention has a window",
          format.architecture);
  if (format.write != nullptr) format.write(config, metadata);
  return metadata;
}

std::vector<GgufKey> gguf_decoder_keys() {
  return {{"block_count", "num_hidden_layers"},
          {"context_length", "max_position_embeddings", GgufKind::u32, false},
          {"embedding_length", "hidden_size"},
          {"feed_forward_length", "intermediate_size"},
          {"attention.head_count", "num_attention_heads"},
          {"attention.head_count_kv", "num_key_value_heads", GgufKind::u32, false},
          {"attention.key_length", "head_dim", GgufKind::u32, false},
          {"attention.layer_norm_rms_epsilon", "rms_norm_eps", GgufKind::f32},
          {"rope.freq_base", "rope_theta", GgufKind::f32, false}};
}

std::vector<std::string_view> gguf_decoder_other_keys() {
  return {"attention.value_length",
          "rope.dimension_count",
          "vocab_size",
          "tensor_data_layout",
          "rope.scaling.type",
          "rope.scaling.factor",
          "rope.scaling.original_context_length",
          "rope.scaling.finetuned"};
}

void read_gguf_rope(const GgufFile& file, nlohmann::json& config) {
  const GgufMetadata& metadata = file.metadata();
  const std::string prefix = full_key(metadata.text(kArchitecture), "");
  const int64_t head_dim = head_dim_of(config);
  const int64_t values = metadata.integer(prefix + "attention.value_length", head_dim);
  require(values == head_dim, metadata.path(prefix + "attention.value_length"),
          "{} where keys have {} is not supported", values, head_dim);
  const int64_t turned = metadata.integer(prefix + "rope.dimension_count", head_dim, 1, head_dim);
  if (turned != head_dim) {
    config["partial_rotary_factor"] = static_cast<double>(turned) / static_cast<double>(head_dim);
  }
  const std::string type(metadata.text(prefix + "rope.scaling.type", "none"));
  if (type == "none") return;
  nlohmann::json scaling = {{"rope_type", type},
                            {"factor", metadata.number(prefix + "rope.scaling.factor")}};
  const std::string original = prefix + "rope.scaling.original_context_length";
  if (metadata.has(original)) {
    scaling["original_max_position_embeddings"] = metadata.integer(original, {}, 1);
  }
  config["rope_scaling"] = scaling;
}

void write_gguf_rope(const nlohmann::json& config, GgufMetadata& metadata) {
  const std::string prefix = full_key(metadata.text(kArchitecture), "");
  const int64_t head_dim = head_dim_of(config);
  const double turned = config.value("partial_rotary_factor", 1.0) * static_cast<double>(head_dim);
  metadata.set(prefix + "attention.key_length", GgufValue::u32(static_cast<uint32_t>(head_dim)));
  metadata.set(prefix + "attention.value_length", GgufValue::u32(static_cast<uint32_t>(head_dim)));
  metadata.set(prefix + "rope.dimension_count", GgufValue::u32(static_cast<uint32_t>(turned)));
  metadata.set(prefix + "vocab_size", GgufValue::u32(config.at("vocab_size").get<uint32_t>()));
  const auto scaling = config.find("rope_scaling");
  if (scaling == config.end() || scaling->is_null()) return;
  const auto type = scaling->at("rope_type").get<std::string>();
  if (type == "default") return;
  require(type == "linear" || type == "yarn", metadata.where(),
          "rotary positions scaled as '{}' cannot be said in GGUF", type);
  metadata.set(prefix + "rope.scaling.type", GgufValue::text(type));
  metadata.set(prefix + "rope.scaling.factor", GgufValue::f32(scaling->at("factor").get<float>()));
  const auto original = scaling->find("original_max_position_embeddings");
  if (original == scaling->end()) return;
  metadata.set(prefix + "rope.scaling.original_context_length",
               GgufValue::u32(original->get<uint32_t>()));
}

TensorRules gguf_decoder_tensors(const ModelConfig& config, bool rope_pairs) {
  const nlohmann::json& mixer = config.blocks.begin()->second.mixers.front();
  Transform query, key;
  if (rope_pairs) {
    query = transforms::rope_pairs(mixer.at("heads"));
    key = transforms::rope_pairs(mixer.at("kv_heads"));
  }
  const std::string layer = "layers.*.", theirs = "blk.*.";
  TensorRules tensors;
  tensors.rules = {
      {{"embeddings.weight"}, {"token_embd.weight"}, {}},
      {{layer + "mixer_norm.*"}, {theirs + "attn_norm.*"}, {}},
      {{layer + "mixer.q_proj.*"}, {theirs + "attn_q.*"}, query},
      {{layer + "mixer.k_proj.*"}, {theirs + "attn_k.*"}, key},
      {{layer + "mixer.v_proj.*"}, {theirs + "attn_v.*"}, {}},
      {{layer + "mixer.o_proj.*"}, {theirs + "attn_output.*"}, {}},
      {{layer + "mixer.q_norm.*"}, {theirs + "attn_q_norm.*"}, {}},
      {{layer + "mixer.k_norm.*"}, {theirs + "attn_k_norm.*"}, {}},
      {{layer + "ffn_norm.*"}, {theirs + "ffn_norm.*"}, {}},
      {{layer + "ffn.gate_proj.*"}, {theirs + "ffn_gate.*"}, {}},
      {{layer + "ffn.up_proj.*"}, {theirs + "ffn_up.*"}, {}},
      {{layer + "ffn.down_proj.*"}, {theirs + "ffn_down.*"}, {}},
      {{"norm.*"}, {"output_norm.*"}, {}},
      {{"lm_head.weight"}, {"output.weight"}, {}},
  };
  return tensors;
}

}  // namespace pronghorn
