#include "layers/persistent_attention.h"

#include <algorithm>

#include "base/error.h"
#include "layers/neural_memory.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {

PersistentAttention::PersistentAttention(const nlohmann::json& config, const LayerContext& context,
                                         const ParameterScope& scope, const StateScope& states)
    : persistent_(config.at("persistent")), rope_theta_(config.at("rope_theta")) {
  options_.heads = options_.kv_heads = config.at("heads");
  options_.head_dim = config.at("head_dim");
  options_.window = config.at("window");
  const int64_t d = context.hidden_size;
  const Initializer in = initializers::normal(context.initializer_range);
  q_proj_ = scope.matrix("q_proj.weight", width(), d, in);
  k_proj_ = scope.matrix("k_proj.weight", width(), d, in);
  v_proj_ = scope.matrix("v_proj.weight", width(), d, in);
  if (persistent_ > 0) {
    const Initializer learned = initializers::normal(context.initializer_range);
    persistent_keys_ = scope.tensor("persistent_keys", {persistent_, width()}, learned);
    persistent_values_ = scope.tensor("persistent_values", {persistent_, width()}, learned);
  }
  key_value_ = states.add(attention_journal(options_));
}

Tensor PersistentAttention::forward(const LayerInput& input, const Tensor& x) const {
  const Context& context = input.context;
  const CheckedBatch& batch = input.batch;
  const auto turned = [&](const Weight& projection) {
    return rope(context, linear(context, x, projection), batch.positions(), options_.head_dim,
                options_.head_dim, rope_theta_);
  };
  const Tensor q = turned(q_proj_), k = turned(k_proj_), v = linear(context, x, v_proj_);
  if (persistent_ == 0) return attention(context, q, k, v, options_, batch, key_value_);
  const AttentionResult window = partial_attention(context, q, k, v, options_, batch, key_value_);
  return merge_attention(context, q, {&window, 1}, persistent_keys_, persistent_values_, options_);
}

double PersistentAttention::sequence_cost(double context) const {
  const double seen =
      options_.window > 0 ? std::min(context, static_cast<double>(options_.window)) : context;
  return 4 * static_cast<double>(width()) * (seen + static_cast<double>(persistent_));
}

void complete_persistent_memory(ConfigReader& reader, nlohmann::json& config) {
  const int64_t head_dim = config.at("head_dim");
  require(head_dim % 2 == 0, reader.path("head_dim"), "{} is odd", head_dim);
  config["persistent"] = reader.integer("persistent", 4, 0, 1024);
  config["rope_theta"] = reader.number("rope_theta", 10000.0, 1.0, 1e12);
}

nlohmann::json complete_memory_and_window(ConfigReader& reader, const LayerContext& context) {
  nlohmann::json config = {{"type", reader.string("type")}};
  complete_neural_memory(reader, context, config);
  complete_persistent_memory(reader, config);
  config["window"] = reader.integer("window", 64, 0);
  return config;
}

}  // namespace pronghorn
