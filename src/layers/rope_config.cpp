#include "layers/rope_config.h"

#include <string>
#include <vector>

#include "layers/toolbox.h"

namespace pronghorn {
namespace {

constexpr double kLeastFactor = 1e-3, kMostFactor = 1e6;  // of any scaling
constexpr int64_t kMostContext = int64_t{1} << 31;

// Divisors, one for each pair of channels; null: none.
std::vector<double> read_divisors(ConfigFields& f, std::string_view name, int64_t pairs,
                                  std::string_view meaning) {
  nlohmann::json list;
  f.json(name, list, nullptr, "none", meaning);
  std::vector<double> divisors;
  if (list.is_null()) return divisors;
  f.check(list.is_array() && std::ssize(list) == pairs, name, "is not a list of {} numbers", pairs);
  for (const nlohmann::json& divisor : list) {
    f.check(divisor.is_number() && divisor.get<double>() >= kLeastFactor &&
                divisor.get<double>() <= kMostFactor,
            name, "has something other than numbers from {} to {}", kLeastFactor, kMostFactor);
    divisors.push_back(divisor.get<double>());
  }
  return divisors;
}

}  // namespace

void RopeConfig::fields(ConfigFields& f, int64_t head_dim) {
  f.number("theta", theta, kRopeTheta, 1.0, limits::kRopeTheta, "base of the angles");
  f.integer("rotary_dim", rotary_dim, {head_dim, "`head_dim`"}, 2, head_dim,
            "channels of a head that are turned; even");
  f.check(rotary_dim % 2 == 0, "rotary_dim", "{} is odd", rotary_dim);
  f.boolean("interleaved", interleaved, false,
            "pairs are neighbouring channels, not half of `rotary_dim` apart");
  f.object(
      "scaling", [&](ConfigFields& inner) { scaling_fields(inner); },
      "angles for longer contexts, an object of the next keys");
}

void RopeConfig::scaling_fields(ConfigFields& f) {
  using Kind = RopeScaling::Kind;
  std::string type;
  f.one_of("type", type, {"linear", "dynamic_ntk", "yarn", "llama3", "longrope"}, kRequired,
           "`\"linear\"`, `\"dynamic_ntk\"`, `\"yarn\"`, `\"llama3\"` or `\"longrope\"`");
  scaling.kind = type == "linear"        ? Kind::linear
                 : type == "dynamic_ntk" ? Kind::dynamic_ntk
                 : type == "yarn"        ? Kind::yarn
                 : type == "llama3"      ? Kind::llama3
                                         : Kind::longrope;
  f.number("factor", scaling.factor, 1.0, kLeastFactor, kMostFactor,
           "times as long as the context of the training");
  const bool linear = scaling.kind == Kind::linear;
  f.integer("original_context", scaling.original_context,
            linear ? Default<int64_t>(0) : Default<int64_t>(kRequired), linear ? 0 : 2,
            kMostContext, "tokens of that context; linear does without");
  f.integer("context", scaling.context, {scaling.original_context, "`original_context`"},
            scaling.original_context, kMostContext,
            "dynamic_ntk, longrope: tokens of the longest sequence");
  f.number("beta_fast", scaling.beta_fast, 32.0, kLeastFactor, kMostFactor,
           "yarn: turns in the original context from which a pair stays");
  f.number("beta_slow", scaling.beta_slow, 1.0, kLeastFactor, kMostFactor,
           "yarn: turns up to which its angle is divided by `factor`");
  f.boolean("truncate", scaling.truncate, true, "yarn: the ramp between begins at whole pairs");
  f.number("low_frequency_factor", scaling.low_frequency_factor, 1.0, kLeastFactor, kMostFactor,
           "llama3: as `beta_slow`");
  f.number("high_frequency_factor", scaling.high_frequency_factor, 4.0, kLeastFactor, kMostFactor,
           "llama3: as `beta_fast`");
  f.check(
      scaling.kind != Kind::llama3 || scaling.low_frequency_factor < scaling.high_frequency_factor,
      "low_frequency_factor", "{} is not below high_frequency_factor {}",
      scaling.low_frequency_factor, scaling.high_frequency_factor);
  f.number("attention_factor", scaling.attention_factor, {0.0, "by `factor`"}, 0, kMostFactor,
           "yarn, longrope: factor on queries and keys; 0: by `factor`");
  const int64_t pairs = rotary_dim / 2;
  scaling.short_factors = read_divisors(
      f, "short_factors", pairs, "longrope: divisors of the angles up to `original_context`");
  scaling.long_factors = read_divisors(f, "long_factors", pairs, "longrope: those for longer ones");
  f.check(scaling.kind != Kind::longrope ||
              (!scaling.short_factors.empty() && !scaling.long_factors.empty()),
          "short_factors", "and long_factors are needed by longrope");
}

RopeConfig rope_config(const nlohmann::json& rope) {
  ConfigFields fields(ConfigReader({{"type", "attention"}, {"rope", rope}}, "rope"));
  RopeConfig config;
  const auto rotary_dim = rope.at("rotary_dim").get<int64_t>();
  fields.object(
      "rope", [&](ConfigFields& inner) { config.fields(inner, rotary_dim); }, "");
  return config;
}

Tensor turned(const LayerInput& input, const Tensor& heads, int64_t head_dim,
              const SharedAngles& angles) {
  if (angles == nullptr) return heads;
  if (input.batch.coordinate_count() == 2) {
    return rope(input.context, heads, input.batch.coordinates(), head_dim, angles, 2);
  }
  return rope(input.context, heads, input.batch.positions(), head_dim, angles);
}

int64_t context_limit(const SharedAngles& angles) {
  return angles == nullptr ? kUnbounded : angles->context;
}

}  // namespace pronghorn
