#include "layers/toolbox.h"

#include <cmath>

#include "ops/pointwise.h"

namespace pronghorn {

void HeadsConfig::fields(ConfigFields& f, const LayerContext& context,
                         std::string_view heads_meaning, std::string_view head_dim_meaning) {
  f.integer("heads", heads, kRequired, 1, limits::kHeads, heads_meaning);
  f.check(f.has("head_dim") || context.hidden_size % heads == 0, "heads",
          "{} does not divide hidden_size {} (change one of them or give head_dim)", heads,
          context.hidden_size);
  f.integer("head_dim", head_dim, {context.hidden_size / heads, "hidden_size / heads"}, 1,
            limits::kHeadDim, head_dim_meaning);
}

void read_kv_heads(ConfigFields& f, int64_t heads, int64_t& kv_heads) {
  f.integer("kv_heads", kv_heads, {heads, "`heads`"}, 1, limits::kHeads,
            "key and value heads; divides `heads`");
  f.check(heads % kv_heads == 0, "kv_heads", "{} does not divide heads {}", kv_heads, heads);
}

void read_mini_batch(ConfigFields& f, int64_t& mini_batch) {
  f.integer("mini_batch", mini_batch, kExactStep, 1, kExactStep, "1, 2, 4, 8 or 16");
  f.check(kExactStep % mini_batch == 0, "mini_batch", "{} does not divide {}", mini_batch,
          kExactStep);
}

void TimeStepConfig::fields(ConfigFields& f) {
  f.number("time_step_min", minimum, minimum, limits::kLeastTimeStep, limits::kTimeStep,
           "smallest step size at the start");
  f.number("time_step_max", maximum, maximum, minimum, limits::kTimeStep,
           "largest step size at the start");
  f.number("time_step_floor", floor, floor, limits::kLeastTimeStep, limits::kTimeStep,
           "step sizes drawn below it start at it");
}

Initializer TimeStepConfig::bias() const {
  return initializers::inverse_softplus_log_uniform(minimum, maximum, floor);
}

Activation activation_named(std::string_view name) {
  return name == "silu"        ? Activation::silu
         : name == "gelu"      ? Activation::gelu
         : name == "gelu_tanh" ? Activation::gelu_tanh
         : name == "relu"      ? Activation::relu
         : name == "swoosh_r"  ? Activation::swoosh_r
         : name == "swoosh_l"  ? Activation::swoosh_l
                               : Activation::relu_squared;
}

Initializer convolution_initializer(int64_t taps) {
  const double bound = 1 / std::sqrt(static_cast<double>(taps));
  return initializers::uniform(-bound, bound);
}

Tensor scaled(const Context& context, const Tensor& x, float factor) {
  return factor == 1 ? x : scale(context, x, factor);
}

Initializer projection_initializer(const LayerContext& context) {
  return initializers::normal(context.initializer_range);
}

Initializer residual_initializer(const LayerContext& context) {
  return initializers::normal(context.initializer_range * context.residual_scale);
}

}  // namespace pronghorn
