// Channel mixing of RWKV-7 (Peng et al., arXiv 2503.14456) and, with a gate, RWKV-6 (arXiv
// 2404.05892): a squared ReLU of rows that are mixed with the row before.
#include <cmath>

#include "layers/layers.h"
#include "layers/rwkv_parts.h"
#include "layers/toolbox.h"
#include "ops/linear.h"
#include "ops/pointwise.h"
#include "ops/token_shift.h"

namespace pronghorn {
namespace {

struct ChannelMixConfig {
  int64_t size = 0;
  bool receptance = false;

  void fields(ConfigFields& f, const LayerContext& context) {
    f.integer("size", size, {4 * context.hidden_size, "4 hidden_size"}, 1, limits::kWidth,
              "width inside");
    f.boolean("receptance", receptance, false, "a sigmoid gate on the output");
  }
};

class ChannelMix final : public FeedForward {
 public:
  using Config = ChannelMixConfig;

  ChannelMix(const Config& config, const LayerContext& context, const ParameterScope& scope,
             const StateScope& states) {
    const int64_t d = context.hidden_size;
    const double bound = 0.5 / std::sqrt(static_cast<double>(d));
    const Initializer in = initializers::uniform(-bound, bound);
    const double left = RwkvDepth(context).left;
    // Without the gate RWKV-7's, which shifts less in later layers.
    const double power = config.receptance ? left : std::pow(left, 4);
    mixes_.push_back(scope.tensor("x_k", {d}, rwkv_shift_initializer(d, power)));
    key_ = scope.matrix("key.weight", config.size, d, in);
    value_ = scope.matrix("value.weight", d, config.size, residual_initializer(context));
    if (config.receptance) {
      mixes_.push_back(scope.tensor("x_r", {d}, rwkv_shift_initializer(d, power)));
      receptance_ = scope.matrix("receptance.weight", d, d, in);
    }
    shift_ = states.add(token_shift_journal(d));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const auto mixed = token_shift(context, x, mixes_, input.batch, shift_);
    const Tensor inside =
        activate(context, linear(context, mixed[0], key_), Activation::relu_squared);
    const Tensor value = linear(context, inside, value_);
    if (mixes_.size() == 1) return value;
    return multiply(context, value, sigmoid(context, linear(context, mixed[1], receptance_)));
  }

 private:
  JournalSlot shift_;
  std::vector<Tensor> mixes_;  // of keys and, with the gate, of receptance
  Weight key_, value_, receptance_;
};

}  // namespace

FeedForwardType channel_mix_type() {
  return feed_forward_type<ChannelMix>("channel_mix", "token shift and a squared ReLU (RWKV)",
                                       "arXiv 2503.14456",
                                       R"({"type": "channel_mix", "size": 40})");
}

}  // namespace pronghorn
