// Mamba layer (Gu and Dao, arXiv 2312.00752, figure 3): projection, short convolution, selective
// scan, output gate. Parameter names are those of the published checkpoints.
#include "layers/layers.h"
#include "layers/mamba_core.h"
#include "layers/toolbox.h"
#include "ops/linear.h"

namespace pronghorn {
namespace {

struct MambaConfig {
  double expand = 0;
  int64_t inner_size = 0;
  bool bias = false;
  MambaCoreConfig core;

  void fields(ConfigFields& f, const LayerContext& context) {
    f.hint("expand", expand, 2, limits::kLeastExpand, limits::kExpand,
           "only for the default of `inner_size`");
    const auto inner = static_cast<int64_t>(expand * static_cast<double>(context.hidden_size));
    f.integer("inner_size", inner_size, {inner, "expand x hidden_size"}, 1, limits::kWidth,
              "channels");
    f.boolean("bias", bias, false, "on the input and output projections");
    core.fields(f, context);
  }
};

class MambaMixer final : public Mixer {
 public:
  using Config = MambaConfig;

  MambaMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
             const StateScope& states)
      : inner_size_(config.inner_size), core_(config.core, inner_size_, context, scope, states) {
    const int64_t d = context.hidden_size;
    const Initializer zero = initializers::constant(0);
    in_proj_ = scope.matrix("in_proj.weight", 2 * inner_size_, d, projection_initializer(context));
    out_proj_ = scope.matrix("out_proj.weight", d, inner_size_, residual_initializer(context));
    if (config.bias) {
      in_bias_ = scope.tensor("in_proj.bias", {2 * inner_size_}, zero);
      out_bias_ = scope.tensor("out_proj.bias", {d}, zero);
    }
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Tensor xz = linear(input.context, x, in_proj_, in_bias_);
    const Tensor y = core_.forward(input, xz.column_slice(0, inner_size_),
                                   xz.column_slice(inner_size_, inner_size_));
    return linear(input.context, y, out_proj_, out_bias_);
  }

  double sequence_cost(double) const override { return core_.sequence_cost(); }

 private:
  int64_t inner_size_;
  MambaCore core_;
  Weight in_proj_, out_proj_;
  Tensor in_bias_, out_bias_;
};

}  // namespace

MixerType mamba_mixer_type() {
  return mixer_type<MambaMixer>("mamba", "selective state space model with a diagonal state (S6)",
                                "arXiv 2312.00752", R"({"type": "mamba"})");
}

}  // namespace pronghorn
