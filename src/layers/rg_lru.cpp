// The recurrent block of Hawk and Griffin (De et al., arXiv 2402.19427, sections 2.3 and 2.4): a
// branch through a short convolution and the RG-LRU, and one through a GELU that gates it.
// Parameter names are those of RecurrentGemma's checkpoints.
#include <cmath>
#include <string>
#include <vector>

#include "layers/layers.h"
#include "layers/toolbox.h"
#include "ops/diagonal_scan.h"
#include "ops/linear.h"
#include "ops/pointwise.h"
#include "ops/rg_lru_gates.h"
#include "ops/short_convolution.h"

namespace pronghorn {
namespace {

struct RgLruConfig {
  int64_t width = 0, gate_blocks = 0, conv_kernel = 0;
  double least_decay = 0, largest_decay = 0;
  std::string activation;

  void fields(ConfigFields& f, const LayerContext& context) {
    f.integer("width", width, {context.hidden_size, "hidden_size"}, 1, limits::kWidth, "channels");
    f.integer("gate_blocks", gate_blocks, kRequired, 1, limits::kHeads,
              "blocks on the diagonal of the gates' matrices; divides `width`");
    f.check(width % gate_blocks == 0, "gate_blocks", "{} does not divide width {}", gate_blocks,
            width);
    f.integer("conv_kernel", conv_kernel, kConvKernel, 1, limits::kTaps, "taps of the convolution");
    f.one_of("activation", activation,
             {"gelu_tanh", "gelu", "silu", "relu", "swoosh_r", "swoosh_l"}, "gelu_tanh",
             "of the gating branch: `\"gelu_tanh\"`, `\"gelu\"`, `\"silu\"`, `\"relu\"`, "
             "`\"swoosh_r\"` or `\"swoosh_l\"`");
    f.number("decay_min", least_decay, 0.9, 0.01, 0.9999,
             "smallest decay at the start, of a gate that is an eighth open");
    f.number("decay_max", largest_decay, 0.999, least_decay, 0.99999, "largest of them");
  }
};

// p such that exp(-softplus(p)) is a decay whose square is uniform between those of two decays
// (section 2.4 and appendix A: uniform on a ring).
Initializer decay_initializer(double least, double largest) {
  return [=](Random& random, int64_t) {
    const double square = random.uniform(least * least, largest * largest);
    return static_cast<float>(std::log(std::expm1(-0.5 * std::log(square))));
  };
}

// One gate: its blocks and their biases.
struct Gate {
  std::vector<Weight> weights;
  Tensor bias;  // [width]
};

class RgLruMixer final : public Mixer {
 public:
  using Config = RgLruConfig;

  RgLruMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
             const StateScope& states)
      : width_(config.width),
        block_(config.width / config.gate_blocks),
        activation_(activation_named(config.activation)) {
    const int64_t d = context.hidden_size;
    const Initializer in = projection_initializer(context), zero = initializers::constant(0);
    linear_y_ = scope.matrix("linear_y.weight", width_, d, in);
    linear_x_ = scope.matrix("linear_x.weight", width_, d, in);
    linear_out_ = scope.matrix("linear_out.weight", d, width_, residual_initializer(context));
    y_bias_ = scope.tensor("linear_y.bias", {width_}, zero);
    x_bias_ = scope.tensor("linear_x.bias", {width_}, zero);
    out_bias_ = scope.tensor("linear_out.bias", {d}, zero);
    const Initializer taps = convolution_initializer(config.conv_kernel);
    conv_weight_ = scope.tensor("conv_1d.weight", {width_, config.conv_kernel}, taps, Decay::yes);
    conv_bias_ = scope.tensor("conv_1d.bias", {width_}, zero);
    const ParameterScope lru = scope.child("rg_lru");
    parameter_ = lru.tensor("recurrent_param", {width_},
                            decay_initializer(config.least_decay, config.largest_decay));
    recurrent_ = gate(lru, "recurrent_gate", config.gate_blocks);
    input_ = gate(lru, "input_gate", config.gate_blocks);
    conv_rows_ = states.add(short_convolution_journal(width_, config.conv_kernel));
    scan_ = states.add(diagonal_scan_journal(width_, false));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const CheckedBatch& batch = input.batch;
    const Tensor u = short_convolution(context, linear(context, x, linear_x_, x_bias_),
                                       conv_weight_, conv_bias_, false, batch, conv_rows_);
    const RgLruDecay decay =
        rg_lru_gates(context, u, opened(context, u, recurrent_), opened(context, u, input_),
                     parameter_, batch.positions());
    const Tensor h = diagonal_scan(context, decay.log_a, decay.x, batch, scan_);
    const Tensor y = linear(context, x, linear_y_, y_bias_);
    return linear(context, gated(context, y, h, activation_), linear_out_, out_bias_);
  }

  // A channel's decay and input: about 8 operations; its update and the gate: 3.
  double sequence_cost(double) const override { return 11.0 * static_cast<double>(width_); }

 private:
  Gate gate(const ParameterScope& scope, const std::string& name, int64_t blocks) const {
    Gate gate;
    const Initializer normal = initializers::normal(1 / std::sqrt(static_cast<double>(block_)));
    for (int64_t i = 0; i < blocks; ++i) {
      const std::string block = name + "_weight." + std::to_string(i);
      gate.weights.push_back(scope.matrix(block, block_, block_, normal));
    }
    gate.bias = scope.tensor(name + "_bias", {width_}, initializers::constant(0));
    return gate;
  }

  // What a gate has before its sigmoid, a tensor for each block.
  std::vector<Tensor> opened(const Context& context, const Tensor& u, const Gate& gate) const {
    std::vector<Tensor> blocks;
    const Tensor bias = gate.bias.reshape({1, width_});
    for (size_t i = 0; i < gate.weights.size(); ++i) {
      const int64_t first = static_cast<int64_t>(i) * block_;
      blocks.push_back(linear(context, u.column_slice(first, block_), gate.weights[i],
                              bias.column_slice(first, block_)));
    }
    return blocks;
  }

  int64_t width_, block_;
  Activation activation_;
  JournalSlot conv_rows_, scan_;
  Weight linear_y_, linear_x_, linear_out_;
  Tensor y_bias_, x_bias_, out_bias_, conv_weight_, conv_bias_, parameter_;
  Gate recurrent_, input_;
};

}  // namespace

MixerType rg_lru_mixer_type() {
  return mixer_type<RgLruMixer>("rg_lru", "gated diagonal recurrence of Hawk and Griffin",
                                "arXiv 2402.19427", R"({"type": "rg_lru", "gate_blocks": 2})");
}

}  // namespace pronghorn
