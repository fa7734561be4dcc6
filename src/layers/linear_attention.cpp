// Linear attention (Katharopoulos et al., arXiv 2006.16236): softmax's kernel replaced by a feature
// map, so that attention is a state; and its kin with a constant decay per head: RetNet (Sun et
// al., arXiv 2307.08621) and Lightning attention (MiniMax-01, arXiv 2501.08313; Qin et al., arXiv
// 2401.04658). Parameter names are those of the flash-linear-attention checkpoints, or MiniMax's.
#include <cmath>
#include <string>

#include "layers/layers.h"
#include "layers/linear_parts.h"
#include "layers/rope_config.h"
#include "layers/toolbox.h"
#include "ops/gates.h"
#include "ops/linear.h"
#include "ops/linear_maps.h"
#include "ops/outer_product_state.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

// A sum of weights is at least that when it is divided by.
constexpr float kLeastSum = 1e-6f;

// So that products of two exponentials and sums of them stay far inside f32.
constexpr float kExpCap = 30;

constexpr const char* kFeatureMaps =
    "of queries and keys: elu(x) + 1, relu, exp of 30 tanh(x / 30), or none (`\"identity\"`)";

Tensor features(const Context& context, const Tensor& x, const std::string& map) {
  if (map == "elu") return activate(context, x, Activation::elu_plus_one);
  if (map == "relu") return activate(context, x, Activation::relu);
  if (map == "exp") return activate(context, soft_cap(context, x, kExpCap), Activation::exp);
  return x;
}

struct LinearAttentionConfig {
  HeadsConfig heads;
  int64_t value_head_dim = 0;
  std::string feature_map, output_norm;
  bool normalizer = false;
  double norm_epsilon = 0;

  void fields(ConfigFields& f, const LayerContext& context) {
    heads.fields(f, context, "heads, each with a state", "of queries and keys");
    f.integer("value_head_dim", value_head_dim, {heads.head_dim, "`head_dim`"}, 1,
              2 * limits::kHeadDim, "of values");
    f.one_of("feature_map", feature_map, {"elu", "relu", "exp", "identity"}, "elu", kFeatureMaps);
    f.boolean("normalizer", normalizer, false,
              "divides by the sum of the weights, as softmax does");
    f.check(!normalizer || feature_map != "identity", "normalizer",
            "needs a `feature_map` that is not negative, or the sum may be 0");
    f.one_of("output_norm", output_norm, {"rmsnorm", "identity"}, "rmsnorm", "of heads");
    read_norm_epsilon(f, norm_epsilon, "of the norm of heads");
  }
};

class LinearAttentionMixer final : public Mixer {
 public:
  using Config = LinearAttentionConfig;

  LinearAttentionMixer(const Config& config, const LayerContext& context,
                       const ParameterScope& scope, const StateScope& states)
      : feature_map_(config.feature_map),
        normalizer_(config.normalizer),
        has_norm_(config.output_norm != "identity"),
        value_dim_(config.value_head_dim) {
    options_.key_heads = options_.value_heads = config.heads.heads;
    options_.key_dim = config.heads.head_dim;
    options_.value_dim = normalizer_ ? value_dim_ + 1 : value_dim_;
    options_.query_scale = 1 / std::sqrt(static_cast<float>(options_.key_dim));
    const int64_t key_width = options_.key_heads * options_.key_dim;
    const int64_t value_width = options_.value_heads * value_dim_, d = context.hidden_size;
    const Initializer in = projection_initializer(context);
    q_proj_ = scope.matrix("q_proj.weight", key_width, d, in);
    k_proj_ = scope.matrix("k_proj.weight", key_width, d, in);
    v_proj_ = scope.matrix("v_proj.weight", value_width, d, in);
    o_proj_ = scope.matrix("o_proj.weight", d, value_width, residual_initializer(context));
    if (has_norm_) {
      norm_ = GatedHeadNorm("norm.weight", value_dim_, HeadGate::none,
                            epsilon_or_default(config.norm_epsilon, context), scope);
    }
    state_ = states.add(outer_product_state_journal(options_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const auto [q, k, v] = linear_maps(context, x, {{&q_proj_}, {&k_proj_}, {&v_proj_}});
    OuterProductStateInputs inputs;
    inputs.q = features(context, q, feature_map_);
    inputs.k = features(context, k, feature_map_);
    inputs.v = normalizer_ ? append_ones(context, v, value_dim_) : v;
    Tensor y = outer_product_state(context, inputs, options_, input.batch, state_);
    if (normalizer_) y = divide_by_sums(context, y, value_dim_, kLeastSum);
    return linear(context, has_norm_ ? norm_.forward(context, y, {}) : y, o_proj_);
  }

  // Per number of the state: write 2, read 2.
  double sequence_cost(double) const override {
    return 4.0 * static_cast<double>(options_.value_heads * options_.key_dim * options_.value_dim);
  }

 private:
  std::string feature_map_;
  bool normalizer_, has_norm_;
  int64_t value_dim_;
  OuterProductStateOptions options_;
  JournalSlot state_;
  Weight q_proj_, k_proj_, v_proj_, o_proj_;
  GatedHeadNorm norm_;
};

struct RetNetConfig {
  HeadsConfig heads;
  int64_t value_head_dim = 0;
  double norm_epsilon = 0;
  std::string feature_map, gate;
  double rope_theta = 0;

  void fields(ConfigFields& f, const LayerContext& context) {
    heads.fields(f, context, "heads, each with a state", "of queries and keys");
    f.integer("value_head_dim", value_head_dim, {2 * heads.head_dim, "2 `head_dim`"}, 1,
              2 * limits::kHeadDim, "of values");
    f.one_of("feature_map", feature_map, {"identity", "elu", "relu", "exp"}, "identity",
             kFeatureMaps);
    f.one_of("gate", gate, {"silu", "sigmoid", "none"}, "silu", "on the output, after its norm");
    read_norm_epsilon(f, norm_epsilon, "of the norm of heads");
    f.check(heads.head_dim % 2 == 0, "head_dim", "{} is odd, and rotary positions turn pairs",
            heads.head_dim);
    f.number("rope_theta", rope_theta, kRopeTheta, 1.0, limits::kRopeTheta,
             "base of the rotary angles of queries and keys");
  }
};

class RetNetMixer final : public Mixer {
 public:
  using Config = RetNetConfig;

  RetNetMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
              const StateScope& states)
      : feature_map_(config.feature_map),
        angles_(rotary_angles(config.rope_theta, config.heads.head_dim, {}, false)) {
    const int64_t heads = config.heads.heads;
    options_.key_heads = options_.value_heads = heads;
    options_.key_dim = config.heads.head_dim;
    options_.value_dim = config.value_head_dim;
    options_.query_scale = 1 / std::sqrt(static_cast<float>(options_.key_dim));
    const int64_t key_width = heads * options_.key_dim, value_width = heads * options_.value_dim;
    const int64_t d = context.hidden_size;
    const Initializer in = projection_initializer(context);
    q_proj_ = scope.matrix("q_proj.weight", key_width, d, in);
    k_proj_ = scope.matrix("k_proj.weight", key_width, d, in);
    v_proj_ = scope.matrix("v_proj.weight", value_width, d, in);
    const HeadGate gate = head_gate_named(config.gate);
    if (gate != HeadGate::none) g_proj_ = scope.matrix("g_proj.weight", value_width, d, in);
    o_proj_ = scope.matrix("o_proj.weight", d, value_width, residual_initializer(context));
    g_norm_ = GatedHeadNorm("g_norm.weight", options_.value_dim, gate,
                            epsilon_or_default(config.norm_epsilon, context), scope);
    log_decay_ = Tensor::from(retention_log_decays(heads), {1, heads});
    state_ = states.add(outer_product_state_journal(options_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const auto [q, k, v, g] =
        linear_maps(context, x, {{&q_proj_}, {&k_proj_}, {&v_proj_}, {&g_proj_}});
    OuterProductStateInputs inputs;
    inputs.q = turned(input, features(context, q, feature_map_), options_.key_dim, angles_);
    inputs.k = turned(input, features(context, k, feature_map_), options_.key_dim, angles_);
    inputs.v = v;
    inputs.log_decay = log_decay_;
    const Tensor y = outer_product_state(context, inputs, options_, input.batch, state_);
    return linear(context, g_norm_.forward(context, y, g), o_proj_);
  }

  // Per number of the state: decay 1, write 2, read 2.
  double sequence_cost(double) const override {
    return 5.0 * static_cast<double>(options_.value_heads * options_.key_dim * options_.value_dim);
  }

  int64_t context_limit() const override { return pronghorn::context_limit(angles_); }

 private:
  std::string feature_map_;
  SharedAngles angles_;
  OuterProductStateOptions options_;
  JournalSlot state_;
  Weight q_proj_, k_proj_, v_proj_, g_proj_, o_proj_;
  GatedHeadNorm g_norm_;
  Tensor log_decay_;
};

struct LightningConfig {
  HeadsConfig heads;
  double norm_epsilon = 0;

  void fields(ConfigFields& f, const LayerContext& context) {
    heads.fields(f, context, "heads, each with a state", "of queries, keys and values");
    read_norm_epsilon(f, norm_epsilon, "of the norm of the output");
  }
};

class LightningMixer final : public Mixer {
 public:
  using Config = LightningConfig;

  LightningMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
                 const StateScope& states) {
    const int64_t heads = config.heads.heads, width = heads * config.heads.head_dim;
    options_.key_heads = options_.value_heads = heads;
    options_.key_dim = options_.value_dim = config.heads.head_dim;
    const int64_t d = context.hidden_size;
    const Initializer in = projection_initializer(context);
    q_proj_ = scope.matrix("q_proj.weight", width, d, in);
    k_proj_ = scope.matrix("k_proj.weight", width, d, in);
    v_proj_ = scope.matrix("v_proj.weight", width, d, in);
    output_gate_ = scope.matrix("output_gate.weight", width, d, in);
    out_proj_ = scope.matrix("out_proj.weight", d, width, residual_initializer(context));
    norm_ = GatedHeadNorm("norm.weight", width, HeadGate::sigmoid,
                          epsilon_or_default(config.norm_epsilon, context), scope);
    log_decay_ =
        Tensor::from(lightning_log_decays(heads, context.layer, context.depth), {1, heads});
    state_ = states.add(outer_product_state_journal(options_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const auto [q, k, v, g] =
        linear_maps(context, x, {{&q_proj_}, {&k_proj_}, {&v_proj_}, {&output_gate_}});
    OuterProductStateInputs inputs;
    inputs.q = activate(context, q, Activation::silu);
    inputs.k = activate(context, k, Activation::silu);
    inputs.v = activate(context, v, Activation::silu);
    inputs.log_decay = log_decay_;
    const Tensor y = outer_product_state(context, inputs, options_, input.batch, state_);
    return linear(context, norm_.forward(context, y, g), out_proj_);
  }

  // Per number of the state: decay 1, write 2, read 2.
  double sequence_cost(double) const override {
    return 5.0 * static_cast<double>(options_.value_heads * options_.key_dim * options_.value_dim);
  }

 private:
  OuterProductStateOptions options_;
  JournalSlot state_;
  Weight q_proj_, k_proj_, v_proj_, output_gate_, out_proj_;
  GatedHeadNorm norm_;
  Tensor log_decay_;
};

}  // namespace

MixerType linear_attention_mixer_type() {
  return mixer_type<LinearAttentionMixer>(
      "linear_attention", "attention with a feature map in the place of softmax",
      "arXiv 2006.16236", R"({"type": "linear_attention", "heads": 2})");
}

MixerType retnet_mixer_type() {
  return mixer_type<RetNetMixer>(
      "retnet", "linear attention with rotary positions and a fixed decay per head",
      "arXiv 2307.08621", R"({"type": "retnet", "heads": 2})");
}

MixerType lightning_mixer_type() {
  return mixer_type<LightningMixer>(
      "lightning", "linear attention with a fixed decay per head that falls with depth",
      "arXiv 2501.08313", R"({"type": "lightning", "heads": 2})");
}

}  // namespace pronghorn
