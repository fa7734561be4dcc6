#include "model/side.h"

#include <array>

#include "layers/toolbox.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {

Side::Side(const SideConfig& config, const ModelConfig& model, LayerContext context,
           const ParameterScope& scope, const StateScope& states)
    : norm_(scope.child("norm"), model.norm_style(), 2 * model.hidden_size),
      ffn_norm_(scope.child("ffn_norm"), model.norm_style(), model.hidden_size),
      feed_forward_(
          find_feed_forward_type(config.feed_forward.at("type").get<std::string>(), "side")
              .create(config.feed_forward, context, scope.child("ffn"), states)),
      linear_(scope.own().matrix("linear.weight", model.hidden_size, model.hidden_size,
                                 projection_initializer(context))) {
  context.input_size = 2 * model.hidden_size;
  mixer_ = find_mixer_type(config.mixer.at("type").get<std::string>(), "side")
               .create(config.mixer, context, scope.child("mixer"), states);
}

Tensor Side::forward(const LayerInput& input, const Tensor& x) const {
  const Context& context = input.context;
  const std::array<Tensor, 2> parts = {x, input.carry.at(kEmbeddings)};
  const Tensor both = norm_.forward(context, concatenate_columns(context, parts));
  const Tensor seen = ffn_norm_.forward(context, mixer_->forward(input, both));
  return linear(context, feed_forward_->forward(input, seen), linear_);
}

double Side::sequence_cost(double context) const {
  return mixer_->sequence_cost(context) + feed_forward_->sequence_cost(context);
}

}  // namespace pronghorn
