// Time mixing of RWKV-7 "Goose" (Peng et al., arXiv 2503.14456), whose state decays channel by
// channel and replaces what a key held at a rate of its own. Parameter names are those of the
// flash-linear-attention checkpoints.
#include <algorithm>
#include <array>
#include <cmath>

#include "layers/layers.h"
#include "layers/rwkv_parts.h"
#include "layers/toolbox.h"
#include "ops/diagonal_plus_rank_one.h"
#include "ops/linear.h"
#include "ops/pointwise.h"
#include "ops/rwkv7.h"
#include "ops/token_shift.h"

namespace pronghorn {
namespace {

constexpr std::string_view kFirstValue = "rwkv7.value";

// From -1 to 1 over each head, flat in the middle.
double within_head(int64_t i, int64_t head_dim) {
  const double y = 2 * along_channels(i % head_dim, head_dim);
  return y * std::abs(y);
}

// The rank that is usual for a width: a multiple of 32.
int64_t usual_rank(double factor, int64_t width) {
  return std::max<int64_t>(32, 32 * std::llround(factor * std::sqrt(width) / 32));
}

struct Rwkv7Config {
  HeadsConfig heads;
  int64_t decay_low_rank_dim = 0, a_low_rank_dim = 0, v_low_rank_dim = 0, gate_low_rank_dim = 0;
  double norm_epsilon = 0;
  bool negative_eigenvalues = false;

  void fields(ConfigFields& f, const LayerContext& context) {
    heads.fields(f, context, "heads, each with a state", "of receptance, keys and values");
    const auto rank = [&](const char* name, int64_t& value, double factor, const char* meaning) {
      f.integer(
          name, value,
          {usual_rank(factor, context.hidden_size),
           fmt::format("{} sqrt(hidden_size) to the nearest multiple of 32, at least 32", factor)},
          1, limits::kWidth, meaning);
    };
    rank("decay_low_rank_dim", decay_low_rank_dim, 2.5, "rank of the map to decays");
    rank("a_low_rank_dim", a_low_rank_dim, 2.5, "to in-context learning rates");
    rank("v_low_rank_dim", v_low_rank_dim, 1.7, "to shares of the first layer's value");
    rank("gate_low_rank_dim", gate_low_rank_dim, 5, "to gates");
    f.boolean("negative_eigenvalues", negative_eigenvalues, false,
              "removal is 1 + w times as strong, so that it can turn the sign of what a key held "
              "and leave its size (arXiv 2411.12537)");
    f.number("norm_epsilon", norm_epsilon, {0.0, "`head_dim` times that of the model's norms"}, 0,
             1, "of the norm of each head");
  }
};

// Two matrices with a narrow middle.
struct LowRank {
  LowRank() = default;
  LowRank(const ParameterScope& scope, int64_t in, int64_t rank, int64_t out,
          const Initializer* bias_initializer) {
    const ParameterScope inner = scope.child("lora");
    // Products start at zero; the second matrix as large as an orthogonal one times 0.1.
    down = inner.matrix("0.weight", rank, in, initializers::constant(0));
    up = inner.matrix("2.weight", out, rank,
                      initializers::normal(0.1 / std::sqrt(static_cast<double>(out))));
    if (bias_initializer != nullptr) bias = inner.tensor("2.bias", {out}, *bias_initializer);
  }

  Weight down, up;
  Tensor bias;
};

class Rwkv7Mixer final : public Mixer {
 public:
  using Config = Rwkv7Config;

  Rwkv7Mixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
             const StateScope& states)
      : norm_epsilon_(config.norm_epsilon > 0
                          ? static_cast<float>(config.norm_epsilon)
                          : context.norm_epsilon * static_cast<float>(config.heads.head_dim)),
        negative_eigenvalues_(config.negative_eigenvalues) {
    options_.heads = config.heads.heads;
    options_.key_dim = options_.value_dim = config.heads.head_dim;
    const int64_t d = context.hidden_size, head_dim = options_.key_dim;
    const int64_t width = options_.heads * head_dim;
    const RwkvDepth depth(context);

    const std::array<std::pair<const char*, double>, kMixes> mixes = {
        {{"x_r", 0.2}, {"x_w", 0.9}, {"x_k", 0.7}, {"x_v", 0.7}, {"x_a", 0.9}, {"x_g", 0.2}}};
    for (size_t s = 0; s < kMixes; ++s) {
      mixes_[s] = scope.tensor(mixes[s].first, {d},
                               rwkv_shift_initializer(d, mixes[s].second * depth.left));
    }
    const double root = std::sqrt(static_cast<double>(d));
    r_proj_ =
        scope.matrix("r_proj.weight", width, d, initializers::uniform(-0.5 / root, 0.5 / root));
    k_proj_ =
        scope.matrix("k_proj.weight", width, d, initializers::uniform(-0.05 / root, 0.05 / root));
    v_proj_ =
        scope.matrix("v_proj.weight", width, d, initializers::uniform(-0.5 / root, 0.5 / root));
    o_proj_ = scope.matrix("o_proj.weight", d, width, residual_initializer(context));

    const Initializer decay = [=](Random&, int64_t i) {
      const double place = along_channels(i, width) + 0.5;
      const double base = -6 + 6 * std::pow(place, 1 + std::pow(depth.done, 0.3));
      return static_cast<float>(base + 0.5 + 2.5 * within_head(i, head_dim));
    };
    const Initializer rate = [=](Random&, int64_t i) {
      return static_cast<float>(-0.19 + 0.3 * within_head(i, head_dim) +
                                0.4 * along_channels(i, width));
    };
    const Initializer share = [=](Random&, int64_t i) {
      return static_cast<float>(0.73 - 0.4 * along_channels(i, width));
    };
    w_lora_ = {scope.child("w_lora"), d, config.decay_low_rank_dim, width, &decay};
    a_lora_ = {scope.child("a_lora"), d, config.a_low_rank_dim, width, &rate};
    g_lora_ = {scope.child("g_lora"), d, config.gate_low_rank_dim, width, nullptr};
    if (context.layer > 0) {
      v_lora_ = {scope.child("v_lora"), d, config.v_low_rank_dim, width, &share};
    }
    k_k_ = scope.tensor("k_k", {width}, [=](Random&, int64_t i) {
      return static_cast<float>(0.71 - 0.1 * along_channels(i, width));
    });
    k_a_ = scope.tensor("k_a", {width}, initializers::constant(1.02f));
    r_k_ = scope.tensor("r_k", {options_.heads, head_dim}, initializers::constant(-0.04f));
    const auto first = static_cast<float>(std::pow((depth.layer + 1) / depth.layers, 0.7));
    g_norm_weight_ = scope.tensor("g_norm.weight", {width}, initializers::constant(first));
    g_norm_bias_ = scope.tensor("g_norm.bias", {width}, initializers::constant(0));

    shift_ = states.add(token_shift_journal(d));
    state_ = states.add(diagonal_plus_rank_one_journal(options_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const auto mixed = token_shift(context, x, mixes_, input.batch, shift_);
    const Tensor &x_r = mixed[0], &x_w = mixed[1], &x_k = mixed[2], &x_v = mixed[3],
                 &x_a = mixed[4], &x_g = mixed[5];
    const auto wide = [&](const LowRank& map, const Tensor& narrow) {
      return linear(context, narrow, map.up, map.bias);
    };
    const Tensor r = linear(context, x_r, r_proj_);
    const Tensor decay = wide(w_lora_, soft_cap(context, linear(context, x_w, w_lora_.down), 1));
    const Tensor rate = wide(a_lora_, linear(context, x_a, a_lora_.down));
    const Tensor gate = wide(g_lora_, sigmoid(context, linear(context, x_g, g_lora_.down)));
    const Rwkv7KeyRows keys = rwkv7_keys(context, decay, rate, linear(context, x_k, k_proj_), k_k_,
                                         k_a_, options_.key_dim);
    const Tensor v = value(input, x_v);
    const Tensor y = diagonal_plus_rank_one(
        context, {r, keys.log_decay, keys.key, v, keys.remove, replaced(context, keys)}, options_,
        input.batch, state_);
    const Tensor out =
        rwkv7_output(context, {y, r, keys.key, v, gate, g_norm_weight_, g_norm_bias_, r_k_},
                     options_.key_dim, norm_epsilon_);
    return linear(context, out, o_proj_);
  }

  // Per number of the state: decay 1, read for removal 2, two writes 4, read 2.
  double sequence_cost(double) const override {
    return 9.0 * static_cast<double>(options_.heads * options_.key_dim * options_.value_dim);
  }

 private:
  static constexpr size_t kMixes = 6;

  // What is written for what was read. The transition W - (unit s) unit^T, W the decays, has the
  // eigenvalues of W - u u^T with u_i = unit_i sqrt(s_i), which are -0.46 and more. With (1 + W) s
  // in place of s they are -1 and more: (W + 1) - u u^T has none below 0, since u^T (W + 1)^-1 u is
  // the sum of unit_i^2 s_i, which is at most 1.
  Tensor replaced(const Context& context, const Rwkv7KeyRows& keys) const {
    if (!negative_eigenvalues_) return keys.replace;
    const Tensor decay = activate(context, keys.log_decay, Activation::exp);
    return add(context, keys.replace, multiply(context, keys.replace, decay));
  }

  // Its own value or, in layers after the first of this kind, a mixture of it with that one's.
  Tensor value(const LayerInput& input, const Tensor& x_v) const {
    const Context& context = input.context;
    const Tensor own = linear(context, x_v, v_proj_);
    const Tensor* first = v_lora_.bias.defined() ? input.carry.find(kFirstValue) : nullptr;
    if (first == nullptr) {
      input.carry.set(kFirstValue, own);
      return own;
    }
    const Tensor share =
        linear(context, linear(context, x_v, v_lora_.down), v_lora_.up, v_lora_.bias);
    return interpolate(context, own, *first, share);
  }

  float norm_epsilon_;
  bool negative_eigenvalues_;
  DiagonalPlusRankOneOptions options_;
  JournalSlot shift_, state_;
  std::array<Tensor, kMixes> mixes_;
  Weight r_proj_, k_proj_, v_proj_, o_proj_;
  LowRank w_lora_, a_lora_, v_lora_, g_lora_;
  Tensor k_k_, k_a_, r_k_, g_norm_weight_, g_norm_bias_;
};

}  // namespace

MixerType rwkv7_mixer_type() {
  return mixer_type<Rwkv7Mixer>("rwkv7",
                                "a state that decays and is replaced by vectors of its own",
                                "arXiv 2503.14456", R"({"type": "rwkv7", "heads": 2})");
}

}  // namespace pronghorn
