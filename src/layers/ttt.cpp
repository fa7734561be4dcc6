// TTT layers (Sun et al., arXiv 2407.04620): a linear map or an MLP per head whose weights take
// one gradient step per token, x + LN(f(x)) inside, and a weight of each place in a mini-batch.
// Parameter names are those of the published implementation.
#include <string>

#include "layers/layers.h"
#include "layers/learning_memory.h"
#include "layers/toolbox.h"
#include "ops/fast_weight_memory.h"
#include "ops/linear.h"
#include "ops/linear_maps.h"
#include "ops/pointwise.h"
#include "ops/rope.h"
#include "ops/short_convolution.h"

namespace pronghorn {
namespace {

constexpr int64_t kHiddenFactor = 4;       // of TTT-MLP
constexpr float kPostNormEpsilon = 1e-6f;  // as in the published implementation

struct TttConfig {
  HeadsConfig heads;
  bool mlp = false;
  int64_t mini_batch = 0;
  double base_learning_rate = 0;
  bool share_qk = false, use_gate = false;
  int64_t conv_kernel = 0;
  double rope_theta = 0;

  void fields(ConfigFields& f, const LayerContext& context) {
    mlp = f.type() == "ttt_mlp";
    heads.fields(f, context, "memories", "width of a head; even");
    f.check(heads.head_dim % 2 == 0, "head_dim", "{} is odd", heads.head_dim);
    read_mini_batch(f, mini_batch);
    // The published settings.
    f.number("base_learning_rate", base_learning_rate, {mlp ? 0.1 : 1.0, "1, MLP 0.1"}, 0.0, 100.0,
             "factor on the learned step sizes");
    f.boolean("share_qk", share_qk, true, "one projection for q and k, then a convolution each");
    f.boolean("use_gate", use_gate, true, "the output is multiplied by gelu(g_proj(x))");
    f.integer("conv_kernel", conv_kernel, kConvKernel, 1, limits::kTaps,
              "taps of those convolutions");
    f.number("rope_theta", rope_theta, kRopeTheta, 1.0, limits::kRopeTheta,
             "base of the rotary angles");
  }
};

class TttMixer final : public Mixer, public HasLearningMemory {
 public:
  using Config = TttConfig;

  TttMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
           const StateScope& states)
      : angles_(rotary_angles(config.rope_theta, config.heads.head_dim)),
        share_qk_(config.share_qk) {
    options_.heads = config.heads.heads;
    options_.head_dim = config.heads.head_dim;
    options_.depth = config.mlp ? 2 : 1;
    options_.hidden_dim = options_.depth > 1 ? kHiddenFactor * options_.head_dim : 0;
    options_.mini_batch = config.mini_batch;
    options_.rule = TttRule{};
    learning_rate_ =
        static_cast<float>(config.base_learning_rate) / static_cast<float>(options_.head_dim);

    const int64_t d = context.hidden_size, heads = options_.heads, f = options_.head_dim;
    const int64_t width = heads * f, conv_kernel = config.conv_kernel;
    const Initializer in = projection_initializer(context);
    const Initializer zero = initializers::constant(0), one = initializers::constant(1);
    q_proj_ = scope.matrix("q_proj.weight", width, d, in);
    v_proj_ = scope.matrix("v_proj.weight", width, d, in);
    if (share_qk_) {
      const Initializer taps = convolution_initializer(conv_kernel);
      conv_q_ = scope.tensor("conv_q.weight", {width, conv_kernel}, taps, Decay::yes);
      conv_k_ = scope.tensor("conv_k.weight", {width, conv_kernel}, taps, Decay::yes);
      conv_q_bias_ = scope.tensor("conv_q.bias", {width}, taps);
      conv_k_bias_ = scope.tensor("conv_k.bias", {width}, taps);
    } else {
      k_proj_ = scope.matrix("k_proj.weight", width, d, in);
    }
    lr_weight_ = scope.matrix("learnable_ttt_lr_weight", heads, d, in);
    lr_bias_ = scope.tensor("learnable_ttt_lr_bias", {heads}, zero);
    inputs_.token_idx = scope.tensor("learnable_token_idx", {options_.mini_batch}, zero);
    inputs_.norm_weight = scope.tensor("ttt_norm_weight", {heads, f}, one);
    inputs_.norm_bias = scope.tensor("ttt_norm_bias", {heads, f}, zero);
    for (int64_t l = 0; l < options_.depth; ++l) {
      const int64_t from = options_.in(l), to = options_.out(l);
      const std::string number = std::to_string(l + 1);
      inputs_.weights.push_back(scope.tensor("W" + number, {heads, from, to}, in));
      inputs_.biases.push_back(scope.tensor("b" + number, {heads, to}, zero));
    }
    post_norm_weight_ = scope.tensor("post_norm.weight", {width}, one);
    post_norm_bias_ = scope.tensor("post_norm.bias", {width}, zero);
    if (config.use_gate) g_proj_ = scope.matrix("g_proj.weight", width, d, in);
    o_proj_ = scope.matrix("o_proj.weight", d, width, residual_initializer(context));
    if (share_qk_) {
      const JournalShape journal = short_convolution_journal(width, conv_kernel);
      q_rows_ = states.add(journal);
      k_rows_ = states.add(journal);
    }
    slot_ = states.add(fast_weight_memory_journal(options_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const CheckedBatch& batch = input.batch;
    // Positions within the mini-batch.
    std::vector<int32_t> places;
    for (const int32_t position : batch.positions()) {
      places.push_back(position % static_cast<int32_t>(options_.mini_batch));
    }
    const auto turned = [&](const Tensor& heads) {
      return rope(context, heads, places, options_.head_dim, angles_);
    };
    FastWeightMemoryInputs inputs = inputs_;
    // With shared queries and keys, and without a gate, those are undefined.
    const auto [q, k, v, rate, gate] = linear_maps(
        context, x, {{&q_proj_}, {&k_proj_}, {&v_proj_}, {&lr_weight_, &lr_bias_}, {&g_proj_}});
    if (share_qk_) {
      inputs.q =
          turned(short_convolution(context, q, conv_q_, conv_q_bias_, false, batch, q_rows_));
      inputs.k =
          turned(short_convolution(context, q, conv_k_, conv_k_bias_, false, batch, k_rows_));
    } else {
      inputs.q = turned(q);
      inputs.k = turned(k);
    }
    inputs.v = v;
    inputs.theta = scale(context, sigmoid(context, rate), learning_rate_);
    const Tensor read = fast_weight_memory(context, inputs, options_, batch, slot_);
    Tensor y = layer_norm(context, read, post_norm_weight_, post_norm_bias_, kPostNormEpsilon);
    if (gate.defined()) y = multiply(context, y, gelu(context, gate, true));
    return linear(context, y, o_proj_);
  }

  LearningMemory learning_memory() const override { return {slot_, options_}; }

  double sequence_cost(double) const override { return fast_weight_memory_cost(options_); }

 private:
  FastWeightMemoryOptions options_;
  FastWeightMemoryInputs inputs_;  // its parameters
  JournalSlot q_rows_, k_rows_, slot_;
  SharedAngles angles_;
  bool share_qk_;
  float learning_rate_ = 1;
  Weight q_proj_, k_proj_, v_proj_, g_proj_, o_proj_, lr_weight_;
  Tensor conv_q_, conv_k_, conv_q_bias_, conv_k_bias_, lr_bias_;
  Tensor post_norm_weight_, post_norm_bias_;
};

}  // namespace

MixerType ttt_linear_mixer_type() {
  return mixer_type<TttMixer>("ttt_linear",
                              "test-time training of a linear map per head, in mini-batches",
                              "arXiv 2407.04620", R"({"type": "ttt_linear", "heads": 2})");
}

MixerType ttt_mlp_mixer_type() {
  return mixer_type<TttMixer>("ttt_mlp",
                              "test-time training of a two-layer network per head, in mini-batches",
                              "arXiv 2407.04620", R"({"type": "ttt_mlp", "heads": 2})");
}

}  // namespace pronghorn
