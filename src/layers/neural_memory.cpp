#include "layers/neural_memory.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "ops/linear.h"
#include "ops/pointwise.h"
#include "ops/short_convolution.h"

namespace pronghorn {
namespace {

constexpr float kUnitEpsilon = 1e-6f;  // of the L2 norm

// Why these values: docs/architectures/titans.md#the-two-rules.
struct RuleDefaults {
  bool online_errors, average_momentum;
  const char* forget_to;
  double hidden_learning_rate, error_limit;
};
constexpr RuleDefaults kPublished{false, false, "zero", 1, 0};
constexpr RuleDefaults kOnline{true, true, "start", 0.001, 2};

// theta's largest value and the one that it starts from.
struct LearningRates {
  double largest, start;
};
constexpr LearningRates kOnlineRates{0.5, 0.25};
constexpr LearningRates kMiniBatchRates{0.3, 0.015};

// Shares that are forgotten per token at the start: sigmoid of these. Heads remember from a hundred
// to a hundred thousand tokens.
constexpr double kLowestForgetting = -12, kHighestForgetting = -5;

}  // namespace

NeuralMemory::NeuralMemory(const nlohmann::json& config, const LayerContext& context,
                           const ParameterScope& scope, const StateScope& states)
    : conv_kernel_(config.at("conv_kernel")),
      average_momentum_(config.at("average_momentum")),
      max_learning_rate_(config.at("max_learning_rate")) {
  options_.heads = config.at("heads");
  options_.head_dim = config.at("head_dim");
  options_.depth = config.at("depth");
  options_.hidden_dim = options_.head_dim * config.at("expansion").get<int64_t>();
  options_.mini_batch = config.at("mini_batch");
  rule_.momentum = config.at("momentum");
  rule_.forgetting = config.at("forgetting");
  rule_.forget_to_start = config.at("forget_to") == "start";
  rule_.online_errors = config.at("online_errors");
  rule_.hidden_rate = config.at("hidden_learning_rate");
  rule_.error_limit = config.at("error_limit");
  options_.rule = rule_;

  const int64_t d = context.hidden_size, heads = options_.heads;
  const Initializer in = initializers::normal(context.initializer_range);
  q_proj_ = scope.matrix("q_proj.weight", width(), d, in);
  k_proj_ = scope.matrix("k_proj.weight", width(), d, in);
  v_proj_ = scope.matrix("v_proj.weight", width(), d, in);
  if (conv_kernel_ > 0) {
    const double bound = 1 / std::sqrt(static_cast<double>(conv_kernel_));
    const Initializer taps = initializers::uniform(-bound, bound);
    q_conv_ = scope.tensor("q_conv1d.weight", {width(), conv_kernel_}, taps, Decay::yes);
    k_conv_ = scope.tensor("k_conv1d.weight", {width(), conv_kernel_}, taps, Decay::yes);
    v_conv_ = scope.tensor("v_conv1d.weight", {width(), conv_kernel_}, taps, Decay::yes);
    const JournalShape journal = short_convolution_journal(width(), conv_kernel_);
    q_rows_ = states.add(journal);
    k_rows_ = states.add(journal);
    v_rows_ = states.add(journal);
  }
  const auto make_gate = [&](const std::string& name, const Initializer& bias) {
    return Gate{scope.matrix(name + ".weight", heads, d, in),
                scope.tensor(name + ".bias", {heads}, bias)};
  };
  // What it starts at does not depend on how far it may go.
  const double share =
      std::min(0.95, config.at("start_learning_rate").get<double>() / max_learning_rate_);
  theta_ = make_gate("theta_proj", initializers::constant(std::log(share / (1 - share))));
  if (rule_.momentum) eta_ = make_gate("eta_proj", initializers::constant(0));
  if (rule_.forgetting) {
    alpha_ = make_gate("alpha_proj", initializers::uniform(kLowestForgetting, kHighestForgetting));
  }
  for (int64_t l = 0; l < options_.depth; ++l) {
    const int64_t from = options_.in(l), to = options_.out(l);
    // gelu(z) is about z / 2 near 0: so the inputs of each layer have about the keys' unit length,
    // and a step writes about its share. What a fresh memory answers has to be learned, too, before
    // it outweighs what is written.
    const double deviation = l + 1 == options_.depth ? 0 : 2 / std::sqrt(static_cast<double>(to));
    weights_.push_back(scope.tensor("memory." + std::to_string(l) + ".weight", {heads, from, to},
                                    initializers::normal(deviation)));
  }
}

Tensor NeuralMemory::gate(const Context& context, const Tensor& x, const Gate& gate) const {
  return sigmoid(context, linear(context, x, gate.weight, gate.bias));
}

Tensor NeuralMemory::unit(const Context& context, const Tensor& projected) const {
  return l2_normalize(context, projected, options_.head_dim, kUnitEpsilon);
}

FastWeightMemoryInputs NeuralMemory::features(const LayerInput& input, const Tensor& x) const {
  const Context& context = input.context;
  const auto projected = [&](const Weight& projection, const Tensor& taps, JournalSlot rows) {
    const Tensor plain = linear(context, x, projection);
    if (conv_kernel_ == 0) return plain;
    return short_convolution(context, plain, taps, {}, true, input.batch, rows);
  };
  FastWeightMemoryInputs inputs;
  inputs.q = unit(context, projected(q_proj_, q_conv_, q_rows_));
  inputs.k = unit(context, projected(k_proj_, k_conv_, k_rows_));
  inputs.v = projected(v_proj_, v_conv_, v_rows_);
  inputs.theta = scale(context, gate(context, x, theta_), max_learning_rate_);
  if (rule_.momentum) {
    const Tensor raw = linear(context, x, eta_.weight, eta_.bias);
    inputs.eta = sigmoid(context, raw);
    if (average_momentum_) {
      // theta (1 - eta): momentum spreads a step out and does not enlarge it.
      inputs.theta = multiply(context, inputs.theta, sigmoid(context, scale(context, raw, -1.0f)));
    }
  }
  if (rule_.forgetting) inputs.alpha = gate(context, x, alpha_);
  inputs.weights = weights_;
  return inputs;
}

Tensor NeuralMemory::forward(const LayerInput& input, const Tensor& x, JournalSlot slot) const {
  return fast_weight_memory(input.context, features(input, x), options_, input.batch, slot);
}

GatedAnswer::GatedAnswer(int64_t width, bool bias, const LayerContext& context,
                         const ParameterScope& scope)
    : norm_epsilon_(context.norm_epsilon) {
  const Initializer one = initializers::constant(1);
  attention_norm_ = scope.tensor("attention_norm.weight", {width}, one);
  memory_norm_ = scope.tensor("memory_norm.weight", {width}, one);
  if (bias) {
    // From 1, so that each branch also passes by itself: a product of two unknowns teaches neither.
    attention_bias_ = scope.tensor("attention_norm.bias", {width}, one);
    memory_bias_ = scope.tensor("memory_norm.bias", {width}, one);
  }
  o_proj_ = scope.matrix("o_proj.weight", context.hidden_size, width,
                         initializers::normal(context.initializer_range * context.residual_scale));
}

Tensor GatedAnswer::normalized(const Context& context, const Tensor& y) const {
  return rms_norm(context, y, attention_norm_, norm_epsilon_);
}

Tensor GatedAnswer::join(const Context& context, const Tensor& normalized,
                         const Tensor& answer) const {
  Tensor gate = rms_norm(context, answer, memory_norm_, norm_epsilon_), value = normalized;
  if (memory_bias_.defined()) {
    gate = add_bias(context, gate, memory_bias_);
    value = add_bias(context, value, attention_bias_);
  }
  return linear(context, swiglu(context, gate, value), o_proj_);
}

void complete_neural_memory(ConfigReader& reader, const LayerContext& context,
                            nlohmann::json& config) {
  const int64_t heads = reader.integer("heads", {}, 1, 4096);
  if (!reader.has("head_dim")) {
    require(context.hidden_size % heads == 0, reader.path("heads"),
            "{} does not divide hidden_size {} (change one of them or give head_dim)", heads,
            context.hidden_size);
  }
  config["heads"] = heads;
  config["head_dim"] = reader.integer("head_dim", context.hidden_size / heads, 1, 4096);
  config["depth"] = reader.integer("depth", 2, 1, 4);
  config["expansion"] = reader.integer("expansion", 4, 1, 16);
  config["conv_kernel"] = reader.integer("conv_kernel", 4, 0, 64);
  config["momentum"] = reader.boolean("momentum", true);
  config["forgetting"] = reader.boolean("forgetting", true);
  const std::string rule = reader.one_of("rule", {"published", "online"}, "published");
  const RuleDefaults& defaults = rule == "online" ? kOnline : kPublished;
  config["rule"] = rule;
  const bool online = reader.boolean("online_errors", defaults.online_errors);
  config["online_errors"] = online;
  config["average_momentum"] =
      reader.boolean("average_momentum", online || defaults.average_momentum);
  config["forget_to"] = reader.one_of("forget_to", {"start", "zero"}, defaults.forget_to);
  config["hidden_learning_rate"] =
      reader.number("hidden_learning_rate", defaults.hidden_learning_rate, 0.0, 1.0);
  config["error_limit"] = reader.number("error_limit", defaults.error_limit, 0.0, 1e6);
  const int64_t mini_batch = reader.integer("mini_batch", kExactStep, 1, kExactStep);
  require(kExactStep % mini_batch == 0, reader.path("mini_batch"), "{} does not divide {}",
          mini_batch, kExactStep);
  config["mini_batch"] = mini_batch;
  const LearningRates& rates = online ? kOnlineRates : kMiniBatchRates;
  const double most = reader.number("max_learning_rate", rates.largest, 1e-6, 1.0);
  config["max_learning_rate"] = most;
  config["start_learning_rate"] =
      reader.number("start_learning_rate", std::min(rates.start, most / 2), most * 1e-6, most);
}

void complete_gated_answer(ConfigReader& reader, nlohmann::json& config) {
  const bool online = config.at("rule") == "online" || config.at("online_errors").get<bool>();
  config["answer_bias"] = reader.boolean("answer_bias", online);
}

}  // namespace pronghorn
