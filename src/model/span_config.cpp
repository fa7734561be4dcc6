#include "model/span_config.h"

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace pronghorn {
namespace {

// Names in the order of their values; the first is the default.
constexpr std::array<std::string_view, 4> kSpanKinds = {"subllm", "mixture_of_depths", "zipformer",
                                                        "patch_merging"};
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

constexpr int64_t kMaxSpanWidth = 1 << 17;

// The schedules of the published training.
constexpr int64_t kBalancerSteps = 8000, kBypassSteps = 20000, kMaxSteps = 1 << 30;

// A whole number from 1 to `most` for each span: a list, or one for all.
std::vector<int64_t> read_numbers(ConfigReader& reader, std::string_view key, std::string_view what,
                                  int64_t spans, int64_t most) {
  if (!reader.raw(key).is_array()) {
    return std::vector<int64_t>(static_cast<size_t>(spans), reader.integer(key, {}, 1, most));
  }
  const nlohmann::json& list = reader.raw(key);
  require(static_cast<int64_t>(list.size()) == spans, reader.path(key),
          "has {} {} for {} spans in parentheses", list.size(), what, spans);
  std::vector<int64_t> numbers;
  for (const nlohmann::json& number : list) {
    require(number.is_number_integer() && number >= 1 && number <= most, reader.path(key),
            "{} is not a whole number from 1 to {}", shown_json(number), most);
    numbers.push_back(number.get<int64_t>());
  }
  return numbers;
}

void read_widths(ConfigReader& reader, int64_t spans, SubsampleConfig& config) {
  if (reader.has("width")) {
    config.widths = read_numbers(reader, "width", "widths", spans, kMaxSpanWidth);
  } else {
    reader.ignore("width");
  }
}

// A quarter of the rows enters; without widths each stage is twice as wide as the one before it.
void read_patch_merging(ConfigReader& reader, int64_t spans, int64_t hidden_size,
                        SubsampleConfig& config) {
  config.keep.assign(static_cast<size_t>(spans), 0.25);
  read_widths(reader, spans, config);
  for (int64_t width = hidden_size; std::ssize(config.widths) < spans;) {
    width *= 2;
    require(width <= kMaxSpanWidth, reader.where(), "{} stages that double {} columns are too wide",
            spans, hidden_size);
    config.widths.push_back(width);
  }
}

void read_zipformer(ConfigReader& reader, int64_t spans, SubsampleConfig& config) {
  constexpr int64_t kMaxRate = 16;
  config.rates = read_numbers(reader, "rate", "rates", spans, kMaxRate);
  read_widths(reader, spans, config);
  for (const int64_t rate : config.rates) config.keep.push_back(1 / static_cast<double>(rate));
  config.bypass_steps = reader.integer("bypass_steps", kBypassSteps, 0, kMaxSteps);
}

}  // namespace

SubsampleConfig read_subsample(ConfigReader reader, int64_t spans, int64_t hidden_size) {
  SubsampleConfig config;
  const std::string kind = reader.one_of("type", kSpanKinds, std::string(kSpanKinds[0]));
  if (kind == kSpanKinds[3]) {
    config.kind = SubsampleConfig::Kind::patch_merging;
    read_patch_merging(reader, spans, hidden_size, config);
    reader.finish();
    return config;
  }
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
  if (config.merges()) {
    return {{"type", kSpanKinds[static_cast<size_t>(config.kind)]}, {"width", config.widths}};
  }
  if (config.kind == SubsampleConfig::Kind::zipformer) {
    nlohmann::json zipformer = {{"type", kSpanKinds[static_cast<size_t>(config.kind)]},
                                {"rate", config.rates},
                                {"bypass_steps", config.bypass_steps}};
    // Only where they are, so that sessions saved before there were any still fit.
    if (!config.widths.empty()) zipformer["width"] = config.widths;
    return zipformer;
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
