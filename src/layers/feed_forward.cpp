// Feed-forward layers: SwiGLU (Shazeer, arXiv 2002.05202) and the two-layer GELU network.
#include "layers/layers.h"
#include "layers/toolbox.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

struct SwiGluConfig {
  int64_t size = 0;

  void fields(ConfigFields& f, const LayerContext&) {
    f.integer("size", size, kRequired, 1, limits::kWidth, "width inside");
  }
};

// y = down(silu(gate x) * (up x))
class SwiGlu final : public FeedForward {
 public:
  using Config = SwiGluConfig;

  SwiGlu(const Config& config, const LayerContext& context, const ParameterScope& scope,
         const StateScope&) {
    const int64_t d = context.hidden_size;
    const Initializer in = projection_initializer(context);
    gate_proj_ = scope.matrix("gate_proj.weight", config.size, d, in);
    up_proj_ = scope.matrix("up_proj.weight", config.size, d, in);
    down_proj_ = scope.matrix("down_proj.weight", d, config.size, residual_initializer(context));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const Tensor gate = linear(context, x, gate_proj_);
    const Tensor up = linear(context, x, up_proj_);
    return linear(context, swiglu(context, gate, up), down_proj_);
  }

 private:
  Weight gate_proj_, up_proj_, down_proj_;
};

struct GeluConfig {
  int64_t size = 0;
  bool bias = false;
  std::string approximate;

  void fields(ConfigFields& f, const LayerContext&) {
    f.integer("size", size, kRequired, 1, limits::kWidth, "width inside");
    f.boolean("bias", bias, false, "on both projections");
    f.one_of("approximate", approximate, {"none", "tanh"}, "none",
             "`\"tanh\"`: GELU by its tanh form");
  }
};

// y = down(gelu(up x + b)) + b
class Gelu final : public FeedForward {
 public:
  using Config = GeluConfig;

  Gelu(const Config& config, const LayerContext& context, const ParameterScope& scope,
       const StateScope&)
      : tanh_approximation_(config.approximate == "tanh") {
    const int64_t d = context.hidden_size;
    up_proj_ = scope.matrix("up_proj.weight", config.size, d, projection_initializer(context));
    down_proj_ = scope.matrix("down_proj.weight", d, config.size, residual_initializer(context));
    if (config.bias) {
      up_bias_ = scope.tensor("up_proj.bias", {config.size}, initializers::constant(0));
      down_bias_ = scope.tensor("down_proj.bias", {d}, initializers::constant(0));
    }
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const Tensor up = linear(context, x, up_proj_, up_bias_);
    return linear(context, gelu(context, up, tanh_approximation_), down_proj_, down_bias_);
  }

 private:
  bool tanh_approximation_;
  Weight up_proj_, down_proj_;
  Tensor up_bias_, down_bias_;
};

}  // namespace

FeedForwardType swiglu_type() {
  return feed_forward_type<SwiGlu>("swiglu", "gated by a SiLU", "arXiv 2002.05202",
                                   R"({"type": "swiglu", "size": 40})");
}

FeedForwardType gelu_type() {
  return feed_forward_type<Gelu>("gelu", "two layers with a GELU between", "arXiv 1606.08415",
                                 R"({"type": "gelu", "size": 36})");
}

}  // namespace pronghorn
