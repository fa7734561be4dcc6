// Kimi Delta Attention (Kimi Linear, arXiv 2510.26692): the delta rule with a decay per key
// channel, a low-rank gate on its output. Parameter names are those of the flash-linear-attention
// checkpoints.
#include <cmath>
#include <limits>

#include "layers/layers.h"
#include "layers/linear_parts.h"
#include "layers/toolbox.h"
#include "ops/gates.h"
#include "ops/linear.h"
#include "ops/outer_product_state.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

struct KdaConfig {
  HeadsConfig heads;
  int64_t value_heads = 0, value_head_dim = 0, conv_kernel = 0;
  bool negative_eigenvalues = false, gate_bias = true;
  double lower_bound = 0, norm_epsilon = 0;

  void fields(ConfigFields& f, const LayerContext& context) {
    heads.fields(f, context, "query and key heads", "of queries and keys");
    read_value_heads(f, heads.heads, value_heads);
    f.integer("value_head_dim", value_head_dim, {heads.head_dim, "`head_dim`"}, 1,
              2 * limits::kHeadDim, "of values; the rank of the decay and of the gate");
    f.integer("conv_kernel", conv_kernel, kConvKernel, 0, limits::kTaps,
              "taps of the convolutions; 0: none");
    f.boolean("negative_eigenvalues", negative_eigenvalues, false,
              "the write strength goes up to 2 (arXiv 2411.12537)");
    f.number(
        "lower_bound", lower_bound, 0.0, -1000, 0,
        "of log-decays, which are then lower_bound sigmoid(exp(A_log) (f + dt_bias)); 0: none, "
        "they are -exp(A_log) softplus(f + dt_bias)");
    f.boolean("gate_bias", gate_bias, true, "of the output gate");
    read_norm_epsilon(f, norm_epsilon, "of the norm of heads");
  }
};

class KdaMixer final : public Mixer {
 public:
  using Config = KdaConfig;

  KdaMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
           const StateScope& states)
      : write_scale_(config.negative_eigenvalues ? 2.0f : 1.0f),
        lower_bound_(static_cast<float>(config.lower_bound)) {
    options_.key_heads = config.heads.heads;
    options_.value_heads = config.value_heads;
    options_.key_dim = config.heads.head_dim;
    options_.value_dim = config.value_head_dim;
    options_.query_scale = 1 / std::sqrt(static_cast<float>(options_.key_dim));
    options_.delta_rule = true;
    options_.channel_decay = true;
    const int64_t key_width = options_.key_heads * options_.key_dim;
    const int64_t value_width = options_.value_heads * options_.value_dim;
    const int64_t gate_width = options_.value_heads * options_.key_dim;
    const auto project = [&](std::string_view name, int64_t width) {
      return ConvolvedProjection(name, width, {.conv_kernel = config.conv_kernel}, context, scope,
                                 states);
    };
    q_proj_ = project("q", key_width);
    k_proj_ = project("k", key_width);
    v_proj_ = project("v", value_width);
    const int64_t d = context.hidden_size, rank = options_.value_dim;
    const Initializer in = projection_initializer(context);
    f_down_ = scope.matrix("f_proj.0.weight", rank, d, in);
    f_up_ = scope.matrix("f_proj.1.weight", gate_width, rank, in);
    b_proj_ = scope.matrix("b_proj.weight", options_.value_heads, d, in);
    g_down_ = scope.matrix("g_proj.0.weight", rank, d, in);
    g_up_ = scope.matrix("g_proj.1.weight", value_width, rank, in);
    if (config.gate_bias) {
      g_bias_ = scope.tensor("g_proj.1.bias", {value_width}, initializers::constant(0));
    }
    o_proj_ = scope.matrix("o_proj.weight", d, value_width, residual_initializer(context));
    // A uniform in [1, 16], or 1 under a bound; dt as Mamba's.
    const bool bounded = lower_bound_ < 0;
    A_log_ = scope.tensor("A_log", {options_.value_heads}, [bounded](Random& random, int64_t) {
      return bounded ? 0.0f : static_cast<float>(std::log(random.uniform(1, 16)));
    });
    dt_bias_ = scope.tensor("dt_bias", {gate_width}, TimeStepConfig().bias());
    const float epsilon = epsilon_or_default(config.norm_epsilon, context);
    o_norm_ = GatedHeadNorm("o_norm.weight", options_.value_dim, HeadGate::sigmoid, epsilon, scope);
    state_ = states.add(outer_product_state_journal(options_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const auto [q, k, v, b, f, g] = linear_maps(
        context, x,
        {q_proj_.map(), k_proj_.map(), v_proj_.map(), {&b_proj_}, {&f_down_}, {&g_down_}});
    const auto unit = [&](const ConvolvedProjection& projection, const Tensor& projected) {
      return l2_normalize(context, projection.finish(input, projected), options_.key_dim,
                          kUnitEpsilon);
    };
    OuterProductStateInputs inputs;
    inputs.q = unit(q_proj_, q);
    inputs.k = unit(k_proj_, k);
    inputs.v = v_proj_.finish(input, v);
    inputs.log_decay = log_decay(context, linear(context, f, f_up_));
    inputs.beta = scaled(context, sigmoid(context, b), write_scale_);
    const Tensor y = outer_product_state(context, inputs, options_, input.batch, state_);
    const Tensor gate = linear(context, g, g_up_, g_bias_);
    return linear(context, o_norm_.forward(context, y, gate), o_proj_);
  }

  // Per number of the state: decay 1, what the key held 2, write 2, read 2.
  double sequence_cost(double) const override {
    return 7.0 * static_cast<double>(options_.value_heads * options_.key_dim * options_.value_dim);
  }

 private:
  Tensor log_decay(const Context& context, const Tensor& raw) const {
    const Tensor A_log = repeat_each(context, A_log_, options_.key_dim);
    if (lower_bound_ == 0) {
      return decay_gate(context, raw, dt_bias_, A_log, 0, std::numeric_limits<float>::infinity())
          .second;
    }
    const Tensor A = activate(context, A_log.reshape({1, A_log.size()}), Activation::exp);
    const Tensor inner =
        scale_columns(context, add_bias(context, raw, dt_bias_), A.reshape({A.size()}));
    return scale(context, sigmoid(context, inner), lower_bound_);
  }

  float write_scale_, lower_bound_;
  OuterProductStateOptions options_;
  ConvolvedProjection q_proj_, k_proj_, v_proj_;
  GatedHeadNorm o_norm_;
  JournalSlot state_;
  Weight f_down_, f_up_, b_proj_, g_down_, g_up_, o_proj_;
  Tensor g_bias_, A_log_, dt_bias_;
};

}  // namespace

MixerType kda_mixer_type() {
  return mixer_type<KdaMixer>("kda", "delta rule with a decay per key channel", "arXiv 2510.26692",
                              R"({"type": "kda", "heads": 2})");
}

}  // namespace pronghorn
