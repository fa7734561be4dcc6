#include "layers/persistent_attention.h"

#include <algorithm>

#include "layers/toolbox.h"
#include "ops/linear_maps.h"
#include "ops/pointwise.h"

namespace pronghorn {

namespace {
constexpr int64_t kMaxPersistent = 1024;
}

void PersistentConfig::fields(ConfigFields& f, const HeadsConfig& heads) {
  f.check(heads.head_dim % 2 == 0, "head_dim", "{} is odd", heads.head_dim);
  f.integer("persistent", persistent, 4, 0, kMaxPersistent,
            "learned keys and values of each attention");
  f.number("rope_theta", rope_theta, kRopeTheta, 1.0, limits::kRopeTheta,
           "base of the rotary angles of attention");
}

void MemoryAndWindowConfig::fields(ConfigFields& f, const LayerContext& context) {
  memory.fields(f, context);
  attention.fields(f, memory.heads);
  f.integer("window", window, 64, 0, limits::kWindow, "of MAG's and MAL's attention; 0: all");
}

PersistentAttention::PersistentAttention(const MemoryAndWindowConfig& config,
                                         const LayerContext& context, const ParameterScope& scope,
                                         const StateScope& states)
    : persistent_(config.attention.persistent),
      angles_(rotary_angles(config.attention.rope_theta, config.memory.heads.head_dim)) {
  options_.heads = options_.kv_heads = config.memory.heads.heads;
  options_.head_dim = config.memory.heads.head_dim;
  options_.window = config.window;
  options_.angles = angles_;
  options_.prefix = context.prefix;
  const int64_t d = context.hidden_size;
  const Initializer in = projection_initializer(context);
  q_proj_ = scope.matrix("q_proj.weight", width(), d, in);
  k_proj_ = scope.matrix("k_proj.weight", width(), d, in);
  v_proj_ = scope.matrix("v_proj.weight", width(), d, in);
  if (persistent_ > 0) {
    persistent_keys_ = scope.tensor("persistent_keys", {persistent_, width()}, in);
    persistent_values_ = scope.tensor("persistent_values", {persistent_, width()}, in);
  }
  key_value_ = states.add(attention_journal(options_));
}

Tensor PersistentAttention::forward(const LayerInput& input, const Tensor& x) const {
  const Context& context = input.context;
  const CheckedBatch& batch = input.batch;
  const auto turned = [&](const Tensor& heads) {
    return rope(context, heads, batch.positions(), options_.head_dim, angles_);
  };
  const auto [queries, keys, v] = linear_maps(context, x, {{&q_proj_}, {&k_proj_}, {&v_proj_}});
  const Tensor q = turned(queries), k = turned(keys);
  if (persistent_ == 0) return attention(context, q, k, v, options_, batch, key_value_);
  const AttentionResult window = partial_attention(context, q, k, v, options_, batch, key_value_);
  return merge_attention(context, q, {&window, 1}, persistent_keys_, persistent_values_, options_);
}

double PersistentAttention::sequence_cost(double context) const {
  const double seen = rows_seen(options_, context);
  return 4 * static_cast<double>(width()) * (seen + static_cast<double>(persistent_));
}

}  // namespace pronghorn
