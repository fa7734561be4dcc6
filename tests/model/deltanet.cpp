// DeltaNet layer (Yang et al., arXiv 2406.06484), without its short convolutions: unit keys and
// queries, a state that erases what a key held before it writes.
#include <cmath>

#include "layers/layers.h"
#include "layers/toolbox.h"
#include "ops/linear.h"
#include "ops/outer_product_state.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

struct DeltaNetConfig {
  HeadsConfig heads;

  void fields(ConfigFields& f, const LayerContext& context) {
    heads.fields(f, context, "heads, each with a state", "width of keys, queries and values");
  }
};

class DeltaNetMixer final : public Mixer {
 public:
  using Config = DeltaNetConfig;

  DeltaNetMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
                const StateScope& states) {
    options_.key_heads = options_.value_heads = config.heads.heads;
    options_.key_dim = options_.value_dim = config.heads.head_dim;
    options_.query_scale = 1 / std::sqrt(static_cast<float>(options_.key_dim));
    options_.delta_rule = true;
    const int64_t d = context.hidden_size, width = options_.value_heads * options_.value_dim;
    const Initializer in = projection_initializer(context);
    q_proj_ = scope.matrix("q_proj.weight", width, d, in);
    k_proj_ = scope.matrix("k_proj.weight", width, d, in);
    v_proj_ = scope.matrix("v_proj.weight", width, d, in);
    b_proj_ = scope.matrix("b_proj.weight", options_.value_heads, d, in);
    o_proj_ = scope.matrix("o_proj.weight", d, width, residual_initializer(context));
    state_ = states.add(outer_product_state_journal(options_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const auto unit = [&](const Weight& projection) {
      return l2_normalize(context, linear(context, x, projection), options_.key_dim, kUnitEpsilon);
    };
    OuterProductStateInputs inputs;
    inputs.q = unit(q_proj_);
    inputs.k = unit(k_proj_);
    inputs.v = linear(context, x, v_proj_);
    inputs.beta = sigmoid(context, linear(context, x, b_proj_));
    return linear(context, outer_product_state(context, inputs, options_, input.batch, state_),
                  o_proj_);
  }

  // Per number of the state: what the key held 2, write 2, read 2.
  double sequence_cost(double) const override {
    return 6.0 * static_cast<double>(options_.value_heads * options_.key_dim * options_.value_dim);
  }

 private:
  OuterProductStateOptions options_;
  JournalSlot state_;
  Weight q_proj_, k_proj_, v_proj_, b_proj_, o_proj_;
};

}  // namespace

MixerType deltanet_mixer_type() {
  return mixer_type<DeltaNetMixer>("deltanet",
                                   "delta rule: erases what a key held before it writes",
                                   "arXiv 2406.06484", R"({"type": "deltanet", "heads": 2})");
}

}  // namespace pronghorn
