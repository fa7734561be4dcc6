// HGRN2 (Qin et al., arXiv 2404.07904): a gated linear RNN whose state is expanded by outer
// products. The key is what the decay leaves free, 1 - f, and decays have lower bounds that rise
// with depth, learned for all layers together. Parameter names are those of the
// flash-linear-attention checkpoints.
#include <cmath>

#include "layers/layers.h"
#include "layers/linear_parts.h"
#include "layers/toolbox.h"
#include "ops/gates.h"
#include "ops/linear.h"
#include "ops/linear_maps.h"
#include "ops/outer_product_state.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

struct Hgrn2Config {
  HeadsConfig heads;
  int64_t value_head_dim = 0;
  bool lower_bound = true;
  double norm_epsilon = 0;

  void fields(ConfigFields& f, const LayerContext& context) {
    heads.fields(f, context, "heads, each with a state", "of queries and keys");
    f.check(f.has("value_head_dim") || context.hidden_size % heads.heads == 0, "heads",
            "{} does not divide hidden_size {}", heads.heads, context.hidden_size);
    f.integer("value_head_dim", value_head_dim,
              {context.hidden_size / heads.heads, "hidden_size / heads"}, 1, 2 * limits::kHeadDim,
              "of values");
    f.boolean("lower_bound", lower_bound, true,
              "decays have lower bounds, which are learned and rise from layer to layer");
    read_norm_epsilon(f, norm_epsilon, "of the norm of the output");
  }
};

class Hgrn2Mixer final : public Mixer {
 public:
  using Config = Hgrn2Config;

  Hgrn2Mixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
             const StateScope& states)
      : bound_(config.lower_bound, config.heads.heads * config.heads.head_dim, context, scope) {
    options_.key_heads = options_.value_heads = config.heads.heads;
    options_.key_dim = config.heads.head_dim;
    options_.value_dim = config.value_head_dim;
    options_.query_scale = 1 / std::sqrt(static_cast<float>(options_.key_dim));
    options_.channel_decay = true;
    const int64_t key_width = options_.key_heads * options_.key_dim;
    const int64_t value_width = options_.value_heads * options_.value_dim;
    const int64_t d = context.hidden_size;
    const Initializer in = projection_initializer(context);
    q_proj_ = scope.matrix("q_proj.weight", key_width, d, in);
    f_proj_ = scope.matrix("f_proj.weight", key_width, d, in);
    i_proj_ = scope.matrix("i_proj.weight", value_width, d, in);
    o_proj_ = scope.matrix("o_proj.weight", d, value_width, residual_initializer(context));
    g_norm_ = GatedHeadNorm("g_norm.weight", value_width, HeadGate::none,
                            epsilon_or_default(config.norm_epsilon, context), scope);
    state_ = states.add(outer_product_state_journal(options_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const auto [q, f, i] = linear_maps(context, x, {{&q_proj_}, {&f_proj_}, {&i_proj_}});
    OuterProductStateInputs inputs;
    inputs.q = activate(context, q, Activation::silu);
    const auto [log_decay, k] = lower_bounded_gate(context, f, bound_.value(context));
    inputs.k = k;
    inputs.log_decay = log_decay;
    inputs.v = i;
    const Tensor y = outer_product_state(context, inputs, options_, input.batch, state_);
    return linear(context, g_norm_.forward(context, y, {}), o_proj_);
  }

  // Per number of the state: decay 1, write 2, read 2.
  double sequence_cost(double) const override {
    return 5.0 * static_cast<double>(options_.value_heads * options_.key_dim * options_.value_dim);
  }

 private:
  RisingBound bound_;
  OuterProductStateOptions options_;
  GatedHeadNorm g_norm_;
  JournalSlot state_;
  Weight q_proj_, f_proj_, i_proj_, o_proj_;
};

}  // namespace

MixerType hgrn2_mixer_type() {
  return mixer_type<Hgrn2Mixer>("hgrn2", "gated linear RNN with an outer-product state",
                                "arXiv 2404.07904", R"({"type": "hgrn2", "heads": 2})");
}

}  // namespace pronghorn
