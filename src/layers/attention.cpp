// Attention layer: projections, rotary positions, optional norms of queries and keys (QK-norm,
// arXiv 2302.05442), grouped-query attention (arXiv 2305.13245).
#include "ops/attention.h"

#include <algorithm>

#include "backend/attention.h"
#include "layers/both_ways.h"
#include "layers/layers.h"
#include "layers/projection.h"
#include "layers/rope_config.h"
#include "layers/shared_keys.h"
#include "layers/toolbox.h"
#include "ops/linear.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

constexpr double kMostScale = 1e4, kMostCap = 1e6;

struct AttentionConfig {
  HeadsConfig heads;
  int64_t kv_heads = 0, window = 0;
  int64_t block = 0, top = 0;  // of MoBA; block 0: attention to all keys
  bool has_rope = false;
  RopeConfig rope;
  bool qk_norm = false, bias = false, output_bias = false, sinks = false;
  bool gate = false, output_norm = false;
  std::string qk_norm_over;
  int64_t adapter_rank = 0;
  double scale = 0, soft_cap = 0;
  double input_scale = 1, key_scale = 1, output_scale = 1;
  ProductBits bits = ProductBits::whole;
  SharedKeysConfig shared;

  void fields(ConfigFields& f, const LayerContext& context) {
    heads.fields(f, context, "query heads", "width of a head");
    read_kv_heads(f, heads.heads, kv_heads);
    if (f.type() == "moba") {
      moba_fields(f);
    } else {
      f.integer("window", window, 0, 0, limits::kWindow, "tokens that a row looks back; 0: all");
    }
    has_rope = f.object(
        "rope", [&](ConfigFields& inner) { rope.fields(inner, heads.head_dim); },
        "rotary positions, an object of the next keys; omitted: no positions at all");
    f.boolean("qk_norm", qk_norm, false, "RMSNorm of queries and keys, before they are turned");
    f.one_of("qk_norm_over", qk_norm_over, {"head", "projection"}, "head",
             "what that norm is taken over: each head, or all of them together "
             "(`\"projection\"`)");
    f.number("scale", scale, {0.0, "1 / sqrt(head_dim)"}, 0, kMostScale, "of the scores");
    f.number("soft_cap", soft_cap, 0.0, 0, kMostCap,
             "scores become cap tanh(s / cap); 0: they stay");
    f.boolean("sinks", sinks, false, "a learned logit per head in the softmax's denominator");
    f.boolean("gate", gate, false, "the output is multiplied by sigmoid(g_proj(x))");
    f.boolean("output_norm", output_norm, false, "RMSNorm before the output projection");
    f.boolean("bias", bias, false, "on the query, key, value and gate projections");
    f.boolean("output_bias", output_bias, false, "on the output projection");
    f.integer("adapter_rank", adapter_rank, 0, 0, limits::kWidth,
              "rank of a change of the query, key and value projections that is never shared "
              "between layers; 0: none");
    f.number("input_scale", input_scale, 1.0, -kMostScale, kMostScale, "factor on the input");
    f.number("key_scale", key_scale, 1.0, -kMostScale, kMostScale,
             "factor on the keys, as they are projected");
    f.number("output_scale", output_scale, 1.0, -kMostScale, kMostScale, "factor on the output");
    if (f.type() != "moba") shared.fields(f);
    f.check(!shared.borrows() || key_scale == 1, "key_scale", "{} on keys of another layer",
            key_scale);
    bits = read_product_bits(f);
    f.check(adapter_rank == 0 || bits == ProductBits::whole, "adapter_rank",
            "{} beside products in few bits", adapter_rank);
  }

  void moba_fields(ConfigFields& f) {
    constexpr int64_t kMostBlock = int64_t{1} << 30, kMostBlocks = 1 << 12;
    f.integer("block", block, 512, kAttentionTile, kMostBlock,
              "tokens of a block of keys; a multiple of 64");
    f.check(block % kAttentionTile == 0, "block", "{} is no multiple of {}", block, kAttentionTile);
    f.integer("top", top, 3, 1, kMostBlocks,
              "blocks that a query head looks at, that of the token itself included");
  }
};

// Both kinds of attention: to all keys, and to blocks of them (MoBA, arXiv 2502.13189).
class AttentionMixer final : public Mixer, public SeesBothWays {
 public:
  using Config = AttentionConfig;

  AttentionMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
                 const StateScope& states)
      : norm_epsilon_(context.norm_epsilon),
        input_scale_(static_cast<float>(config.input_scale)),
        key_scale_(static_cast<float>(config.key_scale)),
        output_scale_(static_cast<float>(config.output_scale)),
        project_(config.bits),
        shared_(config.shared) {
    options_.heads = config.heads.heads;
    options_.kv_heads = config.kv_heads;
    options_.head_dim = config.heads.head_dim;
    options_.window = config.window;
    options_.scale = static_cast<float>(config.scale);
    options_.soft_cap = static_cast<float>(config.soft_cap);
    options_.keys = shared_.owner();
    options_.prefix = context.prefix;
    options_.block = config.block;
    options_.top_blocks = config.top;
    if (config.has_rope) angles_ = options_.angles = config.rope.angles();
    const int64_t d = context.hidden_size, in_width = context.input_width();
    const int64_t q_width = options_.heads * options_.head_dim;
    const int64_t kv_width = options_.kv_heads * options_.head_dim;
    const Initializer in = projection_initializer(context);
    const Initializer zero = initializers::constant(0), one = initializers::constant(1);
    q_proj_ = scope.matrix("q_proj.weight", q_width, in_width, in);
    if (!shared_.borrows()) {
      k_proj_ = scope.matrix("k_proj.weight", kv_width, in_width, in);
      v_proj_ = scope.matrix("v_proj.weight", kv_width, in_width, in);
    }
    o_proj_ = scope.matrix("o_proj.weight", d, q_width, residual_initializer(context));
    if (config.gate) g_proj_ = scope.matrix("g_proj.weight", q_width, in_width, in);
    if (config.adapter_rank > 0) {
      const auto adapter = [&](std::string_view name, int64_t out) {
        const ParameterScope own = scope.own().child(name);
        return Adapter{own.matrix("0.weight", config.adapter_rank, in_width, in),
                       own.matrix("1.weight", out, config.adapter_rank, in)};
      };
      q_adapter_ = adapter("q_adapter", q_width);
      if (!shared_.borrows()) {
        k_adapter_ = adapter("k_adapter", kv_width);
        v_adapter_ = adapter("v_adapter", kv_width);
      }
    }
    if (config.bias) {
      q_bias_ = scope.tensor("q_proj.bias", {q_width}, zero);
      if (!shared_.borrows()) {
        k_bias_ = scope.tensor("k_proj.bias", {kv_width}, zero);
        v_bias_ = scope.tensor("v_proj.bias", {kv_width}, zero);
      }
      if (config.gate) g_bias_ = scope.tensor("g_proj.bias", {q_width}, zero);
    }
    if (config.output_bias) o_bias_ = scope.tensor("o_proj.bias", {d}, zero);
    if (config.qk_norm) {
      const bool whole = config.qk_norm_over == "projection";
      q_norm_ = scope.tensor("q_norm.weight", {whole ? q_width : options_.head_dim}, one);
      if (!shared_.borrows()) {
        k_norm_ = scope.tensor("k_norm.weight", {whole ? kv_width : options_.head_dim}, one);
      }
    }
    if (config.output_norm) output_norm_ = scope.tensor("output_norm.weight", {q_width}, one);
    if (config.sinks) sinks_ = scope.tensor("sinks", {options_.heads}, zero);
    if (!shared_.borrows()) key_value_ = states.add(attention_journal(options_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const Tensor in = project_.input(context, scaled(context, x, input_scale_));
    // Without keys of its own, or without a gate, those are undefined.
    const auto [q, k, v, gate] = project_(
        context, in,
        {{&q_proj_, &q_bias_}, {&k_proj_, &k_bias_}, {&v_proj_, &v_bias_}, {&g_proj_, &g_bias_}});
    const Tensor queries = prepare(input, adapted(context, q, in, q_adapter_), q_norm_);
    Tensor seen = shared_.borrows() ? attend_borrowed(input, shared_, queries, options_, sinks_)
                                    : attend(input, in, queries, k, v);
    if (gate.defined()) seen = multiply(context, seen, sigmoid(context, gate));
    if (output_norm_.defined()) seen = rms_norm(context, seen, output_norm_, norm_epsilon_);
    const Tensor out = project_(context, project_.input(context, seen), o_proj_, o_bias_);
    return scaled(context, out, output_scale_);
  }

  double sequence_cost(double context) const override {
    const double seen = rows_seen(options_, context);
    const double means = options_.block == 0 ? 0 : context / static_cast<double>(options_.block);
    return (4 * seen + 2 * means) * static_cast<double>(options_.heads * options_.head_dim);
  }

  int64_t context_limit() const override { return pronghorn::context_limit(angles_); }

  // A window would end at the row itself, and blocks are chosen among earlier ones.
  bool sees_both_ways() const override { return options_.window == 0 && options_.block == 0; }

 private:
  // in: what the keys and values were projected from.
  Tensor attend(const LayerInput& input, const Tensor& in, const Tensor& q, const Tensor& keys,
                const Tensor& values) const {
    const Context& context = input.context;
    const Tensor own = adapted(context, keys, in, k_adapter_);
    const Tensor k = prepare(input, scaled(context, own, key_scale_), k_norm_);
    const Tensor v = adapted(context, values, in, v_adapter_);
    return attend_own(input, shared_, q, k, v, options_, key_value_, sinks_);
  }

  // x a^T b^T, added to a projection.
  struct Adapter {
    Weight a, b;  // [rank, in], [out, rank]; undefined: none
  };

  static Tensor adapted(const Context& context, const Tensor& projected, const Tensor& x,
                        const Adapter& adapter) {
    if (!adapter.a.defined()) return projected;
    return add(context, projected, linear(context, linear(context, x, adapter.a), adapter.b));
  }

  // Heads of q or k, normalised if so configured, then turned to their positions.
  Tensor prepare(const LayerInput& input, const Tensor& heads, const Tensor& norm) const {
    Tensor result = heads;
    if (norm.defined()) {
      const int64_t width = norm.size();
      result = rms_norm(input.context, result.reshape({heads.size() / width, width}), norm,
                        norm_epsilon_)
                   .reshape(heads.shape());
    }
    return turned(input, result, options_.head_dim, angles_);
  }

  AttentionOptions options_;
  SharedAngles angles_;  // null: no positions
  float norm_epsilon_, input_scale_, key_scale_, output_scale_;
  Projector project_;
  SharedKeysConfig shared_;
  JournalSlot key_value_;
  Weight q_proj_, k_proj_, v_proj_, o_proj_, g_proj_;
  Adapter q_adapter_, k_adapter_, v_adapter_;
  Tensor q_bias_, k_bias_, v_bias_, g_bias_, o_bias_, q_norm_, k_norm_, output_norm_, sinks_;
};

}  // namespace

MixerType moba_mixer_type() {
  return mixer_type<AttentionMixer>(
      "moba", "mixture of block attention: heads choose blocks of keys", "arXiv 2502.13189",
      R"({"type": "moba", "heads": 2, "block": 64, "top": 2, "rope": {}})");
}

MixerType attention_mixer_type() {
  return mixer_type<AttentionMixer>(
      "attention", "softmax attention: MHA, GQA, MQA; causal or sliding window; RoPE",
      "arXiv 1706.03762, 2305.13245",
      R"({"type": "attention", "heads": 2,
          "rope": {"scaling": {"type": "linear", "factor": 2}}})");
}

}  // namespace pronghorn
