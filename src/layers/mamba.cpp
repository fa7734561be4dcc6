// Mamba layer (Gu and Dao, arXiv 2312.00752, figure 3): projection, short convolution, selective
// scan, output gate. Parameter names are those of the published checkpoints.
#include <cmath>
#include <string>

#include "layers/layers.h"
#include "layers/toolbox.h"
#include "ops/linear.h"
#include "ops/pointwise.h"
#include "ops/selective_scan.h"
#include "ops/short_convolution.h"

namespace pronghorn {
namespace {

struct MambaConfig {
  double expand = 0;
  int64_t inner_size = 0, state = 0, conv_kernel = 0, time_step_rank = 0;
  TimeStepConfig time_step;
  bool bias = false, conv_bias = false;
  std::string inner_norms;
  double inner_norm_epsilon = 0;

  void fields(ConfigFields& f, const LayerContext& context) {
    f.hint("expand", expand, 2, limits::kLeastExpand, limits::kExpand,
           "only for the default of `inner_size`");
    const auto inner = static_cast<int64_t>(expand * static_cast<double>(context.hidden_size));
    f.integer("inner_size", inner_size, {inner, "expand x hidden_size"}, 1, limits::kWidth,
              "channels");
    f.integer("state", state, 16, 1, limits::kChannelState, "numbers per channel");
    f.integer("conv_kernel", conv_kernel, kConvKernel, 1, limits::kTaps, "taps of the convolution");
    f.integer("time_step_rank", time_step_rank,
              {(context.hidden_size + 15) / 16, "hidden_size / 16, rounded up"}, 1, limits::kWidth,
              "width between the two projections that make step sizes");
    time_step.fields(f);
    f.boolean("bias", bias, false, "on the input and output projections");
    f.boolean("conv_bias", conv_bias, true, "on the convolution");
    f.one_of("inner_norms", inner_norms, {"none", "learned", "plain"}, "none",
             "RMSNorm of the narrow step sizes, B and C, each with weights (`\"learned\"`) or "
             "without (`\"plain\"`)");
    f.number("inner_norm_epsilon", inner_norm_epsilon, {0.0, "that of the model's norms"}, 0, 1,
             "of those norms");
  }
};

class MambaMixer final : public Mixer {
 public:
  using Config = MambaConfig;

  MambaMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
             const StateScope& states)
      : inner_size_(config.inner_size),
        state_(config.state),
        time_step_rank_(config.time_step_rank),
        inner_norm_epsilon_(config.inner_norm_epsilon > 0
                                ? static_cast<float>(config.inner_norm_epsilon)
                                : context.norm_epsilon) {
    const int64_t d = context.hidden_size;
    const Initializer in = projection_initializer(context);
    const Initializer zero = initializers::constant(0);
    in_proj_ = scope.matrix("in_proj.weight", 2 * inner_size_, d, in);
    const Initializer taps = convolution_initializer(config.conv_kernel);
    conv_weight_ =
        scope.tensor("conv1d.weight", {inner_size_, config.conv_kernel}, taps, Decay::yes);
    if (config.conv_bias) conv_bias_ = scope.tensor("conv1d.bias", {inner_size_}, taps);
    x_proj_ = scope.matrix("x_proj.weight", time_step_rank_ + 2 * state_, inner_size_, in);
    const double dt_bound = 1 / std::sqrt(static_cast<double>(time_step_rank_));
    dt_proj_ = scope.matrix("dt_proj.weight", inner_size_, time_step_rank_,
                            initializers::uniform(-dt_bound, dt_bound));
    dt_bias_ = scope.tensor("dt_proj.bias", {inner_size_}, config.time_step.bias());
    A_log_ = scope.tensor("A_log", {inner_size_, state_}, [state = state_](Random&, int64_t i) {
      return std::log(static_cast<float>(i % state + 1));
    });
    D_ = scope.tensor("D", {inner_size_}, initializers::constant(1));
    out_proj_ = scope.matrix("out_proj.weight", d, inner_size_, residual_initializer(context));
    if (config.bias) {
      in_bias_ = scope.tensor("in_proj.bias", {2 * inner_size_}, zero);
      out_bias_ = scope.tensor("out_proj.bias", {d}, zero);
    }
    make_inner_norms(config.inner_norms, scope);
    conv_rows_ = states.add(short_convolution_journal(inner_size_, config.conv_kernel));
    scan_ = states.add(selective_scan_journal(inner_size_, state_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const CheckedBatch& batch = input.batch;
    const Tensor xz = linear(context, x, in_proj_, in_bias_);
    const Tensor z = xz.column_slice(inner_size_, inner_size_);
    const Tensor u = short_convolution(context, xz.column_slice(0, inner_size_), conv_weight_,
                                       conv_bias_, true, batch, conv_rows_);
    const Tensor dt_B_C = linear(context, u, x_proj_);
    const auto part = [&](int64_t begin, const Tensor& norm, int64_t width) {
      const Tensor slice = dt_B_C.column_slice(begin, width);
      return norm.defined() ? rms_norm(context, slice, norm, inner_norm_epsilon_) : slice;
    };
    const Tensor dt = linear(context, part(0, dt_norm_, time_step_rank_), dt_proj_);
    const Tensor B = part(time_step_rank_, b_norm_, state_);
    const Tensor C = part(time_step_rank_ + state_, c_norm_, state_);
    const Tensor y = selective_scan(context, u, dt, dt_bias_, A_log_, B, C, D_, batch, scan_);
    return linear(context, swiglu(context, z, y), out_proj_, out_bias_);
  }

  // Per number of the state: decay 2 (step size times A, product), input 2, sum 1, read 2.
  double sequence_cost(double) const override {
    return 7.0 * static_cast<double>(inner_size_ * state_);
  }

 private:
  void make_inner_norms(const std::string& kind, const ParameterScope& scope) {
    if (kind == "none") return;
    const auto weights = [&](const char* name, int64_t width) {
      return kind == "learned" ? scope.tensor(name, {width}, initializers::constant(1))
                               : Tensor::full({width}, 1);
    };
    dt_norm_ = weights("dt_layernorm.weight", time_step_rank_);
    b_norm_ = weights("b_layernorm.weight", state_);
    c_norm_ = weights("c_layernorm.weight", state_);
  }

  int64_t inner_size_, state_, time_step_rank_;
  float inner_norm_epsilon_;
  JournalSlot conv_rows_, scan_;
  Weight in_proj_, x_proj_, dt_proj_, out_proj_;
  Tensor in_bias_, out_bias_, conv_weight_, conv_bias_, dt_bias_, A_log_, D_, dt_norm_, b_norm_,
      c_norm_;
};

}  // namespace

MixerType mamba_mixer_type() {
  return mixer_type<MambaMixer>("mamba", "selective state space model with a diagonal state (S6)",
                                "arXiv 2312.00752", R"({"type": "mamba"})");
}

}  // namespace pronghorn
