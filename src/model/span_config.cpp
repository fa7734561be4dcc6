#include "model/span_config.h"

#include <array>
#include <string>
#include <string_view>

#include "base/error.h"

namespace pronghorn {
namespace {

// Names in the order of their values; the first is the default.
constexpr std::array<std::string_view, 3> kSpanKinds = {"subllm", "mixture_of_depths", "zipformer"};
constexpr std::array<std::string_view, 2> kPredictors = {"classifier", "router"};

void read_depth_router(ConfigReader& reader, SubsampleConfig& config) {
  constexpr int64_t kPredictorSize = 64, kMaxPredictorSize = 1 << 20;
  constexpr double kPredictorLoss = 0.01, kMaxPredictorLoss = 1e3;
  const std::string predictor =
      reader.one_of("predictor", kPredictors, std::string(kPredictors[0]));
  if (predictor == kPredictors[1]) {
    config.predictor = SubsampleConfig::Predictor::router;
  } else {
    config.predictor_size = reader.integer("predictor_size", kPredictorSize, 1, kMaxPredictorSize);
  }
  config.predictor_loss = reader.number("predictor_loss", kPredictorLoss, 0, kMaxPredictorLoss);
  require(config.predictor == SubsampleConfig::Predictor::router || config.predictor_loss > 0,
          reader.path("predictor_loss"), "is 0: nothing would teach the classifier");
}

// The schedules of the published training.
constexpr int64_t kBalancerSteps = 8000, kBypassSteps = 20000, kMaxSteps = 1 << 30;

void read_zipformer(ConfigReader& reader, int64_t spans, SubsampleConfig& config) {
  constexpr int64_t kMaxRate = 16;
  if (reader.raw("rate").is_array()) {
    const nlohmann::json& list = reader.raw("rate");
    require(static_cast<int64_t>(list.size()) == spans, reader.path("rate"),
            "has {} rates for {} spans in parentheses", list.size(), spans);
    for (const nlohmann::json& rate : list) {
      require(rate.is_number_integer() && rate >= 2 && rate <= kMaxRate, reader.path("rate"),
              "{} is not a whole number from 2 to {}", shown_json(rate), kMaxRate);
      config.rates.push_back(rate.get<int64_t>());
    }
  } else {
    config.rates.assign(static_cast<size_t>(spans), reader.integer("rate", {}, 2, kMaxRate));
  }
  for (const int64_t rate : config.rates) config.keep.push_back(1 / static_cast<double>(rate));
  config.bypass_steps = reader.integer("bypass_steps", kBypassSteps, 0, kMaxSteps);
}

}  // namespace

SubsampleConfig read_subsample(ConfigReader reader, int64_t spans) {
  SubsampleConfig config;
  const std::string kind = reader.one_of("type", kSpanKinds, std::string(kSpanKinds[0]));
  if (kind == kSpanKinds[1]) config.kind = SubsampleConfig::Kind::mixture_of_depths;
  if (kind == kSpanKinds[2]) {
    config.kind = SubsampleConfig::Kind::zipformer;
    read_zipformer(reader, spans, config);
    reader.finish();
    return config;
  }
  if (reader.raw("keep").is_array()) {
    const nlohmann::json& list = reader.raw("keep");
    require(static_cast<int64_t>(list.size()) == spans, reader.path("keep"),
            "has {} shares for {} spans in parentheses", list.size(), spans);
    for (const nlohmann::json& share : list) {
      require(share.is_number(), reader.path("keep"), "{} is not a number", share.dump());
      config.keep.push_back(share.get<double>());
    }
  } else {
    config.keep.assign(static_cast<size_t>(spans), reader.number("keep"));
  }
  for (const double share : config.keep) {
    require(share > 0 && share <= 1, reader.path("keep"),
            "{} is not a share of the tokens, above 0 and up to 1", share);
  }
  config.score_norm = reader.boolean("score_norm", false);
  if (config.kind == SubsampleConfig::Kind::mixture_of_depths) {
    read_depth_router(reader, config);
    reader.finish();
    return config;
  }
  config.score_bias = reader.boolean("score_bias", false);
  config.balancer_scale = reader.number("balancer_scale", config.balancer_scale, 0, 100);
  config.balancer_steps = reader.integer("balancer_steps", kBalancerSteps, 0, kMaxSteps);
  config.bypass_steps = reader.integer("bypass_steps", kBypassSteps, 0, kMaxSteps);
  reader.finish();
  return config;
}

nlohmann::json write_subsample(const SubsampleConfig& config) {
  if (config.kind == SubsampleConfig::Kind::zipformer) {
    return {{"type", kSpanKinds[static_cast<size_t>(config.kind)]},
            {"rate", config.rates},
            {"bypass_steps", config.bypass_steps}};
  }
  nlohmann::json json = {{"type", kSpanKinds[static_cast<size_t>(config.kind)]},
                         {"keep", config.keep},
                         {"score_norm", config.score_norm}};
  if (config.kind == SubsampleConfig::Kind::mixture_of_depths) {
    json["predictor"] = kPredictors[static_cast<size_t>(config.predictor)];
    if (config.predictor_size > 0) json["predictor_size"] = config.predictor_size;
    json["predictor_loss"] = config.predictor_loss;
    return json;
  }
  json["score_bias"] = config.score_bias;
  json["balancer_scale"] = config.balancer_scale;
  json["balancer_steps"] = config.balancer_steps;
  json["bypass_steps"] = config.bypass_steps;
  return json;
}

}  // namespace pronghorn
