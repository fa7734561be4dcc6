// Mamba-2 layer (Dao and Gu, arXiv 2405.21060, section 7): one projection for everything, a short
// convolution over x, B and C, the gated outer-product state (SSD), a gated norm. Parameter names
// are those of the published checkpoints.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "layers/layers.h"
#include "layers/log_linear.h"
#include "layers/mamba_core.h"
#include "layers/toolbox.h"
#include "ops/linear.h"
#include "ops/pointwise.h"
#include "ops/short_convolution.h"

namespace pronghorn {
namespace {

constexpr double kMostScale = 1e4;

struct Mamba2Config : StateHeads {
  int64_t conv_kernel = 0;
  TimeStepConfig time_step;
  LevelsConfig levels;
  float time_step_low = 0, time_step_high = std::numeric_limits<float>::infinity();
  bool bias = false, conv_bias = false, output_bias = false;
  std::string norm;
  double input_scale = 1, output_scale = 1;
  std::vector<float> projection_scales;

  void fields(ConfigFields& f, const LayerContext& context) {
    head_fields(f, context, 1);
    f.integer("conv_kernel", conv_kernel, kConvKernel, 1, limits::kTaps, "taps of the convolution");
    time_step.fields(f);
    nlohmann::json limit;
    f.json("time_step_limit", limit, {0.0, nullptr}, "[0, null]",
           "range that step sizes are clamped to; null: no upper limit");
    f.check(limit.is_array() && limit.size() == 2 && limit[0].is_number() &&
                (limit[1].is_number() || limit[1].is_null()) && limit[0] >= 0.0 &&
                (limit[1].is_null() || limit[0] <= limit[1]),
            "time_step_limit", "{} is not a pair [low, high], 0 <= low <= high", limit.dump());
    time_step_low = limit[0];
    if (!limit[1].is_null()) time_step_high = limit[1];
    f.boolean("bias", bias, false, "on the input projection");
    f.boolean("output_bias", output_bias, {bias, "`bias`"}, "on the output projection");
    f.boolean("conv_bias", conv_bias, true, "on the convolution");
    f.one_of("norm", norm, {"gate_then_norm", "norm_then_gate", "none"}, "gate_then_norm",
             "of each group of heads: norm(y silu(z)), norm(y) silu(z) (`\"norm_then_gate\"`), or "
             "none: y silu(z)");
    f.number("input_scale", input_scale, 1.0, -kMostScale, kMostScale, "factor on the input");
    f.number("output_scale", output_scale, 1.0, -kMostScale, kMostScale, "factor on the output");
    nlohmann::json scales;
    f.json("projection_scales", scales, {1.0, 1.0, 1.0, 1.0, 1.0}, "[1, 1, 1, 1, 1]",
           "factors on z, x, B, C and dt, as they are projected");
    const auto is_scale = [](const nlohmann::json& scale) {
      return scale.is_number() && std::abs(scale.get<double>()) <= kMostScale;
    };
    f.check(scales.is_array() && scales.size() == 5 && std::ranges::all_of(scales, is_scale),
            "projection_scales", "{} is not a list of five factors of up to {}", scales.dump(),
            kMostScale);
    projection_scales = scales.get<std::vector<float>>();
    levels.fields(f);
  }
};

class Mamba2Mixer final : public Mixer {
 public:
  using Config = Mamba2Config;

  Mamba2Mixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
              const StateScope& states)
      : heads_(config.heads),
        inner_size_(heads_ * config.head_dim),
        groups_state_(config.groups * config.state),
        time_step_limit_low_(config.time_step_low),
        time_step_limit_high_(config.time_step_high),
        norm_epsilon_(context.norm_epsilon),
        input_scale_(static_cast<float>(config.input_scale)),
        output_scale_(static_cast<float>(config.output_scale)),
        projection_scales_(config.projection_scales),
        order_(config.norm == "norm_then_gate" ? GateOrder::norm_then_gate
                                               : GateOrder::gate_then_norm) {
    options_.value_heads = heads_;
    options_.key_heads = config.groups;
    options_.key_dim = config.state;
    options_.value_dim = config.head_dim;
    const int64_t d = context.hidden_size;
    const int64_t conv_width = inner_size_ + 2 * groups_state_;
    in_proj_ = scope.matrix("in_proj.weight", inner_size_ + conv_width + heads_, d,
                            projection_initializer(context));
    const Initializer taps = convolution_initializer(config.conv_kernel);
    conv_weight_ =
        scope.tensor("conv1d.weight", {conv_width, config.conv_kernel}, taps, Decay::yes);
    if (config.conv_bias) conv_bias_ = scope.tensor("conv1d.bias", {conv_width}, taps);
    dt_bias_ = scope.tensor("dt_bias", {heads_}, config.time_step.bias());
    // A uniform in [1, 16], as in the paper's implementation.
    A_log_ = scope.tensor("A_log", {heads_}, [](Random& random, int64_t) {
      return static_cast<float>(std::log(random.uniform(1, 16)));
    });
    D_ = scope.tensor("D", {heads_}, initializers::constant(1));
    if (config.norm != "none") {
      norm_ = scope.tensor("norm.weight", {inner_size_}, initializers::constant(1));
    }
    out_proj_ = scope.matrix("out_proj.weight", d, inner_size_, residual_initializer(context));
    const Initializer zero = initializers::constant(0);
    if (config.bias) in_bias_ = scope.tensor("in_proj.bias", {in_proj_.out()}, zero);
    if (config.output_bias) out_bias_ = scope.tensor("out_proj.bias", {d}, zero);
    conv_rows_ = states.add(short_convolution_journal(conv_width, config.conv_kernel));
    state_ = LeveledState(config.levels, options_, context, scope, states);
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const CheckedBatch& batch = input.batch;
    const Tensor projected = linear(context, scaled(context, x, input_scale_), in_proj_, in_bias_);
    const auto part = [&](int64_t begin, int64_t width, size_t scale) {
      return scaled(context, projected.column_slice(begin, width), projection_scales_[scale]);
    };
    const int64_t conv_width = inner_size_ + 2 * groups_state_;
    const Tensor z = part(0, inner_size_, 0);
    const Tensor raw_dt = part(inner_size_ + conv_width, heads_, 4);
    Tensor convolved = projected.column_slice(inner_size_, conv_width);
    if (std::any_of(projection_scales_.begin() + 1, projection_scales_.begin() + 4,
                    [](float scale) { return scale != 1; })) {
      const Tensor parts[] = {part(inner_size_, inner_size_, 1),
                              part(2 * inner_size_, groups_state_, 2),
                              part(2 * inner_size_ + groups_state_, groups_state_, 3)};
      convolved = concatenate_columns(context, parts);
    }
    const Tensor x_B_C =
        short_convolution(context, convolved, conv_weight_, conv_bias_, true, batch, conv_rows_);
    const auto [dt, log_decay] =
        decay_gate(context, raw_dt, dt_bias_, A_log_, time_step_limit_low_, time_step_limit_high_);
    OuterProductStateInputs inputs;
    inputs.v = x_B_C.column_slice(0, inner_size_);
    inputs.k = x_B_C.column_slice(inner_size_, groups_state_);
    inputs.q = x_B_C.column_slice(inner_size_ + groups_state_, groups_state_);
    inputs.log_decay = log_decay;
    inputs.beta = dt;
    inputs.skip = D_;
    const Tensor y = state_.forward(input, x, inputs);
    return scaled(context, linear(context, gated_output(context, y, z), out_proj_, out_bias_),
                  output_scale_);
  }

  // Per number of the state: decay 1, write 2, read 2.
  double sequence_cost(double) const override {
    return 5.0 * static_cast<double>(inner_size_ * options_.key_dim * state_.count());
  }

 private:
  Tensor gated_output(const Context& context, const Tensor& y, const Tensor& z) const {
    if (!norm_.defined()) return swiglu(context, z, y);
    // Each group of heads that shares B and C is normalised on its own.
    return gated_rms_norm(context, y, z, norm_, inner_size_ / options_.key_heads, norm_epsilon_,
                          order_);
  }

  int64_t heads_, inner_size_, groups_state_;
  float time_step_limit_low_, time_step_limit_high_;
  float norm_epsilon_, input_scale_, output_scale_;
  std::vector<float> projection_scales_;
  GateOrder order_;
  OuterProductStateOptions options_;
  JournalSlot conv_rows_;
  LeveledState state_;
  Weight in_proj_, out_proj_;
  Tensor in_bias_, out_bias_, conv_weight_, conv_bias_, dt_bias_, A_log_, D_, norm_;
};

}  // namespace

MixerType mamba2_mixer_type() {
  return mixer_type<Mamba2Mixer>(
      "mamba2", "state space duality: an outer-product state with one decay per head",
      "arXiv 2405.21060", R"({"type": "mamba2", "heads": 2, "state": 8})");
}

}  // namespace pronghorn
