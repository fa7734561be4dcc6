// Sizes of heads and rotary positions in GGUF files.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "layers/rope_config.h"
#include "model/families/decoder.h"
#include "model/families/gguf_decoder.h"
#include "model/families/gguf_heads.h"

namespace pronghorn {
namespace {

constexpr double kTheta = 10000;  // what files mean that do not say it
// A tenth of the factor with which latent attention lets its scores grow (mscale_all_dim); queries
// and keys themselves do not grow then.
constexpr const char* kLogMultiplier = "rope.scaling.yarn_log_multiplier";
constexpr const char *kDivisors = "rope_freqs.weight", *kShort = "rope_factors_short.weight",
                     *kLong = "rope_factors_long.weight";

double number(const GgufModel& file, std::string_view name, double fallback) {
  return decimal_number(file.metadata.number(file.key(name), fallback));
}

// YaRN's factor on queries and keys without one of its own.
double yarn_growth(double factor) { return factor <= 1 ? 1.0 : 0.1 * std::log(factor) + 1; }

// Which a file says as a factor on that growth (which llama.cpp looks at), or as a whole (which its
// converter writes).
nlohmann::json read_yarn(const GgufModel& file, double factor) {
  nlohmann::json scaling = {{"rope_type", "yarn"}, {"factor", factor}};
  const double extrapolation = number(file, "rope.scaling.yarn_ext_factor", 1);
  require(extrapolation == 1 || extrapolation < 0,
          file.metadata.path(file.key("rope.scaling.yarn_ext_factor")), "{} is not supported",
          extrapolation);
  scaling["beta_fast"] = number(file, "rope.scaling.yarn_beta_fast", 32);
  scaling["beta_slow"] = number(file, "rope.scaling.yarn_beta_slow", 1);
  const double whole = number(file, "rope.scaling.yarn_attn_factor", 1);
  const double share = number(file, "rope.scaling.attn_factor", 1);
  double growth = yarn_growth(factor);
  if (const double multiplier = number(file, kLogMultiplier, 0); multiplier != 0) {
    scaling["mscale"] = scaling["mscale_all_dim"] = std::round(multiplier * 1e7) / 1e6;
    growth = 1;
  }
  if (whole != 1) {
    scaling["attention_factor"] = whole;
  } else if (share != 1) {
    scaling["attention_factor"] = share * growth;
  }
  return scaling;
}

const std::vector<float>& table(const GgufModel& file, const char* name) {
  const auto found = file.tables.find(name);
  require(found != file.tables.end(), file.metadata.where(), "has no tensor '{}'", name);
  return found->second;
}

nlohmann::json divisors(const std::vector<float>& table, double factor) {
  nlohmann::json all = nlohmann::json::array();
  for (const float divisor : table) {
    all.push_back(factor == 1 ? decimal_number(divisor) : static_cast<double>(divisor) * factor);
  }
  return all;
}

// A divisor for each pair of channels, those of llama3's scaling among them.
nlohmann::json read_tables(const GgufModel& file, double factor) {
  const bool one = file.tables.contains(kDivisors);
  return {{"rope_type", "longrope"},
          {"short_factor", divisors(table(file, one ? kDivisors : kShort), factor)},
          {"long_factor", divisors(table(file, one ? kDivisors : kLong), factor)},
          {"attention_factor", number(file, "rope.scaling.attn_factor", 1)}};
}

nlohmann::json read_scaling(const GgufModel& file) {
  const double factor = number(file, "rope.scaling.factor", number(file, "rope.scale_linear", 0));
  const std::string key = file.key("rope.scaling.type");
  const std::string type(file.metadata.text(key, factor > 0 ? "linear" : "none"));
  const bool linear = type == "linear" && factor > 0;
  if (!file.tables.empty() || type == "longrope") {
    require(type != "yarn", file.metadata.path(key), "'yarn' beside tables is not supported");
    return read_tables(file, linear ? factor : 1);
  }
  if (type == "yarn") return read_yarn(file, factor);
  require(type == "linear" || type == "none", file.metadata.path(key), "{} is not supported",
          file.metadata.has(key) ? file.metadata.find(key)->description() : type);
  const std::string magnitude = file.key("rope.scaling.attn_factor");
  require(number(file, "rope.scaling.attn_factor", 1) == 1, file.metadata.path(magnitude),
          "is supported for yarn and tables only");
  if (!linear) return nullptr;
  return {{"rope_type", "linear"}, {"factor", factor}};
}

void write_yarn(const RopeScaling& scaling, GgufModel& file) {
  const auto set = [&](const char* name, double value) {
    file.metadata.set(file.key(name), GgufValue::f32(static_cast<float>(value)));
  };
  set("rope.scaling.factor", scaling.factor);
  set("rope.scaling.yarn_beta_fast", scaling.beta_fast);
  set("rope.scaling.yarn_beta_slow", scaling.beta_slow);
  if (scaling.attention_factor == 0 || file.metadata.has(file.key(kLogMultiplier))) return;
  set("rope.scaling.yarn_attn_factor", scaling.attention_factor);
  set("rope.scaling.attn_factor", scaling.attention_factor / yarn_growth(scaling.factor));
}

// What the plain angles are divided by.
void write_divisors(const RopeConfig& rope, GgufModel& file) {
  const SharedAngles plain = rotary_angles(rope.theta, rope.rotary_dim), scaled = rope.angles();
  std::vector<float> table;
  for (size_t i = 0; i < plain->frequencies.size(); ++i) {
    table.push_back(static_cast<float>(plain->frequencies[i] / scaled->frequencies[i]));
  }
  const bool none = std::ranges::all_of(table, [](float divisor) { return divisor == 1; });
  if (!none) file.tables[kDivisors] = std::move(table);
}

void write_longrope(const RopeConfig& rope, GgufModel& file) {
  const RopeScaling& scaling = rope.scaling;
  file.tables[kShort] = {scaling.short_factors.begin(), scaling.short_factors.end()};
  file.tables[kLong] = {scaling.long_factors.begin(), scaling.long_factors.end()};
  if (scaling.short_factors == scaling.long_factors) {
    file.tables = {{kDivisors, file.tables.at(kShort)}};
  }
  file.metadata.set(file.key("rope.scaling.attn_factor"), GgufValue::f32(rope.angles()->magnitude));
}

// That of the layers without a window, if there are any that are turned: only their angles are
// scaled.
nlohmann::json rope_of(const ModelConfig& config) {
  nlohmann::json rope;
  for (const nlohmann::json* mixer : mixers_of(config, "attention")) {
    if (mixer->at("rope").is_null()) continue;
    if (rope.is_null() || mixer->at("window") == 0) rope = mixer->at("rope");
  }
  return rope;
}

}  // namespace

void write_gguf_rope(const nlohmann::json& json, double score_growth, GgufModel& file) {
  const RopeConfig rope = rope_config(json);
  using Kind = RopeScaling::Kind;
  const RopeScaling& scaling = rope.scaling;
  const auto type = [&](std::string_view name) {
    file.metadata.set(file.key("rope.scaling.type"), GgufValue::text(name));
  };
  switch (scaling.kind) {
    case Kind::none:
      return;
    case Kind::linear:
      type("linear");
      file.metadata.set(file.key("rope.scaling.factor"),
                        GgufValue::f32(static_cast<float>(scaling.factor)));
      return;
    case Kind::yarn:
      type("yarn");
      if (score_growth != 0) {
        file.metadata.set(file.key(kLogMultiplier),
                          GgufValue::f32(static_cast<float>(0.1 * score_growth)));
      }
      write_yarn(scaling, file);
      break;
    case Kind::longrope:
      write_longrope(rope, file);
      if (file.tables.contains(kLong)) type("longrope");
      break;
    case Kind::llama3:
    case Kind::dynamic_ntk:
      return write_divisors(rope, file);
  }
  file.metadata.set(file.key("rope.scaling.original_context_length"),
                    GgufValue::u32(static_cast<uint32_t>(scaling.original_context)));
}

void check_gguf_value_length(const GgufModel& file, int64_t head_dim) {
  const std::string key = file.key("attention.value_length");
  const int64_t values = file.metadata.integer(key, head_dim);
  require(values == head_dim, file.metadata.path(key), "{} where keys have {} is not supported",
          values, head_dim);
}

void read_gguf_attention(const GgufModel& file, nlohmann::json& config) {
  const GgufMetadata& metadata = file.metadata;
  // Families have defaults of their own.
  const auto heads = std::max<int64_t>(1, config.at("num_attention_heads").get<int64_t>());
  if (!config.contains("num_key_value_heads")) config["num_key_value_heads"] = heads;
  if (!config.contains("head_dim")) {
    config["head_dim"] = config.at("hidden_size").get<int64_t>() / heads;
  }
  const auto head_dim = config.at("head_dim").get<int64_t>();
  check_gguf_value_length(file, head_dim);
  const std::string turned = file.key("rope.dimension_count");
  const int64_t channels = metadata.integer(turned, head_dim, 1, head_dim);
  if (channels != head_dim) config["partial_rotary_factor"] = rotary_share(channels, head_dim);
  read_gguf_rope(file, config);
}

void read_gguf_rope(const GgufModel& file, nlohmann::json& config) {
  const GgufMetadata& metadata = file.metadata;
  if (!metadata.has(file.key("rope.freq_base"))) config["rope_theta"] = kTheta;
  nlohmann::json scaling = read_scaling(file);
  if (scaling.is_null()) return;
  const std::string original = file.key("rope.scaling.original_context_length");
  if (metadata.has(original)) {
    scaling["original_max_position_embeddings"] = metadata.integer(original, {}, 1);
  }
  config["rope_scaling"] = scaling;
}

void write_gguf_attention(const ModelConfig& config, const nlohmann::json& json, GgufModel& file) {
  const nlohmann::json& mixer = *mixers_of(config, "attention").front();
  const auto head_dim = mixer.at("head_dim").get<uint32_t>();
  const nlohmann::json rope = rope_of(config);
  file.metadata.set(file.key("attention.key_length"), GgufValue::u32(head_dim));
  file.metadata.set(file.key("attention.value_length"), GgufValue::u32(head_dim));
  file.metadata.set(
      file.key("rope.dimension_count"),
      GgufValue::u32(rope.is_null() ? head_dim : rope.at("rotary_dim").get<uint32_t>()));
  file.metadata.set(file.key("vocab_size"), GgufValue::u32(json.at("vocab_size").get<uint32_t>()));
  if (!rope.is_null()) write_gguf_rope(rope, 0, file);
}

}  // namespace pronghorn
