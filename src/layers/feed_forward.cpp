// Feed-forward layers: SwiGLU (Shazeer, arXiv 2002.05202) and the two-layer GELU network.
#include "layers/layers.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

// Widest layer accepted from a configuration: keeps products of sizes far from overflow.
constexpr int64_t kMaxWidth = 1 << 20;

// y = down(silu(gate x) * (up x))
class SwiGlu final : public FeedForward {
 public:
  SwiGlu(int64_t size, const LayerContext& context, const ParameterScope& scope)
      : gate_proj_(scope.matrix("gate_proj.weight", size, context.hidden_size,
                                initializers::normal(context.initializer_range))),
        up_proj_(scope.matrix("up_proj.weight", size, context.hidden_size,
                              initializers::normal(context.initializer_range))),
        down_proj_(scope.matrix(
            "down_proj.weight", context.hidden_size, size,
            initializers::normal(context.initializer_range * context.residual_scale))) {}

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const Tensor gate = linear(context, x, gate_proj_);
    const Tensor up = linear(context, x, up_proj_);
    return linear(context, swiglu(context, gate, up), down_proj_);
  }

 private:
  Weight gate_proj_, up_proj_, down_proj_;
};

nlohmann::json complete_swiglu(ConfigReader reader, const LayerContext&) {
  nlohmann::json config = {{"type", reader.string("type")},
                           {"size", reader.integer("size", {}, 1, kMaxWidth)}};
  reader.finish();
  return config;
}

// y = down(gelu(up x + b) ) + b
class Gelu final : public FeedForward {
 public:
  Gelu(const nlohmann::json& config, const LayerContext& context, const ParameterScope& scope)
      : tanh_approximation_(config.at("approximate") == "tanh"),
        up_proj_(scope.matrix("up_proj.weight", config.at("size").get<int64_t>(),
                              context.hidden_size,
                              initializers::normal(context.initializer_range))),
        down_proj_(scope.matrix(
            "down_proj.weight", context.hidden_size, config.at("size").get<int64_t>(),
            initializers::normal(context.initializer_range * context.residual_scale))) {
    if (config.at("bias").get<bool>()) {
      up_bias_ = scope.tensor("up_proj.bias", {up_proj_.out()}, initializers::constant(0));
      down_bias_ = scope.tensor("down_proj.bias", {down_proj_.out()}, initializers::constant(0));
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

nlohmann::json complete_gelu(ConfigReader reader, const LayerContext&) {
  nlohmann::json config = {{"type", reader.string("type")},
                           {"size", reader.integer("size", {}, 1, kMaxWidth)},
                           {"bias", reader.boolean("bias", false)},
                           {"approximate", reader.one_of("approximate", {"none", "tanh"}, "none")}};
  reader.finish();
  return config;
}

}  // namespace

FeedForwardType swiglu_type() {
  return {"swiglu", complete_swiglu,
          [](const nlohmann::json& config, const LayerContext& context, const ParameterScope& scope,
             const StateScope&) -> std::unique_ptr<FeedForward> {
            return std::make_unique<SwiGlu>(config.at("size").get<int64_t>(), context, scope);
          }};
}

FeedForwardType gelu_type() {
  return {"gelu", complete_gelu,
          [](const nlohmann::json& config, const LayerContext& context, const ParameterScope& scope,
             const StateScope&) -> std::unique_ptr<FeedForward> {
            return std::make_unique<Gelu>(config, context, scope);
          }};
}

}  // namespace pronghorn
