// Attention layer: projections, rotary positions, optional per-head query and key norms (QK-norm,
// arXiv 2302.05442), grouped-query attention (arXiv 2305.13245).
#include "ops/attention.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "layers/layers.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 4096;

class AttentionMixer final : public Mixer {
 public:
  AttentionMixer(const nlohmann::json& config, const LayerContext& context,
                 const ParameterScope& scope, const StateScope& states) {
    options_.heads = config.at("heads");
    options_.kv_heads = config.at("kv_heads");
    options_.head_dim = config.at("head_dim");
    options_.window = config.at("window");
    if (!config.at("rope").is_null()) {
      rope_theta_ = config.at("rope").at("theta");
      rotary_dim_ = config.at("rope").at("rotary_dim");
    }
    const int64_t d = context.hidden_size;
    const int64_t q_width = options_.heads * options_.head_dim;
    const int64_t kv_width = options_.kv_heads * options_.head_dim;
    const Initializer in = initializers::normal(context.initializer_range);
    q_proj_ = scope.matrix("q_proj.weight", q_width, d, in);
    k_proj_ = scope.matrix("k_proj.weight", kv_width, d, in);
    v_proj_ = scope.matrix("v_proj.weight", kv_width, d, in);
    o_proj_ =
        scope.matrix("o_proj.weight", d, q_width,
                     initializers::normal(context.initializer_range * context.residual_scale));
    if (config.at("bias").get<bool>()) {
      const Initializer zero = initializers::constant(0);
      q_bias_ = scope.tensor("q_proj.bias", {q_width}, zero);
      k_bias_ = scope.tensor("k_proj.bias", {kv_width}, zero);
      v_bias_ = scope.tensor("v_proj.bias", {kv_width}, zero);
    }
    if (config.at("qk_norm").get<bool>()) {
      const Initializer one = initializers::constant(1);
      q_norm_ = scope.tensor("q_norm.weight", {options_.head_dim}, one);
      k_norm_ = scope.tensor("k_norm.weight", {options_.head_dim}, one);
      norm_epsilon_ = context.norm_epsilon;
    }
    key_value_ = states.add(attention_journal(options_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const CheckedBatch& batch = input.batch;
    const Tensor q = prepare(context, linear(context, x, q_proj_, q_bias_), q_norm_, batch);
    const Tensor k = prepare(context, linear(context, x, k_proj_, k_bias_), k_norm_, batch);
    const Tensor v = linear(context, x, v_proj_, v_bias_);
    return linear(context, attention(context, q, k, v, options_, batch, key_value_), o_proj_);
  }

  double sequence_cost(double context) const override {
    const double seen =
        options_.window > 0 ? std::min(context, static_cast<double>(options_.window)) : context;
    return 4 * seen * static_cast<double>(options_.heads * options_.head_dim);
  }

 private:
  // Heads of q or k, normalised if so configured, then turned to their positions.
  Tensor prepare(const Context& context, const Tensor& heads, const Tensor& norm,
                 const CheckedBatch& batch) const {
    Tensor result = heads;
    if (norm.defined()) {
      const int64_t count = heads.size() / options_.head_dim;
      result = rms_norm(context, result.reshape({count, options_.head_dim}), norm, norm_epsilon_)
                   .reshape(heads.shape());
    }
    if (rotary_dim_ == 0) return result;
    return rope(context, result, batch.positions(), options_.head_dim, rotary_dim_, rope_theta_);
  }

  AttentionOptions options_;
  double rope_theta_ = 0;
  int64_t rotary_dim_ = 0;
  float norm_epsilon_ = 0;
  JournalSlot key_value_;
  Weight q_proj_, k_proj_, v_proj_, o_proj_;
  Tensor q_bias_, k_bias_, v_bias_, q_norm_, k_norm_;
};

nlohmann::json complete_attention(ConfigReader reader, const LayerContext& context) {
  nlohmann::json config = {{"type", reader.string("type")}};
  const int64_t heads = reader.integer("heads", {}, 1, kMaxHeads);
  const int64_t kv_heads = reader.integer("kv_heads", heads, 1, kMaxHeads);
  require(heads % kv_heads == 0, reader.path("kv_heads"), "{} does not divide heads {}", kv_heads,
          heads);
  if (!reader.has("head_dim")) {
    require(context.hidden_size % heads == 0, reader.path("heads"),
            "{} does not divide hidden_size {} (change one of them or give head_dim)", heads,
            context.hidden_size);
  }
  const int64_t head_dim = reader.integer("head_dim", context.hidden_size / heads, 1, kMaxHeadDim);
  config["heads"] = heads;
  config["kv_heads"] = kv_heads;
  config["head_dim"] = head_dim;
  config["window"] = reader.integer("window", 0, 0);
  config["bias"] = reader.boolean("bias", false);
  config["qk_norm"] = reader.boolean("qk_norm", false);
  config["rope"] = nullptr;
  if (reader.has("rope")) {
    ConfigReader rope_reader = reader.object("rope");
    const double theta = rope_reader.number("theta", 10000.0, 1.0, 1e12);
    const int64_t rotary_dim = rope_reader.integer("rotary_dim", head_dim, 2, head_dim);
    require(rotary_dim % 2 == 0, rope_reader.path("rotary_dim"), "{} is odd", rotary_dim);
    rope_reader.finish();
    config["rope"] = {{"theta", theta}, {"rotary_dim", rotary_dim}};
  } else {
    reader.ignore("rope");
  }
  reader.finish();
  return config;
}

}  // namespace

MixerType attention_mixer_type() {
  return {"attention", "softmax attention: MHA, GQA, MQA; causal or sliding window; RoPE",
          "arXiv 1706.03762, 2305.13245", complete_attention, create_mixer<AttentionMixer>};
}

}  // namespace pronghorn
