// Attention layer: projections, rotary positions, optional per-head query and key norms (QK-norm,
// arXiv 2302.05442), grouped-query attention (arXiv 2305.13245).
#include "ops/attention.h"

#include <algorithm>

#include "layers/layers.h"
#include "layers/toolbox.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

struct AttentionConfig {
  HeadsConfig heads;
  int64_t kv_heads = 0, window = 0;
  bool rope = false;
  double rope_theta = 0;
  int64_t rotary_dim = 0;
  bool qk_norm = false, bias = false;

  void fields(ConfigFields& f, const LayerContext& context) {
    heads.fields(f, context, "query heads", "width of a head");
    f.integer("kv_heads", kv_heads, {heads.heads, "`heads`"}, 1, limits::kHeads,
              "key and value heads; divides `heads`");
    f.check(heads.heads % kv_heads == 0, "kv_heads", "{} does not divide heads {}", kv_heads,
            heads.heads);
    f.integer("window", window, 0, 0, kUnbounded, "tokens that a row looks back; 0: all");
    rope = f.object(
        "rope",
        [&](ConfigFields& inner) {
          inner.number("theta", rope_theta, kRopeTheta, 1.0, limits::kRopeTheta,
                       "base of the angles");
          inner.integer("rotary_dim", rotary_dim, {heads.head_dim, "`head_dim`"}, 2, heads.head_dim,
                        "channels of a head that are turned; even");
          inner.check(rotary_dim % 2 == 0, "rotary_dim", "{} is odd", rotary_dim);
        },
        "rotary positions, an object of the next two; omitted: no positions at all");
    f.boolean("qk_norm", qk_norm, false, "RMSNorm of each head's query and key");
    f.boolean("bias", bias, false, "on the query, key and value projections");
  }
};

class AttentionMixer final : public Mixer {
 public:
  using Config = AttentionConfig;

  AttentionMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
                 const StateScope& states)
      : rope_theta_(config.rope_theta), rotary_dim_(config.rotary_dim) {
    options_.heads = config.heads.heads;
    options_.kv_heads = config.kv_heads;
    options_.head_dim = config.heads.head_dim;
    options_.window = config.window;
    const int64_t d = context.hidden_size;
    const int64_t q_width = options_.heads * options_.head_dim;
    const int64_t kv_width = options_.kv_heads * options_.head_dim;
    const Initializer in = projection_initializer(context);
    q_proj_ = scope.matrix("q_proj.weight", q_width, d, in);
    k_proj_ = scope.matrix("k_proj.weight", kv_width, d, in);
    v_proj_ = scope.matrix("v_proj.weight", kv_width, d, in);
    o_proj_ = scope.matrix("o_proj.weight", d, q_width, residual_initializer(context));
    if (config.bias) {
      const Initializer zero = initializers::constant(0);
      q_bias_ = scope.tensor("q_proj.bias", {q_width}, zero);
      k_bias_ = scope.tensor("k_proj.bias", {kv_width}, zero);
      v_bias_ = scope.tensor("v_proj.bias", {kv_width}, zero);
    }
    if (config.qk_norm) {
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
  double rope_theta_;
  int64_t rotary_dim_;  // 0: no positions
  float norm_epsilon_ = 0;
  JournalSlot key_value_;
  Weight q_proj_, k_proj_, v_proj_, o_proj_;
  Tensor q_bias_, k_bias_, v_bias_, q_norm_, k_norm_;
};

}  // namespace

MixerType attention_mixer_type() {
  return mixer_type<AttentionMixer>(
      "attention", "softmax attention: MHA, GQA, MQA; causal or sliding window; RoPE",
      "arXiv 1706.03762, 2305.13245", R"({"type": "attention", "heads": 2, "rope": {}})");
}

}  // namespace pronghorn
