#include "layers/mamba_core.h"

#include <cmath>

#include "ops/linear.h"
#include "ops/pointwise.h"
#include "ops/selective_scan.h"
#include "ops/short_convolution.h"

namespace pronghorn {

void StateHeads::head_fields(ConfigFields& f, const LayerContext& context, int64_t least_state) {
  f.hint("expand", expand, 2, limits::kLeastExpand, limits::kExpand,
         "only for the default of `head_dim`");
  const auto inner = static_cast<int64_t>(expand * static_cast<double>(context.hidden_size));
  f.integer("heads", heads, kRequired, 1, limits::kHeads, "heads, each with a state");
  f.check(f.has("head_dim") || inner % heads == 0, "heads",
          "{} does not divide the inner size {} (expand x hidden_size)", heads, inner);
  f.integer("head_dim", head_dim, {inner / heads, "expand x hidden_size / heads"}, 1,
            limits::kWidth / heads, "columns of a head's state");
  f.integer("state", state, 128, least_state, limits::kState, "rows of a head's state");
  f.integer("groups", groups, 1, 1, heads, "of heads that share B and C; divides `heads`");
  f.check(heads % groups == 0, "groups", "{} does not divide heads {}", groups, heads);
}

void MambaCoreConfig::fields(ConfigFields& f, const LayerContext& context) {
  f.integer("state", state, 16, 1, limits::kChannelState, "numbers per channel");
  f.integer("conv_kernel", conv_kernel, kConvKernel, 1, limits::kTaps, "taps of the convolution");
  f.integer("time_step_rank", time_step_rank,
            {(context.hidden_size + 15) / 16, "hidden_size / 16, rounded up"}, 1, limits::kWidth,
            "width between the two projections that make step sizes");
  time_step.fields(f);
  f.boolean("conv_bias", conv_bias, true, "on the convolution");
  f.one_of("inner_norms", inner_norms, {"none", "learned", "plain"}, "none",
           "RMSNorm of the narrow step sizes, B and C, each with weights (`\"learned\"`) or "
           "without (`\"plain\"`)");
  f.number("inner_norm_epsilon", inner_norm_epsilon, {0.0, "that of the model's norms"}, 0, 1,
           "of those norms");
}

MambaCore::MambaCore(const MambaCoreConfig& config, int64_t inner_size, const LayerContext& context,
                     const ParameterScope& scope, const StateScope& states)
    : inner_size_(inner_size),
      state_(config.state),
      time_step_rank_(config.time_step_rank),
      inner_norm_epsilon_(config.inner_norm_epsilon > 0
                              ? static_cast<float>(config.inner_norm_epsilon)
                              : context.norm_epsilon) {
  if (config.conv_kernel > 0) {
    const Initializer taps = convolution_initializer(config.conv_kernel);
    conv_weight_ =
        scope.tensor("conv1d.weight", {inner_size_, config.conv_kernel}, taps, Decay::yes);
    if (config.conv_bias) conv_bias_ = scope.tensor("conv1d.bias", {inner_size_}, taps);
    conv_rows_ = states.add(short_convolution_journal(inner_size_, config.conv_kernel));
  }
  x_proj_ = scope.matrix("x_proj.weight", time_step_rank_ + 2 * state_, inner_size_,
                         projection_initializer(context));
  const double dt_bound = 1 / std::sqrt(static_cast<double>(time_step_rank_));
  dt_proj_ = scope.matrix("dt_proj.weight", inner_size_, time_step_rank_,
                          initializers::uniform(-dt_bound, dt_bound));
  dt_bias_ = scope.tensor("dt_proj.bias", {inner_size_}, config.time_step.bias());
  A_log_ = scope.tensor("A_log", {inner_size_, state_}, [state = state_](Random&, int64_t i) {
    return std::log(static_cast<float>(i % state + 1));
  });
  D_ = scope.tensor("D", {inner_size_}, initializers::constant(1));
  make_inner_norms(config.inner_norms, scope);
  scan_ = states.add(selective_scan_journal(inner_size_, state_));
}

void MambaCore::make_inner_norms(const std::string& kind, const ParameterScope& scope) {
  if (kind == "none") return;
  const auto weights = [&](const char* name, int64_t width) {
    return kind == "learned" ? scope.tensor(name, {width}, initializers::constant(1))
                             : Tensor::full({width}, 1);
  };
  dt_norm_ = weights("dt_layernorm.weight", time_step_rank_);
  b_norm_ = weights("b_layernorm.weight", state_);
  c_norm_ = weights("c_layernorm.weight", state_);
}

Tensor MambaCore::forward(const LayerInput& input, const Tensor& x, const Tensor& z) const {
  const Tensor y = scan(input, x);
  return swiglu(input.context, z, y);
}

Tensor MambaCore::scan(const LayerInput& input, const Tensor& x) const {
  const Context& context = input.context;
  const CheckedBatch& batch = input.batch;
  const Tensor u = conv_weight_.defined() ? short_convolution(context, x, conv_weight_, conv_bias_,
                                                              true, batch, conv_rows_)
                                          : x;
  const Tensor dt_B_C = linear(context, u, x_proj_);
  const auto part = [&](int64_t begin, const Tensor& norm, int64_t width) {
    const Tensor slice = dt_B_C.column_slice(begin, width);
    return norm.defined() ? rms_norm(context, slice, norm, inner_norm_epsilon_) : slice;
  };
  const Tensor dt = linear(context, part(0, dt_norm_, time_step_rank_), dt_proj_);
  const Tensor B = part(time_step_rank_, b_norm_, state_);
  const Tensor C = part(time_step_rank_ + state_, c_norm_, state_);
  const Tensor rates = rates_->get(context, {A_log_}, [&] { return selective_scan_rates(A_log_); });
  return selective_scan(context, u, dt, dt_bias_, A_log_, B, C, D_, batch, scan_, rates);
}

// Per number of the state: decay 2 (step size times A, product), input 2, sum 1, read 2.
double MambaCore::sequence_cost() const { return 7.0 * static_cast<double>(inner_size_ * state_); }

}  // namespace pronghorn
