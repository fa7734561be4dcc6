// A feed-forward that uses everything that the seam of layers offers and no layer of the library
// does yet: a state, carried tensors, a loss, its place in the model.
#pragma once

#include "layers/layers.h"
#include "layers/toolbox.h"
#include "ops/linear.h"
#include "ops/pointwise.h"
#include "ops/short_convolution.h"

namespace pronghorn::testing_support {

// The mean of all squares: [1].
inline Tensor mean_square(const Context& context, const Tensor& x) {
  double sum = 0;
  for (const float value : x.read()) sum += double{value} * double{value};
  const Tensor result = Tensor::full({1}, static_cast<float>(sum / static_cast<double>(x.size())));
  if (needs_gradient(context, result, x)) {
    context.tape->record([x, result] {
      if (!result.has_grad()) return;
      const float factor = 2 * result.grad().read().front() / static_cast<float>(x.size());
      PooledVector<float> gradient = x.read();
      for (float& value : gradient) value *= factor;
      x.give_grad(Tensor::from(gradient, x.shape()));
    });
  }
  return result;
}

// h = up(shift(x)) + that of the first layer, times the sigmoid of that of the layer before;
// y = down(gelu(h)). shift mixes each channel of a token with that of the token before.
struct TestShiftConfig {
  int64_t size = 0;
  double loss = 0;

  void fields(ConfigFields& f, const LayerContext&) {
    f.integer("size", size, kRequired, 1, 1000, "width inside");
    f.number("loss", loss, 0.1, 0, 10, "weight of the loss");
  }
};

class TestShift final : public FeedForward {
 public:
  using Config = TestShiftConfig;

  TestShift(const Config& config, const LayerContext& context, const ParameterScope& scope,
            const StateScope& states)
      : first_(context.layer == 0), loss_(config.loss) {
    const int64_t d = context.hidden_size;
    taps_ = scope.tensor("taps", {d, 2}, initializers::uniform(-1, 1));
    up_ = scope.matrix("up", config.size, d, projection_initializer(context));
    down_ = scope.matrix("down", d, config.size, residual_initializer(context));
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
    register_feed_forward_type(feed_forward_type<TestShift>(
        "test_shift", "a token shift", "none", R"({"type": "test_shift", "size": 20})"));
    return true;
  }();
  static_cast<void>(once);
}

}  // namespace pronghorn::testing_support
