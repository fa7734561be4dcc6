#include "layers/neural_memory.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "ops/linear.h"
#include "ops/pointwise.h"
#include "ops/short_convolution.h"

namespace pronghorn {
namespace {

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

constexpr int64_t kMaxDepth = 4, kMaxExpansion = 16;
constexpr double kMaxErrorLimit = 1e6;
constexpr double kLeastRate = 1e-6;  // of a learning rate; of one in the largest

}  // namespace

void NeuralMemoryConfig::fields(ConfigFields& f, const LayerContext& context) {
  heads.fields(f, context, "memories, and heads of attention", "width of a head");
  f.integer("depth", depth, 2, 1, kMaxDepth, "layers of the memory, 1 to 4; 1 is a matrix");
  f.integer("expansion", expansion, 4, 1, kMaxExpansion,
            "width between the memory's layers, in head_dim");
  f.integer("conv_kernel", conv_kernel, kConvKernel, 0, limits::kTaps,
            "taps of the convolutions; 0: none, and no SiLU");
  f.boolean("momentum", momentum, true, "eta");
  f.boolean("forgetting", forgetting, true, "alpha");
  read_mini_batch(f, mini_batch);
  f.one_of("rule", rule, {"published", "online"}, "published",
           "or `\"online\"`: [the two rules](#the-two-rules)");
  const RuleDefaults& defaults = rule == "online" ? kOnline : kPublished;
  f.boolean("online_errors", online_errors, {defaults.online_errors, "false, online true"},
            "the last layer's errors at the weights that the token before left");
  f.boolean("average_momentum", average_momentum,
            {online_errors || defaults.average_momentum, "as `online_errors`"},
            "theta is multiplied by 1 - eta");
  f.one_of("forget_to", forget_to, {"start", "zero"},
           {defaults.forget_to, "`\"zero\"`, online `\"start\"`"},
           "what forgotten weights give way to: zero, or those that a fresh sequence starts from");
  f.number("hidden_learning_rate", hidden_learning_rate,
           {defaults.hidden_learning_rate, "1, online 0.001"}, 0.0, 1.0,
           "the learning rate of the layers before the last, in theta");
  f.number(
      "error_limit", error_limit, {defaults.error_limit, "0, online 2"}, 0.0, kMaxErrorLimit,
      "where the length of M(k) - v is larger, the loss grows linearly (Huber's loss), so that "
      "steps stay bounded; 0: nowhere");
  const LearningRates& rates = online_errors ? kOnlineRates : kMiniBatchRates;
  f.number("max_learning_rate", max_learning_rate, {rates.largest, "0.3, with online errors 0.5"},
           kLeastRate, 1.0, "the largest theta");
  f.number("start_learning_rate", start_learning_rate,
           {std::min(rates.start, max_learning_rate / 2), "0.015, with online errors 0.25"},
           max_learning_rate * kLeastRate, max_learning_rate,
           "theta before training, of a token that changes nothing about it; at most half the "
           "largest unless given");
}

NeuralMemory::NeuralMemory(const NeuralMemoryConfig& config, const LayerContext& context,
                           const ParameterScope& scope, const StateScope& states)
    : conv_kernel_(config.conv_kernel),
      average_momentum_(config.average_momentum),
      max_learning_rate_(static_cast<float>(config.max_learning_rate)) {
  options_.heads = config.heads.heads;
  options_.head_dim = config.heads.head_dim;
  options_.depth = config.depth;
  options_.hidden_dim = options_.head_dim * config.expansion;
  options_.mini_batch = config.mini_batch;
  rule_.momentum = config.momentum;
  rule_.forgetting = config.forgetting;
  rule_.forget_to_start = config.forget_to == "start";
  rule_.online_errors = config.online_errors;
  rule_.hidden_rate = static_cast<float>(config.hidden_learning_rate);
  rule_.error_limit = static_cast<float>(config.error_limit);
  options_.rule = rule_;

  const int64_t d = context.hidden_size, heads = options_.heads;
  const Initializer in = projection_initializer(context);
  q_proj_ = scope.matrix("q_proj.weight", width(), d, in);
  k_proj_ = scope.matrix("k_proj.weight", width(), d, in);
  v_proj_ = scope.matrix("v_proj.weight", width(), d, in);
  if (conv_kernel_ > 0) {
    const Initializer taps = convolution_initializer(conv_kernel_);
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
  const double share = std::min(0.95, config.start_learning_rate / double{max_learning_rate_});
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
  o_proj_ =
      scope.matrix("o_proj.weight", context.hidden_size, width, residual_initializer(context));
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

void read_answer_bias(ConfigFields& f, const NeuralMemoryConfig& memory, bool& answer_bias) {
  f.boolean("answer_bias", answer_bias, {memory.online(), "false, online true"},
            "biases of the norms of the two answers, with MAC and MAG");
}

}  // namespace pronghorn
