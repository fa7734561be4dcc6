#include "layers/indexer.h"

#include <algorithm>
#include <cmath>

#include "layers/toolbox.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

constexpr float kNormEpsilon = 1e-6f;

}  // namespace

void IndexerConfig::fields(ConfigFields& f, const RopeConfig* rope) {
  constexpr int64_t kMostSteps = int64_t{1} << 40, kMostKeys = int64_t{1} << 30;
  constexpr double kMostLoss = 1e4;
  f.integer("top", top, 2048, 1, kMostKeys, "tokens that a token looks at");
  f.integer("index_heads", heads, 4, 1, limits::kHeads, "heads of the indexer, which chooses them");
  const int64_t turned = rope == nullptr ? 1 : rope->rotary_dim;
  f.integer("index_dim", head_dim, {std::max<int64_t>(32, turned), "32, or what is turned"}, turned,
            limits::kHeadDim, "width of these heads; the first channels have rotary positions");
  f.boolean("index_interleaved", interleaved, false,
            "pairs of these positions are neighbouring channels");
  f.number("index_loss", loss, 1.0, 0, kMostLoss,
           "weight of the loss from which the indexer alone learns");
  f.integer("dense_steps", warmup, 0, 0, kMostSteps,
            "first steps of a training in which tokens look at all before them");
}

Indexer::Indexer(const IndexerConfig& config, int64_t query_size, const RopeConfig* rope,
                 const LayerContext& context, const ParameterScope& scope, const StateScope& states)
    : options_{config.heads, config.head_dim, config.top},
      warmup_(config.warmup),
      loss_(config.loss) {
  if (rope != nullptr) {
    angles_ = rotary_angles(rope->theta, rope->rotary_dim, rope->scaling, config.interleaved);
  }
  const Initializer in = projection_initializer(context);
  const int64_t d = context.hidden_size;
  wq_b_ = scope.matrix("wq_b.weight", config.heads * config.head_dim, query_size, in);
  wk_ = scope.matrix("wk.weight", config.head_dim, d, in);
  k_norm_ = scope.tensor("k_norm.weight", {config.head_dim}, initializers::constant(1));
  k_norm_bias_ = scope.tensor("k_norm.bias", {config.head_dim}, initializers::constant(0));
  weights_proj_ = scope.matrix("weights_proj.weight", config.heads, d, in);
  keys_ = states.add(indexer_journal(options_));
}

bool Indexer::chooses(const Context& context) const {
  return context.tape == nullptr || context.training_step.value_or(warmup_) >= warmup_;
}

IndexerInputs Indexer::project(const LayerInput& input, const Tensor& x, const Tensor& from) const {
  // In f32 always: a choice must not depend on how products are rounded or cut.
  Context exact = input.context;
  exact.precision = Precision::f32;
  exact.exact = true;
  const Tensor rows = x.detach(), queries = from.detach();
  IndexerInputs inputs;
  inputs.q = turned(input, linear(exact, queries, wq_b_), options_.head_dim, angles_);
  inputs.k = turned(
      input, layer_norm(exact, linear(exact, rows, wk_), k_norm_, k_norm_bias_, kNormEpsilon),
      options_.head_dim, angles_);
  const auto numbers = static_cast<float>(options_.heads * options_.head_dim);
  inputs.weights = scaled(exact, linear(exact, rows, weights_proj_), 1 / std::sqrt(numbers));
  return inputs;
}

void Indexer::learn(const LayerInput& input, const IndexerInputs& inputs,
                    const IndexerTeacher& teacher) const {
  if (loss_ == 0 || !input.carry.wants_losses() || input.context.tape == nullptr) return;
  input.carry.add_loss("indexer",
                       indexer_loss(input.context, inputs, options_, teacher, input.batch), loss_);
}

}  // namespace pronghorn
