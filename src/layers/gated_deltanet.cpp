// Gated DeltaNet layer (Yang, Kautz and Hatamizadeh, arXiv 2412.06464): q, k and v through short
// convolutions, unit keys and queries, a state that decays and erases before it writes, a gated
// norm. Parameter names are those of the flash-linear-attention checkpoints.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "layers/layers.h"
#include "layers/linear_parts.h"
#include "layers/log_linear.h"
#include "layers/toolbox.h"
#include "ops/linear.h"
#include "ops/linear_maps.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

struct GatedDeltaNetConfig {
  HeadsConfig heads;
  LevelsConfig levels;
  int64_t value_heads = 0, value_head_dim = 0, conv_kernel = 0;
  bool negative_eigenvalues = false;
  double norm_epsilon = 0;
  std::string output_order;

  void fields(ConfigFields& f, const LayerContext& context) {
    heads.fields(f, context, "query and key heads", "of queries and keys");
    read_value_heads(f, heads.heads, value_heads);
    f.integer("value_head_dim", value_head_dim, {heads.head_dim, "`head_dim`"}, 1,
              2 * limits::kHeadDim, "of values");
    f.integer("conv_kernel", conv_kernel, kConvKernel, 1, limits::kTaps,
              "taps of the convolutions");
    f.boolean("negative_eigenvalues", negative_eigenvalues, false,
              "the write strength goes up to 2, so that an erasure can turn the sign "
              "(arXiv 2411.12537)");
    read_norm_epsilon(f, norm_epsilon, "of the gated norm");
    f.one_of("output_order", output_order, {"grouped", "dealt"}, "grouped",
             "in which the output projection takes value heads: those of a key head together, or "
             "the first of every key head, then the second (`\"dealt\"`)");
    levels.fields(f);
  }
};

class GatedDeltaNetMixer final : public Mixer {
 public:
  using Config = GatedDeltaNetConfig;

  GatedDeltaNetMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
                     const StateScope& states)
      : write_scale_(config.negative_eigenvalues ? 2.0f : 1.0f),
        dealt_(config.output_order == "dealt") {
    options_.key_heads = config.heads.heads;
    options_.value_heads = config.value_heads;
    options_.key_dim = config.heads.head_dim;
    options_.value_dim = config.value_head_dim;
    options_.query_scale = 1 / std::sqrt(static_cast<float>(options_.key_dim));
    options_.delta_rule = true;
    const int64_t key_width = options_.key_heads * options_.key_dim;
    value_width_ = options_.value_heads * options_.value_dim;

    const ConvolvedProjection::Options convolved = {.conv_kernel = config.conv_kernel};
    const auto project = [&](std::string_view name, int64_t width) {
      return ConvolvedProjection(name, width, convolved, context, scope, states);
    };
    q_proj_ = project("q", key_width);
    k_proj_ = project("k", key_width);
    v_proj_ = project("v", value_width_);
    const int64_t d = context.hidden_size;
    const Initializer in = projection_initializer(context);
    a_proj_ = scope.matrix("a_proj.weight", options_.value_heads, d, in);
    b_proj_ = scope.matrix("b_proj.weight", options_.value_heads, d, in);
    g_proj_ = scope.matrix("g_proj.weight", value_width_, d, in);
    o_proj_ = scope.matrix("o_proj.weight", d, value_width_, residual_initializer(context));
    // A uniform in (0, 16]; dt as Mamba's.
    A_log_ = scope.tensor("A_log", {options_.value_heads}, [](Random& random, int64_t) {
      return static_cast<float>(std::log(16 * (1 - random.uniform())));
    });
    dt_bias_ = scope.tensor("dt_bias", {options_.value_heads}, TimeStepConfig().bias());
    o_norm_ = GatedHeadNorm("o_norm.weight", options_.value_dim, HeadGate::silu,
                            epsilon_or_default(config.norm_epsilon, context), scope);
    state_ = LeveledState(config.levels, options_, context, scope, states);
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const auto unit = [&](const ConvolvedProjection& projection, const Tensor& projected) {
      return l2_normalize(context, projection.finish(input, projected), options_.key_dim,
                          kUnitEpsilon);
    };
    const auto [q, k, v, a, b, g] = linear_maps(
        context, x,
        {q_proj_.map(), k_proj_.map(), v_proj_.map(), {&a_proj_}, {&b_proj_}, {&g_proj_}});
    OuterProductStateInputs inputs;
    inputs.q = unit(q_proj_, q);
    inputs.k = unit(k_proj_, k);
    inputs.v = v_proj_.finish(input, v);
    inputs.log_decay =
        decay_gate(context, a, dt_bias_, A_log_, 0, std::numeric_limits<float>::infinity()).second;
    inputs.beta = scaled(context, sigmoid(context, b), write_scale_);
    const Tensor y = state_.forward(input, x, inputs);
    const Tensor normed = o_norm_.forward(context, y, g);
    return linear(context, dealt_ ? dealt(context, normed) : normed, o_proj_);
  }

  // Per number of the state: decay 1, what the key held 2, write 2, read 2.
  double sequence_cost(double) const override {
    return 7.0 * static_cast<double>(value_width_ * options_.key_dim * state_.count());
  }

 private:
  Tensor dealt(const Context& context, const Tensor& heads) const {
    const int64_t each = options_.value_heads / options_.key_heads;
    std::vector<Tensor> parts;
    for (int64_t i = 0; i < options_.value_heads; ++i) {
      const int64_t head = i % options_.key_heads * each + i / options_.key_heads;
      parts.push_back(heads.column_slice(head * options_.value_dim, options_.value_dim));
    }
    return concatenate_columns(context, parts);
  }

  int64_t value_width_ = 0;
  float write_scale_;
  bool dealt_;
  OuterProductStateOptions options_;
  ConvolvedProjection q_proj_, k_proj_, v_proj_;
  GatedHeadNorm o_norm_;
  LeveledState state_;
  Weight a_proj_, b_proj_, g_proj_, o_proj_;
  Tensor A_log_, dt_bias_;
};

}  // namespace

MixerType gated_deltanet_mixer_type() {
  return mixer_type<GatedDeltaNetMixer>(
      "gated_deltanet", "delta rule with a decay: erases what a key held before it writes",
      "arXiv 2412.06464", R"({"type": "gated_deltanet", "heads": 2})");
}

}  // namespace pronghorn
