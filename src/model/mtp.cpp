#include "model/mtp.h"

#include <array>

#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

Norm make_norm(const ModelConfig& model, const ParameterScope& scope) {
  return {scope, model.norm_style(), model.hidden_size};
}

}  // namespace

MtpHead::MtpHead(const ModelConfig& model, const LayerContext& context, const ParameterScope& scope)
    : hidden_norm_(make_norm(model, scope.child("hidden_norm"))),
      embedding_norm_(make_norm(model, scope.child("embedding_norm"))),
      projection_(scope.matrix("projection.weight", model.hidden_size, 2 * model.hidden_size,
                               initializers::normal(model.initializer_range))),
      // Its journals are the only layer of a state of its own.
      block_(model.blocks.at(model.mtp_block()), model, context, scope.child("block"), 0),
      // What it gives is scored as what the model gives.
      norm_(scope.child("norm"), model.norm_style(), model.hidden_size,
            static_cast<float>(model.logit_scale)) {}

Tensor MtpHead::forward(const LayerInput& input, const Tensor& hidden,
                        const Tensor& embeddings) const {
  const Context& context = input.context;
  const std::array<Tensor, 2> parts = {hidden_norm_.forward(context, hidden),
                                       embedding_norm_.forward(context, embeddings)};
  const Tensor x = linear(context, concatenate_columns(context, parts), projection_);
  return normalized(norm_, context, block_.forward(input, {x, {}}));
}

}  // namespace pronghorn
