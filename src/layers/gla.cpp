// Gated linear attention (GLA; Yang et al., arXiv 2312.06635): a decay per key channel, chosen by
// the token through a low-rank projection, and a gated norm of heads. Parameter names are those of
// the flash-linear-attention checkpoints.
#include <cmath>
#include <string>

#include "layers/layers.h"
#include "layers/linear_parts.h"
#include "layers/toolbox.h"
#include "ops/linear.h"
#include "ops/outer_product_state.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

struct GlaConfig {
  HalfKeyHeads heads;
  int64_t conv_kernel = 0, gate_rank = 0;
  double gate_divisor = 0, norm_epsilon = 0;
  std::string gate;

  void fields(ConfigFields& f, const LayerContext& context) {
    heads.fields(f, context);
    f.integer("conv_kernel", conv_kernel, 0, 0, limits::kTaps,
              "taps of convolutions of q, k and v; 0: none");
    f.integer("gate_rank", gate_rank, 16, 1, limits::kWidth, "of the decay's projection");
    f.number("gate_divisor", gate_divisor, 16.0, 1e-3, 1e6,
             "log-decays are logsigmoid of the projection over this");
    f.one_of("gate", gate, {"silu", "sigmoid", "none"}, "silu", "on the output, after its norm");
    read_norm_epsilon(f, norm_epsilon, "of the norm of heads");
  }
};

class GlaMixer final : public Mixer {
 public:
  using Config = GlaConfig;

  GlaMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
           const StateScope& states)
      : decay_scale_(static_cast<float>(1 / config.gate_divisor)) {
    options_.key_heads = options_.value_heads = config.heads.heads;
    options_.key_dim = config.heads.head_dim;
    options_.value_dim = config.heads.value_head_dim;
    options_.query_scale = 1 / std::sqrt(static_cast<float>(options_.key_dim));
    options_.channel_decay = true;
    const int64_t key_width = config.heads.heads * config.heads.head_dim;
    const int64_t value_width = config.heads.heads * config.heads.value_head_dim;
    const int64_t d = context.hidden_size;
    const auto project = [&](std::string_view name, int64_t width) {
      return ConvolvedProjection(name, width, {config.conv_kernel, false, config.conv_kernel > 0},
                                 context, scope, states);
    };
    q_proj_ = project("q", key_width);
    k_proj_ = project("k", key_width);
    v_proj_ = project("v", value_width);
    const Initializer in = projection_initializer(context);
    gk_down_ = scope.matrix("gk_proj.0.weight", config.gate_rank, d, in);
    gk_up_ = scope.matrix("gk_proj.1.weight", key_width, config.gate_rank, in);
    gk_bias_ = scope.tensor("gk_proj.1.bias", {key_width}, initializers::constant(0));
    const HeadGate gate = head_gate_named(config.gate);
    if (gate != HeadGate::none) g_proj_ = scope.matrix("g_proj.weight", value_width, d, in);
    o_proj_ = scope.matrix("o_proj.weight", d, value_width, residual_initializer(context));
    g_norm_ = GatedHeadNorm("g_norm.weight", options_.value_dim, gate,
                            epsilon_or_default(config.norm_epsilon, context), scope);
    state_ = states.add(outer_product_state_journal(options_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const auto [q, k, v, gk, g] = linear_maps(
        context, x, {q_proj_.map(), k_proj_.map(), v_proj_.map(), {&gk_down_}, {&g_proj_}});
    OuterProductStateInputs inputs;
    inputs.q = q_proj_.finish(input, q);
    inputs.k = k_proj_.finish(input, k);
    inputs.v = v_proj_.finish(input, v);
    const Tensor raw = linear(context, gk, gk_up_, gk_bias_);
    inputs.log_decay =
        scale(context, activate(context, raw, Activation::log_sigmoid), decay_scale_);
    const Tensor y = outer_product_state(context, inputs, options_, input.batch, state_);
    return linear(context, g_norm_.forward(context, y, g), o_proj_);
  }

  // Per number of the state: decay 1, write 2, read 2.
  double sequence_cost(double) const override {
    return 5.0 * static_cast<double>(options_.value_heads * options_.key_dim * options_.value_dim);
  }

 private:
  float decay_scale_;
  OuterProductStateOptions options_;
  ConvolvedProjection q_proj_, k_proj_, v_proj_;
  GatedHeadNorm g_norm_;
  JournalSlot state_;
  Weight gk_down_, gk_up_, g_proj_, o_proj_;
  Tensor gk_bias_;
};

}  // namespace

MixerType gla_mixer_type() {
  return mixer_type<GlaMixer>("gla", "linear attention with a decay per key channel",
                              "arXiv 2312.06635", R"({"type": "gla", "heads": 2})");
}

}  // namespace pronghorn
