// A feed-forward that uses everything that the seam of layers offers and no layer of the library
// does yet: a state, carried tensors, a loss, its place in the model.
#pragma once

#include <memory>
#include <string>

#include "layers/layer.h"
#include "ops/linear.h"
#include "ops/pointwise.h"
#include "ops/short_convolution.h"

namespace pronghorn::testing_support {

// The mean of all squares: [1].
inline Tensor mean_square(const Context& context, const Tensor& x) {
  double sum = 0;
  for (const float value : x.values()) sum += double{value} * double{value};
  const Tensor result = Tensor::full({1}, static_cast<float>(sum / static_cast<double>(x.size())));
  if (needs_gradient(context, result, x)) {
    context.tape->record([x, result] {
      if (!result.has_grad()) return;
      const float factor = 2 * *result.grad().data() / static_cast<float>(x.size());
      const Tensor gradient = x.clone();
      for (float& value : gradient.values()) value *= factor;
      x.give_grad(gradient);
    });
  }
  return result;
}

// h = up(shift(x)) + that of the first layer, times the sigmoid of that of the layer before;
// y = down(gelu(h)). shift mixes each channel of a token with that of the token before.
class TestShift final : public FeedForward {
 public:
  TestShift(const nlohmann::json& config, const LayerContext& context, const ParameterScope& scope,
            const StateScope& states)
      : first_(context.layer == 0), loss_(config.at("loss")) {
    const int64_t d = context.hidden_size, size = config.at("size");
    taps_ = scope.tensor("taps", {d, 2}, initializers::uniform(-1, 1));
    up_ = scope.matrix("up", size, d, initializers::normal(context.initializer_range));
    down_ = scope.matrix("down", d, size,
                         initializers::normal(context.initializer_range * context.residual_scale));
    rows_ = states.add(short_convolution_journal(d, 2));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    Carry& carry = input.carry;
    const Tensor shifted = short_convolution(context, x, taps_, {}, false, input.batch, rows_);
    Tensor hidden = linear(context, shifted, up_);
    if (first_) {
      carry.set("first_hidden", hidden);
    } else {
      hidden = add(context, hidden, carry.at("first_hidden"));
    }
    if (const Tensor* previous = carry.find("previous_hidden")) {
      hidden = multiply(context, hidden, sigmoid(context, *previous));
    }
    carry.set("previous_hidden", hidden);
    if (carry.wants_losses()) carry.add_loss("size", mean_square(context, hidden), loss_);
    return linear(context, gelu(context, hidden, true), down_);
  }

 private:
  bool first_;
  double loss_;
  JournalSlot rows_;
  Tensor taps_;
  Weight up_, down_;
};

inline void register_test_layers() {
  static const bool once = [] {
    FeedForwardType type;
    type.name = "test_shift";
    type.complete = [](ConfigReader reader, const LayerContext&) {
      nlohmann::json config = {{"type", reader.string("type")},
                               {"size", reader.integer("size", {}, 1, 1000)},
                               {"loss", reader.number("loss", 0.1)}};
      reader.finish();
      return config;
    };
    type.create = [](const nlohmann::json& config, const LayerContext& context,
                     const ParameterScope& scope,
                     const StateScope& states) -> std::unique_ptr<FeedForward> {
      return std::make_unique<TestShift>(config, context, scope, states);
    };
    register_feed_forward_type(type);
    return true;
  }();
  static_cast<void>(once);
}

}  // namespace pronghorn::testing_support
