// Feed-forward layers: gated (Shazeer, arXiv 2002.05202) and plain networks of two layers, with any
// activation; SwiGLU and GELU by names of their own.
#include "layers/layers.h"
#include "layers/projection.h"
#include "layers/toolbox.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

struct FeedForwardConfig {
  int64_t size = 0;
  Activation activation = Activation::silu;
  bool bias = false, norm = false;
  double gate_scale = 1, output_scale = 1;
  int64_t adapter_rank = 0;
  ProductBits bits = ProductBits::whole;
};

void read_size(ConfigFields& f, int64_t& size) {
  f.integer("size", size, kRequired, 1, limits::kWidth, "width inside");
}

// What "glu" and "mlp" have besides.
void read_general(ConfigFields& f, FeedForwardConfig& config) {
  std::string name;
  f.one_of("activation", name,
           {"silu", "gelu", "gelu_tanh", "relu", "relu2", "swoosh_r", "swoosh_l"}, kRequired,
           "`\"silu\"`, `\"gelu\"`, `\"gelu_tanh\"`, `\"relu\"`, `\"relu2\"`, its square, or "
           "Zipformer's `\"swoosh_r\"` and `\"swoosh_l\"`");
  config.activation = activation_named(name);
  f.boolean("bias", config.bias, false, "on all projections");
  f.boolean("norm", config.norm, false, "RMSNorm before the last projection");
  config.bits = read_product_bits(f);
}

struct SwiGluConfig : FeedForwardConfig {
  void fields(ConfigFields& f, const LayerContext&) { read_size(f, size); }
};

struct GeluConfig : FeedForwardConfig {
  void fields(ConfigFields& f, const LayerContext&) {
    read_size(f, size);
    f.boolean("bias", bias, false, "on all projections");
    std::string approximate;
    f.one_of("approximate", approximate, {"none", "tanh"}, "none",
             "`\"tanh\"`: GELU by its tanh form");
    activation = approximate == "tanh" ? Activation::gelu_tanh : Activation::gelu;
  }
};

struct GeneralConfig : FeedForwardConfig {
  void fields(ConfigFields& f, const LayerContext&) {
    read_size(f, size);
    read_general(f, *this);
  }
};

struct GluConfig : GeneralConfig {
  void fields(ConfigFields& f, const LayerContext& context) {
    constexpr double kMost = 1e4;
    GeneralConfig::fields(f, context);
    f.number("gate_scale", gate_scale, 1.0, -kMost, kMost, "factor on the gate");
    f.number("output_scale", output_scale, 1.0, -kMost, kMost, "factor on the output");
    f.integer("adapter_rank", adapter_rank, 0, 0, limits::kWidth,
              "rank of a change of the gate and value projections that is never shared between "
              "layers; 0: none");
    f.check(adapter_rank == 0 || bits == ProductBits::whole, "adapter_rank",
            "{} beside products in few bits", adapter_rank);
  }
};

// y = down(norm(activation(gate x) * (up x))), or without a gate y = down(norm(activation(up x))).
template <class ConfigType, bool kGated>
class TwoLayers final : public FeedForward {
 public:
  using Config = ConfigType;

  TwoLayers(const Config& config, const LayerContext& context, const ParameterScope& scope,
            const StateScope&)
      : activation_(config.activation),
        norm_epsilon_(context.norm_epsilon),
        gate_scale_(static_cast<float>(config.gate_scale)),
        output_scale_(static_cast<float>(config.output_scale)),
        project_(config.bits) {
    const int64_t d = context.hidden_size;
    const Initializer in = projection_initializer(context), zero = initializers::constant(0);
    if (kGated) gate_proj_ = scope.matrix("gate_proj.weight", config.size, d, in);
    up_proj_ = scope.matrix("up_proj.weight", config.size, d, in);
    down_proj_ = scope.matrix("down_proj.weight", d, config.size, residual_initializer(context));
    if (config.bias) {
      if (kGated) gate_bias_ = scope.tensor("gate_proj.bias", {config.size}, zero);
      up_bias_ = scope.tensor("up_proj.bias", {config.size}, zero);
      down_bias_ = scope.tensor("down_proj.bias", {d}, zero);
    }
    if (config.adapter_rank > 0) {
      const ParameterScope own = scope.own();
      adapter_ = own.matrix("adapter.0.weight", config.adapter_rank, d, in);
      gate_adapter_ = own.matrix("gate_adapter.1.weight", config.size, config.adapter_rank, in);
      up_adapter_ = own.matrix("up_adapter.1.weight", config.size, config.adapter_rank, in);
    }
    if (config.norm) {
      norm_ = scope.tensor("norm.weight", {config.size}, initializers::constant(1));
    }
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const Tensor in = project_.input(context, x);
    Tensor inside;
    if (kGated) {
      auto [gate, up] = project_(context, in, {{&gate_proj_, &gate_bias_}, {&up_proj_, &up_bias_}});
      if (adapter_.defined()) {
        const Tensor narrow = linear(context, in, adapter_);
        gate = add(context, gate, linear(context, narrow, gate_adapter_));
        up = add(context, up, linear(context, narrow, up_adapter_));
      }
      inside = gated(context, scaled(context, gate, gate_scale_), up, activation_);
    } else {
      inside = activate(context, project_(context, in, up_proj_, up_bias_), activation_);
    }
    if (norm_.defined()) inside = rms_norm(context, inside, norm_, norm_epsilon_);
    const Tensor out = project_(context, project_.input(context, inside), down_proj_, down_bias_);
    return scaled(context, out, output_scale_);
  }

 private:
  Activation activation_;
  float norm_epsilon_, gate_scale_, output_scale_;
  Projector project_;
  Weight gate_proj_, up_proj_, down_proj_;
  Weight adapter_, gate_adapter_, up_adapter_;
  Tensor gate_bias_, up_bias_, down_bias_, norm_;
};

}  // namespace

FeedForwardType swiglu_type() {
  return feed_forward_type<TwoLayers<SwiGluConfig, true>>(
      "swiglu", "gated by a SiLU", "arXiv 2002.05202", R"({"type": "swiglu", "size": 40})");
}

FeedForwardType gelu_type() {
  return feed_forward_type<TwoLayers<GeluConfig, false>>("gelu", "two layers with a GELU between",
                                                         "arXiv 1606.08415",
                                                         R"({"type": "gelu", "size": 36})");
}

FeedForwardType glu_type() {
  return feed_forward_type<TwoLayers<GluConfig, true>>(
      "glu", "gated by any activation", "arXiv 2002.05202",
      R"({"type": "glu", "size": 40, "activation": "gelu_tanh"})");
}

FeedForwardType mlp_type() {
  return feed_forward_type<TwoLayers<GeneralConfig, false>>(
      "mlp", "two layers with any activation between", "arXiv 2109.08668",
      R"({"type": "mlp", "size": 36, "activation": "relu2"})");
}

}  // namespace pronghorn
