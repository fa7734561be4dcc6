// Gated short convolution of LFM2 (arXiv 2511.23404): three projections of the input, B, C and x; a
// causal convolution of B x, times C. Parameter names are those of the published checkpoints.
#include "layers/layers.h"
#include "layers/toolbox.h"
#include "ops/linear.h"
#include "ops/pointwise.h"
#include "ops/short_convolution.h"

namespace pronghorn {
namespace {

struct ShortConvConfig {
  int64_t conv_kernel = 0;
  bool bias = false;

  void fields(ConfigFields& f, const LayerContext&) {
    f.integer("conv_kernel", conv_kernel, 3, 1, limits::kTaps, "taps of the convolution");
    f.boolean("bias", bias, false, "on the projections and the convolution");
  }
};

class ShortConvMixer final : public Mixer {
 public:
  using Config = ShortConvConfig;

  ShortConvMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
                 const StateScope& states)
      : width_(context.hidden_size), taps_(config.conv_kernel) {
    in_proj_ = scope.matrix("in_proj.weight", 3 * width_, width_, projection_initializer(context));
    const Initializer taps = convolution_initializer(taps_);
    conv_weight_ = scope.tensor("conv.weight", {width_, taps_}, taps, Decay::yes);
    out_proj_ = scope.matrix("out_proj.weight", width_, width_, residual_initializer(context));
    if (config.bias) {
      const Initializer zero = initializers::constant(0);
      in_bias_ = scope.tensor("in_proj.bias", {3 * width_}, zero);
      conv_bias_ = scope.tensor("conv.bias", {width_}, taps);
      out_bias_ = scope.tensor("out_proj.bias", {width_}, zero);
    }
    rows_ = states.add(short_convolution_journal(width_, taps_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const Tensor all = linear(context, x, in_proj_, in_bias_);
    const Tensor gated =
        multiply(context, all.column_slice(0, width_), all.column_slice(2 * width_, width_));
    const Tensor mixed =
        short_convolution(context, gated, conv_weight_, conv_bias_, false, input.batch, rows_);
    return linear(context, multiply(context, all.column_slice(width_, width_), mixed), out_proj_,
                  out_bias_);
  }

  // Per channel: a multiply-add a tap, and the two gates.
  double sequence_cost(double) const override {
    return static_cast<double>(width_ * (2 * taps_ + 2));
  }

 private:
  int64_t width_, taps_;
  JournalSlot rows_;
  Weight in_proj_, out_proj_;
  Tensor in_bias_, out_bias_, conv_weight_, conv_bias_;
};

}  // namespace

MixerType short_conv_mixer_type() {
  return mixer_type<ShortConvMixer>("short_conv", "a short convolution between two gates",
                                    "arXiv 2511.23404", R"({"type": "short_conv"})");
}

}  // namespace pronghorn
