// TTT layers (Sun et al., arXiv 2407.04620): a linear map or an MLP per head whose weights take
// one gradient step per token, x + LN(f(x)) inside, and a weight of each place in a mini-batch.
// Parameter names are those of the published implementation.
#include <cmath>
#include <string>

#include "base/error.h"
#include "layers/layers.h"
#include "layers/learning_memory.h"
#include "ops/fast_weight_memory.h"
#include "ops/linear.h"
#include "ops/pointwise.h"
#include "ops/short_convolution.h"

namespace pronghorn {
namespace {

constexpr int64_t kHiddenFactor = 4;       // of TTT-MLP
constexpr float kPostNormEpsilon = 1e-6f;  // as in the published implementation

class TttMixer final : public Mixer, public HasLearningMemory {
 public:
  TttMixer(const nlohmann::json& config, const LayerContext& context, const ParameterScope& scope,
           const StateScope& states)
      : conv_kernel_(config.at("conv_kernel")),
        rope_theta_(config.at("rope_theta")),
        share_qk_(config.at("share_qk")) {
    options_.heads = config.at("heads");
    options_.head_dim = config.at("head_dim");
    options_.depth = config.at("type") == "ttt_mlp" ? 2 : 1;
    options_.hidden_dim = options_.depth > 1 ? kHiddenFactor * options_.head_dim : 0;
    options_.mini_batch = config.at("mini_batch");
    options_.rule = TttRule{};
    learning_rate_ =
        config.at("base_learning_rate").get<float>() / static_cast<float>(options_.head_dim);

    const int64_t d = context.hidden_size, heads = options_.heads, f = options_.head_dim;
    const int64_t width = heads * f;
    const Initializer in = initializers::normal(context.initializer_range);
    const Initializer zero = initializers::constant(0), one = initializers::constant(1);
    q_proj_ = scope.matrix("q_proj.weight", width, d, in);
    v_proj_ = scope.matrix("v_proj.weight", width, d, in);
    if (share_qk_) {
      const double bound = 1 / std::sqrt(static_cast<double>(conv_kernel_));
      const Initializer taps = initializers::uniform(-bound, bound);
      conv_q_ = scope.tensor("conv_q.weight", {width, conv_kernel_}, taps, Decay::yes);
      conv_k_ = scope.tensor("conv_k.weight", {width, conv_kernel_}, taps, Decay::yes);
      conv_q_bias_ = scope.tensor("conv_q.bias", {width}, initializers::uniform(-bound, bound));
      conv_k_bias_ = scope.tensor("conv_k.bias", {width}, initializers::uniform(-bound, bound));
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
    if (config.at("use_gate").get<bool>()) g_proj_ = scope.matrix("g_proj.weight", width, d, in);
    o_proj_ =
        scope.matrix("o_proj.weight", d, width,
                     initializers::normal(context.initializer_range * context.residual_scale));
    if (share_qk_) {
      const JournalShape journal = short_convolution_journal(width, conv_kernel_);
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
      return rope(context, heads, places, options_.head_dim, options_.head_dim, rope_theta_);
    };
    FastWeightMemoryInputs inputs = inputs_;
    const Tensor q = linear(context, x, q_proj_);
    if (share_qk_) {
      inputs.q =
          turned(short_convolution(context, q, conv_q_, conv_q_bias_, false, batch, q_rows_));
      inputs.k =
          turned(short_convolution(context, q, conv_k_, conv_k_bias_, false, batch, k_rows_));
    } else {
      inputs.q = turned(q);
      inputs.k = turned(linear(context, x, k_proj_));
    }
    inputs.v = linear(context, x, v_proj_);
    inputs.theta =
        scale(context, sigmoid(context, linear(context, x, lr_weight_, lr_bias_)), learning_rate_);
    const Tensor read = fast_weight_memory(context, inputs, options_, batch, slot_);
    Tensor y = layer_norm(context, read, post_norm_weight_, post_norm_bias_, kPostNormEpsilon);
    if (g_proj_.defined()) {
      y = multiply(context, y, gelu(context, linear(context, x, g_proj_), true));
    }
    return linear(context, y, o_proj_);
  }

  LearningMemory learning_memory() const override { return {slot_, options_}; }

  double sequence_cost(double) const override { return fast_weight_memory_cost(options_); }

 private:
  FastWeightMemoryOptions options_;
  FastWeightMemoryInputs inputs_;  // its parameters
  JournalSlot q_rows_, k_rows_, slot_;
  int64_t conv_kernel_;
  double rope_theta_;
  bool share_qk_;
  float learning_rate_ = 1;
  Weight q_proj_, k_proj_, v_proj_, g_proj_, o_proj_, lr_weight_;
  Tensor conv_q_, conv_k_, conv_q_bias_, conv_k_bias_, lr_bias_;
  Tensor post_norm_weight_, post_norm_bias_;
};

nlohmann::json complete_ttt(ConfigReader reader, const LayerContext& context) {
  nlohmann::json config = {{"type", reader.string("type")}};
  const int64_t heads = reader.integer("heads", {}, 1, 4096);
  if (!reader.has("head_dim")) {
    require(context.hidden_size % heads == 0, reader.path("heads"),
            "{} does not divide hidden_size {} (change one of them or give head_dim)", heads,
            context.hidden_size);
  }
  const int64_t head_dim = reader.integer("head_dim", context.hidden_size / heads, 2, 4096);
  require(head_dim % 2 == 0, reader.path("head_dim"), "{} is odd", head_dim);
  config["heads"] = heads;
  config["head_dim"] = head_dim;
  const int64_t mini_batch = reader.integer("mini_batch", kExactStep, 1, kExactStep);
  require(kExactStep % mini_batch == 0, reader.path("mini_batch"), "{} does not divide {}",
          mini_batch, kExactStep);
  config["mini_batch"] = mini_batch;
  // 1 for the linear memory, 0.1 for the MLP: the published settings.
  const double rate = config["type"] == "ttt_mlp" ? 0.1 : 1.0;
  config["base_learning_rate"] = reader.number("base_learning_rate", rate, 0.0, 100.0);
  config["share_qk"] = reader.boolean("share_qk", true);
  config["use_gate"] = reader.boolean("use_gate", true);
  config["conv_kernel"] = reader.integer("conv_kernel", 4, 1, 64);
  config["rope_theta"] = reader.number("rope_theta", 10000.0, 1.0, 1e12);
  reader.finish();
  return config;
}

}  // namespace

MixerType ttt_linear_mixer_type() {
  return {"ttt_linear", "test-time training of a linear map per head, in mini-batches",
          "arXiv 2407.04620", complete_ttt, create_mixer<TttMixer>};
}

MixerType ttt_mlp_mixer_type() {
  return {"ttt_mlp", "test-time training of a two-layer network per head, in mini-batches",
          "arXiv 2407.04620", complete_ttt, create_mixer<TttMixer>};
}

}  // namespace pronghorn
