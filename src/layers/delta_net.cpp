// DeltaNet layer (Yang et al., arXiv 2406.06484): q, k and v through short convolutions, unit keys
// and queries, a state that erases what a key held before it writes and never decays, a norm of
// heads. Parameter names are those of the flash-linear-attention checkpoints.
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

struct DeltaNetConfig {
  HeadsConfig heads;
  int64_t value_head_dim = 0, conv_kernel = 0;
  bool beta = true, gate = false, negative_eigenvalues = false;
  std::string activation;
  double norm_epsilon = 0;

  void fields(ConfigFields& f, const LayerContext& context) {
    heads.fields(f, context, "heads, each with a state", "of queries and keys");
    f.integer("value_head_dim", value_head_dim, {heads.head_dim, "`head_dim`"}, 1,
              2 * limits::kHeadDim, "of values");
    f.integer("conv_kernel", conv_kernel, kConvKernel, 0, limits::kTaps,
              "taps of the convolutions; 0: none");
    f.one_of("activation", activation, {"silu", "elu", "relu", "identity"}, "silu",
             "of queries and keys, before they are made units; `\"elu\"`: elu(x) + 1");
    f.boolean("beta", beta, true, "the write strength is learned; without it, it is 1");
    f.boolean("negative_eigenvalues", negative_eigenvalues, false,
              "the write strength goes up to 2, so that an erasure can turn the sign "
              "(arXiv 2411.12537)");
    f.check(beta || !negative_eigenvalues, "negative_eigenvalues", "needs a learned `beta`");
    f.boolean("gate", gate, false, "a SiLU gate on the output, after its norm");
    read_norm_epsilon(f, norm_epsilon, "of the norm of heads");
  }
};

class DeltaNetMixer final : public Mixer {
 public:
  using Config = DeltaNetConfig;

  DeltaNetMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
                const StateScope& states)
      : write_scale_(config.negative_eigenvalues ? 2.0f : 1.0f), activation_(config.activation) {
    options_.key_heads = options_.value_heads = config.heads.heads;
    options_.key_dim = config.heads.head_dim;
    options_.value_dim = config.value_head_dim;
    options_.query_scale = 1 / std::sqrt(static_cast<float>(options_.key_dim));
    options_.delta_rule = true;
    const int64_t key_width = options_.key_heads * options_.key_dim;
    const int64_t value_width = options_.value_heads * options_.value_dim;
    const int64_t d = context.hidden_size;
    const bool silu = activation_ == "silu";
    const auto project = [&](std::string_view name, int64_t width, bool with_silu) {
      return ConvolvedProjection(name, width, {config.conv_kernel, false, with_silu}, context,
                                 scope, states);
    };
    q_proj_ = project("q", key_width, silu);
    k_proj_ = project("k", key_width, silu);
    v_proj_ = project("v", value_width, true);
    const Initializer in = projection_initializer(context);
    if (config.beta) b_proj_ = scope.matrix("b_proj.weight", options_.value_heads, d, in);
    if (config.gate) g_proj_ = scope.matrix("g_proj.weight", value_width, d, in);
    o_proj_ = scope.matrix("o_proj.weight", d, value_width, residual_initializer(context));
    const float epsilon = epsilon_or_default(config.norm_epsilon, context);
    o_norm_ = GatedHeadNorm("o_norm.weight", options_.value_dim,
                            config.gate ? HeadGate::silu : HeadGate::none, epsilon, scope);
    state_ = states.add(outer_product_state_journal(options_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const auto [q, k, v, b, g] = linear_maps(
        context, x, {q_proj_.map(), k_proj_.map(), v_proj_.map(), {&b_proj_}, {&g_proj_}});
    const auto unit = [&](const ConvolvedProjection& projection, const Tensor& projected) {
      Tensor heads = projection.finish(input, projected);
      if (activation_ == "elu") heads = activate(context, heads, Activation::elu_plus_one);
      if (activation_ == "relu") heads = activate(context, heads, Activation::relu);
      return l2_normalize(context, heads, options_.key_dim, kUnitEpsilon);
    };
    OuterProductStateInputs inputs;
    inputs.q = unit(q_proj_, q);
    inputs.k = unit(k_proj_, k);
    inputs.v = v_proj_.finish(input, v);
    if (b.defined()) inputs.beta = scaled(context, sigmoid(context, b), write_scale_);
    const Tensor y = outer_product_state(context, inputs, options_, input.batch, state_);
    return linear(context, o_norm_.forward(context, y, g), o_proj_);
  }

  // Per number of the state: what the key held 2, write 2, read 2.
  double sequence_cost(double) const override {
    return 6.0 * static_cast<double>(options_.value_heads * options_.key_dim * options_.value_dim);
  }

 private:
  float write_scale_;
  std::string activation_;
  OuterProductStateOptions options_;
  ConvolvedProjection q_proj_, k_proj_, v_proj_;
  GatedHeadNorm o_norm_;
  JournalSlot state_;
  Weight b_proj_, g_proj_, o_proj_;
};

}  // namespace

MixerType delta_net_mixer_type() {
  return mixer_type<DeltaNetMixer>("delta_net",
                                   "delta rule: erases what a key held before it writes",
                                   "arXiv 2406.06484", R"({"type": "delta_net", "heads": 2})");
}

}  // namespace pronghorn
