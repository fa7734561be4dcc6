#include "layers/log_linear.h"

#include "layers/toolbox.h"
#include "ops/gates.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {

void LevelsConfig::fields(ConfigFields& f) {
  constexpr int64_t kMostLevels = 32, kMostBucket = 1 << 14;
  f.integer("levels", levels, 0, 0, kMostLevels,
            "states of log-linear attention, in which buckets of tokens double with age; 0: one "
            "state for all");
  f.check(levels != 1, "levels", "1 is neither one state nor a hierarchy");
  f.integer("bucket", bucket, 1, 1, kMostBucket, "tokens of the smallest buckets of `levels`");
}

LeveledState::LeveledState(const LevelsConfig& config, const OuterProductStateOptions& options,
                           const LayerContext& context, const ParameterScope& scope,
                           const StateScope& states)
    : options_{options, config.levels, config.bucket} {
  if (config.levels == 0) {
    slots_.push_back(states.add(outer_product_state_journal(options)));
    return;
  }
  const int64_t weights = config.levels * options.value_heads;
  l_proj_ =
      scope.matrix("l_proj.weight", weights, context.hidden_size, projection_initializer(context));
  L_ = scope.tensor("L", {weights}, initializers::constant(1));
  for (JournalShape& shape : log_linear_state_journals(options_)) {
    slots_.push_back(states.add(std::move(shape)));
  }
}

Tensor LeveledState::forward(const LayerInput& input, const Tensor& x,
                             const OuterProductStateInputs& inputs) const {
  const Context& context = input.context;
  if (!L_.defined()) {
    return outer_product_state(context, inputs, options_.state, input.batch, slots_.front());
  }
  const Tensor raw = scale_columns(context, linear(context, x, l_proj_), L_);
  const Tensor weights = activate(context, raw, Activation::softplus);
  return log_linear_state(context, inputs, weights, options_, input.batch, slots_);
}

}  // namespace pronghorn
