#include "layers/linear_parts.h"

#include <algorithm>
#include <cmath>

#include "layers/toolbox.h"
#include "ops/gates.h"
#include "ops/short_convolution.h"

namespace pronghorn {

ConvolvedProjection::ConvolvedProjection(std::string_view name, int64_t width,
                                         const Options& options, const LayerContext& context,
                                         const ParameterScope& scope, const StateScope& states)
    : options_(options),
      projection_(scope.matrix(std::string(name) + "_proj.weight", width, context.hidden_size,
                               projection_initializer(context))) {
  if (options.conv_kernel == 0) return;
  const std::string convolution = std::string(name) + "_conv1d.";
  const Initializer initializer = convolution_initializer(options.conv_kernel);
  taps_ =
      scope.tensor(convolution + "weight", {width, options.conv_kernel}, initializer, Decay::yes);
  if (options.conv_bias) bias_ = scope.tensor(convolution + "bias", {width}, initializer);
  rows_ = states.add(short_convolution_journal(width, options.conv_kernel));
}

Tensor ConvolvedProjection::finish(const LayerInput& input, const Tensor& projected) const {
  const Context& context = input.context;
  if (options_.conv_kernel > 0) {
    return short_convolution(context, projected, taps_, bias_, options_.silu, input.batch, rows_);
  }
  return options_.silu ? activate(context, projected, Activation::silu) : projected;
}

PreviousRow::PreviousRow(int64_t width, const StateScope& states)
    : rows_(states.add(short_convolution_journal(width, 2))) {
  // A convolution that takes the row before as it is.
  std::vector<float> taps(static_cast<size_t>(2 * width), 0.0f);
  for (size_t i = 0; i < taps.size(); i += 2) taps[i] = 1;
  taps_ = Tensor::from(taps, {width, 2});
}

Tensor PreviousRow::forward(const LayerInput& input, const Tensor& x) const {
  return short_convolution(input.context, x, taps_, {}, false, input.batch, rows_);
}

RisingBound::RisingBound(bool learned, int64_t width, const LayerContext& context,
                         const ParameterScope& scope)
    : layer_(std::min(context.layer, context.depth - 1)) {
  if (learned) {
    all_ = scope.common("lower_bounds", {context.depth, width}, initializers::constant(0));
  } else {
    bound_ = Tensor::zeros({width});
  }
}

Tensor RisingBound::value(const Context& context) const {
  if (!all_.defined()) return bound_;
  if (all_.requires_grad()) return cumulative_softmax(context, all_, layer_);
  // In inference it stays what it is.
  std::call_once(made_, [&] { bound_ = cumulative_softmax({}, all_, layer_); });
  return bound_;
}

std::vector<float> retention_log_decays(int64_t heads) {
  std::vector<float> decays;
  for (int64_t h = 0; h < heads; ++h) {
    decays.push_back(static_cast<float>(std::log1p(-std::exp2(-5.0 - static_cast<double>(h)))));
  }
  return decays;
}

std::vector<float> lightning_log_decays(int64_t heads, int64_t layer, int64_t depth) {
  const auto place = static_cast<double>(std::min(layer, depth - 1));
  const double factor = 1 - place / (static_cast<double>(depth - 1) + 1e-5) + 1e-5;
  std::vector<float> decays;
  for (int64_t h = 0; h < heads; ++h) {
    const double slope = std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads));
    decays.push_back(static_cast<float>(-slope * factor));
  }
  return decays;
}

void HalfKeyHeads::fields(ConfigFields& f, const LayerContext& context) {
  f.integer("heads", heads, kRequired, 1, limits::kHeads, "heads, each with a state");
  const int64_t width = context.hidden_size;
  f.check((f.has("head_dim") && f.has("value_head_dim")) || width % (2 * heads) == 0, "heads",
          "hidden_size {} cannot be cut into {} heads of values, and half of it of keys", width,
          heads);
  f.integer("head_dim", head_dim, {width / (2 * heads), "hidden_size / (2 heads)"}, 1,
            limits::kHeadDim, "of queries and keys");
  f.integer("value_head_dim", value_head_dim, {width / heads, "hidden_size / heads"}, 1,
            2 * limits::kHeadDim, "of values");
}

void read_value_heads(ConfigFields& f, int64_t heads, int64_t& value_heads) {
  f.integer("value_heads", value_heads, {heads, "`heads`"}, heads, limits::kHeads,
            "a multiple of `heads`");
  f.check(value_heads % heads == 0, "value_heads", "{} is not a multiple of heads {}", value_heads,
          heads);
}

void read_norm_epsilon(ConfigFields& f, double& norm_epsilon, std::string_view of) {
  f.number("norm_epsilon", norm_epsilon, {0.0, "that of the model's norms"}, 0, 1, of);
}

float epsilon_or_default(double configured, const LayerContext& context) {
  return configured > 0 ? static_cast<float>(configured) : context.norm_epsilon;
}

HeadGate head_gate_named(std::string_view name) {
  return name == "silu" ? HeadGate::silu : name == "sigmoid" ? HeadGate::sigmoid : HeadGate::none;
}

GatedHeadNorm::GatedHeadNorm(std::string_view weight_name, int64_t group, HeadGate gate,
                             float epsilon, const ParameterScope& scope)
    : group_(group),
      gate_(gate),
      epsilon_(epsilon),
      weight_(scope.tensor(weight_name, {group}, initializers::constant(1))) {}

Tensor GatedHeadNorm::forward(const Context& context, const Tensor& y, const Tensor& z) const {
  if (gate_ == HeadGate::silu) {
    return gated_rms_norm(context, y, z, weight_, group_, epsilon_, GateOrder::norm_then_gate);
  }
  const Tensor heads = y.reshape({y.size() / group_, group_});
  const Tensor normed = rms_norm(context, heads, weight_, epsilon_).reshape(y.shape());
  return gate_ == HeadGate::none ? normed : multiply(context, normed, sigmoid(context, z));
}

}  // namespace pronghorn
