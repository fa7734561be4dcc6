#include "model/families/rope.h"

#include <cmath>
#include <string>
#include <utility>

#include "base/error.h"
#include "model/families/mapping.h"
#include "model/families/published_keys.h"

namespace pronghorn {
namespace {

// The reference's default.
constexpr int64_t kMaxPositions = 2048;
constexpr int64_t kMostContext = int64_t{1} << 31;

// Published names and ours.
constexpr std::pair<const char*, const char*> kTypes[] = {{"linear", "linear"},
                                                          {"dynamic", "dynamic_ntk"},
                                                          {"yarn", "yarn"},
                                                          {"llama3", "llama3"},
                                                          {"longrope", "longrope"}};

int64_t max_positions(ConfigReader& whole) {
  return whole.integer("max_position_embeddings", kMaxPositions, 2, kMostContext);
}

// Times as long as the context of the training: spelled out, or what the two lengths say.
double read_factor(ConfigReader& object, ConfigReader& whole, int64_t original) {
  const double lengths = static_cast<double>(max_positions(whole)) / static_cast<double>(original);
  return object.number("factor", lengths, 1e-3, 1e6);
}

// YaRN's factor on queries and keys; 0: what `factor` says.
double read_attention_factor(ConfigReader& object, double factor) {
  const double given = object.number("attention_factor", 0.0, 0);
  const double mscale = object.number("mscale", 0.0, 0);
  const double mscale_all_dim = object.number("mscale_all_dim", 0.0, 0);
  if (given > 0 || mscale == 0 || mscale_all_dim == 0) return given;
  const auto growth = [&](double scale) {
    return factor <= 1 ? 1.0 : 0.1 * scale * std::log(factor) + 1;
  };
  return growth(mscale) / growth(mscale_all_dim);
}

nlohmann::json read_scaling(const std::string& type, ConfigReader& object, ConfigReader& whole) {
  nlohmann::json scaling = {{"type", type}};
  const std::string original_key = "original_max_position_embeddings";
  if (type == "linear") {
    scaling["factor"] = object.number("factor", {}, 1e-3, 1e6);
    return scaling;
  }
  if (type == "dynamic_ntk") {
    scaling["factor"] = object.number("factor", {}, 1e-3, 1e6);
    scaling["original_context"] = max_positions(whole);
    object.ignore(original_key);
  } else {
    // Beside the object it counts for more than inside.
    const int64_t inside = object.integer(original_key, max_positions(whole), 2, kMostContext);
    const int64_t original = whole.integer(original_key, inside, 2, kMostContext);
    const double factor = read_factor(object, whole, original);
    scaling["original_context"] = original;
    scaling["factor"] = factor;
    if (type == "llama3") {
      scaling["low_frequency_factor"] = object.number("low_freq_factor", {}, 1e-3, 1e6);
      scaling["high_frequency_factor"] = object.number("high_freq_factor", {}, 1e-3, 1e6);
      return scaling;
    }
    scaling["attention_factor"] = read_attention_factor(object, factor);
  }
  if (type == "yarn") {
    for (const auto& [key, fallback] : {std::pair("beta_fast", 32.0), {"beta_slow", 1.0}}) {
      const double value = object.number(key, fallback, 0);
      scaling[key] = value == 0 ? fallback : value;
    }
    scaling["truncate"] = object.boolean("truncate", true);
    return scaling;
  }
  if (type == "longrope") {
    scaling["short_factors"] = object.raw("short_factor");
    scaling["long_factors"] = object.raw("long_factor");
  }
  if (object.has("context")) scaling["context"] = object.integer("context", {}, 1, kMostContext);
  return scaling;
}

// Channels that a share of a head is, as the reference counts them.
int64_t channels_of(double share, int64_t head_dim) {
  return static_cast<int64_t>(static_cast<double>(head_dim) * share);
}

std::string type_of(ConfigReader& object) {
  const std::string old = object.string("type", "default");
  const std::string type = object.string("rope_type", old);
  if (type == "default") return "";
  if (type == "su") return "longrope";  // an older name
  std::string known;
  for (const auto& [theirs, ours] : kTypes) {
    if (type == theirs) return ours;
    known += fmt::format(", {}", theirs);
  }
  throw Error(object.path("rope_type"), fmt::format("'{}' is not a known scaling", type),
              fmt::format("known: default{}", known));
}

}  // namespace

nlohmann::json read_rope_object(ConfigReader object, ConfigReader& whole, int64_t head_dim,
                                double theta, double partial) {
  const std::string type = type_of(object);
  theta = object.number("rope_theta", theta, 1.0);
  partial = object.number("partial_rotary_factor", partial, 0, 1);
  nlohmann::json rope = {{"theta", theta}, {"rotary_dim", channels_of(partial, head_dim)}};
  if (!type.empty()) rope["scaling"] = read_scaling(type, object, whole);
  finish_published(object);
  return rope;
}

nlohmann::json read_rope(ConfigReader& reader, int64_t head_dim, const RopeDefaults& defaults) {
  const double theta = reader.number("rope_theta", defaults.theta, 1.0);
  double partial = defaults.partial;
  if (defaults.has_partial) {
    partial = reader.number("partial_rotary_factor", partial, 0, 1);
  }
  const std::string key = reader.has("rope_scaling") ? "rope_scaling" : "rope_parameters";
  reader.ignore("rope_scaling");
  reader.ignore("rope_parameters");
  ConfigReader object = reader.has(key) ? reader.object(key)
                                        : ConfigReader(nlohmann::json::object(), reader.path(key));
  require(defaults.has_partial || object.number("partial_rotary_factor", 1.0) == 1,
          object.path("partial_rotary_factor"), "the family turns whole heads");
  return read_rope_object(std::move(object), reader, head_dim, theta, partial);
}

double rotary_share(int64_t channels, int64_t head_dim) {
  const double share = static_cast<double>(channels) / static_cast<double>(head_dim);
  return channels_of(share, head_dim) == channels ? share : std::nextafter(share, 1.0);
}

nlohmann::json write_rope_scaling(const nlohmann::json& rope) {
  if (rope.is_null() || rope.at("scaling").is_null()) return nullptr;
  const nlohmann::json& scaling = rope.at("scaling");
  nlohmann::json json;
  for (const auto& [theirs, ours] : kTypes) {
    if (scaling.at("type") == ours) json["rope_type"] = theirs;
  }
  const std::string type = json.at("rope_type");
  json["factor"] = scaling.at("factor");
  if (type == "linear") return json;
  if (type != "dynamic") {
    json["original_max_position_embeddings"] = scaling.at("original_context");
  }
  if (type == "llama3") {
    json["low_freq_factor"] = scaling.at("low_frequency_factor");
    json["high_freq_factor"] = scaling.at("high_frequency_factor");
    return json;
  }
  if (type == "yarn") {
    for (const char* key : {"beta_fast", "beta_slow", "truncate"}) json[key] = scaling.at(key);
  }
  if (type == "longrope") {
    json["short_factor"] = scaling.at("short_factors");
    json["long_factor"] = scaling.at("long_factors");
  }
  if (type != "dynamic" && scaling.at("attention_factor") != 0) {
    json["attention_factor"] = scaling.at("attention_factor");
  }
  if (scaling.at("context") != scaling.at("original_context")) json["context"] = scaling["context"];
  return json;
}

nlohmann::json write_rope(const nlohmann::json& rope, int64_t head_dim,
                          const TrainedContext& context) {
  nlohmann::json json = {{"rope_theta", rope.at("theta")}};
  if (rope.at("rotary_dim") != head_dim) {
    json["partial_rotary_factor"] = rotary_share(rope.at("rotary_dim"), head_dim);
  }
  const nlohmann::json scaling = write_rope_scaling(rope);
  if (scaling.is_null()) return json;
  json["rope_scaling"] = scaling;
  const nlohmann::json& ours = rope.at("scaling");
  const int64_t original = ours.at("original_context");
  if (ours.at("type") == "dynamic_ntk") {
    json["max_position_embeddings"] = original;
  } else if (ours.at("type") == "linear") {
    // The reference's length is that before scaling.
    if (context.original > 0) json["max_position_embeddings"] = context.original;
  } else if (context.tokens == 0) {
    json["max_position_embeddings"] =
        std::llround(static_cast<double>(original) * ours.at("factor").get<double>());
  }
  return json;
}

}  // namespace pronghorn
