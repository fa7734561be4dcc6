// MEGA (Ma et al., arXiv 2209.10655) and Megalodon (Ma et al., arXiv 2404.08801): a moving average
// of each channel, attention within chunks whose queries and keys come from that average, and
// gates. Parameter names are those of the authors' code.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <string_view>
#include <utility>
#include <vector>

#include "layers/known.h"
#include "layers/layers.h"
#include "layers/rope_config.h"
#include "layers/toolbox.h"
#include "ops/attention.h"
#include "ops/diagonal_modes.h"
#include "ops/diagonal_scan.h"
#include "ops/gates.h"
#include "ops/linear.h"
#include "ops/linear_maps.h"
#include "ops/pointwise.h"
#include "ops/timestep_norm.h"

namespace pronghorn {
namespace {

constexpr int64_t kAverages = 16;
constexpr double kSmall = 0.02;  // deviation of what begins near a constant

// Attention within chunks, the settings of both layers.
struct ChunkAttentionConfig {
  int64_t heads = 1, z_dim = 0, value_dim = 0, chunk_size = 0;
  bool has_rope = false;
  RopeConfig rope;

  void fields(ConfigFields& f, const LayerContext& context, bool has_heads) {
    constexpr int64_t kMostChunk = int64_t{1} << 30;
    const int64_t d = context.hidden_size;
    if (has_heads) {
      f.integer("heads", heads, 1, 1, limits::kHeads, "of the attention");
    }
    f.integer("z_dim", z_dim, {std::max<int64_t>(1, d / 4), "hidden_size / 4"}, 1, limits::kWidth,
              "width of queries and keys");
    f.integer("value_dim", value_dim, {2 * d, "2 hidden_size"}, 1, limits::kWidth,
              "width of values and of the gate on what attention gives");
    f.check(z_dim % heads == 0 && z_dim / heads <= limits::kHeadDim, "z_dim",
            "{} cannot be cut into {} heads of at most {}", z_dim, heads, limits::kHeadDim);
    f.check(value_dim % heads == 0 && value_dim / heads <= 2 * limits::kHeadDim, "value_dim",
            "{} cannot be cut into {} heads of at most {}", value_dim, heads, 2 * limits::kHeadDim);
    f.integer("chunk_size", chunk_size, 2048, kExactStep, kMostChunk,
              "tokens that attention looks at one another in; a multiple of 16");
    f.check(chunk_size % kExactStep == 0, "chunk_size", "{} is no multiple of {}", chunk_size,
            kExactStep);
    has_rope = f.object(
        "rope", [&](ConfigFields& inner) { rope.fields(inner, z_dim / heads); },
        "rotary positions, an object as attention's; omitted: none");
  }

  AttentionOptions options(const LayerContext& context) const {
    AttentionOptions options;
    options.heads = options.kv_heads = heads;
    options.head_dim = z_dim / heads;
    options.value_dim = value_dim / heads;
    options.segment = chunk_size;
    options.prefix = context.prefix;
    if (has_rope) options.angles = rope.angles();
    return options;
  }
};

// Queries and keys made of one shared vector z: z gamma + beta, each with its own.
class SharedHeads {
 public:
  SharedHeads() = default;
  SharedHeads(int64_t z_dim, const Initializer& gamma, const ParameterScope& scope) {
    const Initializer zero = initializers::constant(0);
    q_gamma_ = scope.tensor("q_gamma", {z_dim}, gamma);
    q_beta_ = scope.tensor("q_beta", {z_dim}, zero);
    k_gamma_ = scope.tensor("k_gamma", {z_dim}, gamma);
    k_beta_ = scope.tensor("k_beta", {z_dim}, zero);
  }

  // What attention of the options gives; z [rows, z_dim], v [rows, value_dim].
  Tensor attend(const LayerInput& input, const Tensor& z, const Tensor& v,
                const AttentionOptions& options, JournalSlot slot) const {
    const auto heads = [&](const Tensor& gamma, const Tensor& beta) {
      const Tensor own = add_bias(input.context, scale_columns(input.context, z, gamma), beta);
      return turned(input, own, options.head_dim, options.angles);
    };
    return attention(input.context, heads(q_gamma_, q_beta_), heads(k_gamma_, k_beta_), v, options,
                     input.batch, slot);
  }

 private:
  Tensor q_gamma_, q_beta_, k_gamma_, k_beta_;
};

double attention_cost(const AttentionOptions& options, double context) {
  return 2 * rows_seen(options, std::min(context, static_cast<double>(options.segment) / 2)) *
         static_cast<double>(options.heads * (options.head_dim + options.value_dim));
}

// Of a complex mode: its update 8 operations, its part of the output 4.
double average_cost(int64_t channels, int64_t modes) {
  return 12.0 * static_cast<double>(channels * modes);
}

struct MegaConfig {
  ChunkAttentionConfig attention;
  int64_t ndim = 0;

  void fields(ConfigFields& f, const LayerContext& context) {
    attention.fields(f, context, false);
    f.integer("ndim", ndim, kAverages, 1, limits::kChannelState, "moving averages of a channel");
  }
};

class MegaMixer final : public Mixer {
 public:
  using Config = MegaConfig;

  MegaMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
            const StateScope& states)
      : d_(context.hidden_size),
        modes_(config.ndim),
        z_dim_(config.attention.z_dim),
        value_dim_(config.attention.value_dim),
        options_(config.attention.options(context)) {
    const Initializer in = projection_initializer(context), zero = initializers::constant(0);
    const ParameterScope move = scope.child("move");
    const Initializer rates = initializers::normal(0.2), one = initializers::normal(1);
    delta_ = move.tensor("delta", {d_, modes_}, rates);
    alpha_ = move.tensor("alpha", {d_, modes_}, rates);
    // 1 and -1 in turn, nearly.
    beta_ = move.tensor("beta", {d_, modes_}, [modes = modes_](Random& random, int64_t i) {
      return static_cast<float>((i % modes % 2 == 0 ? 1 : -1) + kSmall * random.normal());
    });
    gamma_ = move.tensor("gamma", {d_, modes_}, one);
    omega_ = move.tensor("omega", {d_}, one);
    const int64_t width = 2 * d_ + z_dim_ + value_dim_;
    v_proj_ = scope.matrix("v_proj.weight", value_dim_, d_, in);
    v_bias_ = scope.tensor("v_proj.bias", {value_dim_}, zero);
    mx_proj_ = scope.matrix("mx_proj.weight", width, d_, in);
    mx_bias_ = scope.tensor("mx_proj.bias", {width}, zero);
    h_proj_ = scope.matrix("h_proj.weight", d_, value_dim_, residual_initializer(context));
    h_bias_ = scope.tensor("h_proj.bias", {d_}, zero);
    heads_ = SharedHeads(z_dim_, initializers::normal(kSmall), scope);
    average_ = states.add(diagonal_ssm_journal(d_, modes_));
    key_value_ = states.add(attention_journal(options_));
  }

  // phi (h - x), which added to x is the gated residual of equation 16, phi h + (1 - phi) x.
  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const DiagonalModes modes = known_->get(context, {delta_, alpha_, beta_, gamma_}, [&] {
      return damped_average_modes(context, delta_, alpha_, beta_, gamma_);
    });
    const auto silu = [&](const Tensor& t) { return activate(context, t, Activation::silu); };
    const Tensor average =
        silu(diagonal_ssm(context, x, modes.poles, modes.reads, omega_, input.batch, average_));
    const Tensor v = silu(linear(context, x, v_proj_, v_bias_));
    const Tensor all = linear(context, average, mx_proj_, mx_bias_);
    const Tensor phi = sigmoid(context, all.column_slice(0, d_));
    const Tensor inner = silu(all.column_slice(d_, z_dim_ + value_dim_));
    const Tensor seen =
        heads_.attend(input, inner.column_slice(0, z_dim_), v, options_, key_value_);
    const Tensor passed = multiply(context, seen, inner.column_slice(z_dim_, value_dim_));
    const Tensor h = silu(add(context, all.column_slice(d_ + z_dim_ + value_dim_, d_),
                              linear(context, passed, h_proj_, h_bias_)));
    return multiply(context, phi, add(context, h, scale(context, x, -1)));
  }

  double sequence_cost(double context) const override {
    return attention_cost(options_, context) + average_cost(d_, modes_);
  }

  int64_t context_limit() const override { return pronghorn::context_limit(options_.angles); }

 private:
  int64_t d_, modes_, z_dim_, value_dim_;
  AttentionOptions options_;
  SharedHeads heads_;
  JournalSlot average_, key_value_;
  Weight v_proj_, mx_proj_, h_proj_;
  Tensor delta_, alpha_, beta_, gamma_, omega_, v_bias_, mx_bias_, h_bias_;
  std::unique_ptr<Known<DiagonalModes>> known_ = std::make_unique<Known<DiagonalModes>>();
};

struct MegalodonConfig {
  ChunkAttentionConfig attention;
  int64_t cema_ndim = 0, norm_num_groups = 0;

  void fields(ConfigFields& f, const LayerContext& context) {
    const int64_t d = context.hidden_size;
    attention.fields(f, context, true);
    f.integer("cema_ndim", cema_ndim, kAverages, 1, limits::kChannelState,
              "complex moving averages of a channel");
    f.integer("norm_num_groups", norm_num_groups,
              {std::gcd<int64_t>(d, 32), "greatest divisor that hidden_size has in common with 32"},
              1, d, "groups of channels in TimestepNorm");
    f.check(d % norm_num_groups == 0, "norm_num_groups", "hidden_size {} has no {} groups", d,
            norm_num_groups);
  }
};

// Of theta: angles that are log-uniform over the channels, in an order of their own.
Initializer turn_initializer(int64_t channels) {
  return [channels, angles = std::vector<float>()](Random& random, int64_t i) mutable {
    if (angles.empty()) {
      const auto d = static_cast<double>(channels);
      for (int64_t k = 1; k <= channels; ++k) {
        const double share =
            std::min(std::exp(-static_cast<double>(k) * std::log(d) / d), 1 - 1e-4);
        angles.push_back(static_cast<float>(std::log(share / (1 - share))));
      }
      for (size_t k = angles.size(); k > 1; --k) {
        std::swap(angles[k - 1], angles[static_cast<size_t>(random.below(k))]);
      }
    }
    return angles[static_cast<size_t>(i)];
  };
}

class MegalodonMixer final : public Mixer {
 public:
  using Config = MegalodonConfig;

  MegalodonMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
                 const StateScope& states)
      : d_(context.hidden_size),
        modes_(config.cema_ndim),
        groups_(config.norm_num_groups),
        epsilon_(context.norm_epsilon),
        options_(config.attention.options(context)) {
    options_.scale = 1;  // queries and keys are units
    const int64_t z_dim = config.attention.z_dim, value_dim = config.attention.value_dim;
    const Initializer in = projection_initializer(context), out = residual_initializer(context);
    const Initializer zero = initializers::constant(0), one = initializers::constant(1);
    const ParameterScope norm = scope.child("timenorm"), cema = scope.child("cema");
    norm_weight_ = norm.tensor("weight", {d_}, one);
    norm_bias_ = norm.tensor("bias", {d_}, zero);
    const Initializer rates = initializers::normal(0.2);
    alpha_ = cema.tensor("alpha", {d_, modes_}, rates);
    delta_ = cema.tensor("delta", {d_, modes_}, rates);
    theta_ = cema.tensor("theta", {d_}, turn_initializer(d_));
    gamma_ = cema.tensor("gamma", {d_, modes_, 2}, [](Random& random, int64_t i) {
      return i % 2 == 0 ? static_cast<float>(random.normal()) : 0.0f;
    });
    omega_ = cema.tensor("omega", {d_}, [](Random& random, int64_t) {
      return static_cast<float>(std::clamp(0.25 * random.normal(), -1.0, 1.0));
    });
    rmsnorm_ = scope.tensor("rmsnorm.weight", {d_}, one);
    wv_ = scope.matrix("wv.weight", value_dim, d_, in);
    v_bias_ = scope.tensor("wv.bias", {value_dim}, zero);
    wz_ = scope.matrix("wz.weight", z_dim, d_, in);
    z_bias_ = scope.tensor("wz.bias", {z_dim}, zero);
    wr_ = scope.matrix("wr.weight", value_dim, d_, in);
    r_bias_ = scope.tensor("wr.bias", {value_dim}, zero);
    wh1_ = scope.matrix("wh1.weight", d_, d_, out);
    h1_bias_ = scope.tensor("wh1.bias", {d_}, zero);
    wh2_ = scope.matrix("wh2.weight", d_, value_dim, out);
    heads_ = SharedHeads(z_dim, one, scope);
    slots_ = {states.add(timestep_norm_journal(groups_)),
              states.add(timestep_norm_journal(groups_))};
    average_ = states.add(diagonal_ssm_journal(d_, modes_));
    key_value_ = states.add(attention_journal(options_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const DiagonalModes modes = known_->get(context, {alpha_, delta_, theta_, gamma_}, [&] {
      return complex_average_modes(context, alpha_, delta_, theta_, gamma_);
    });
    const Tensor t =
        timestep_norm(context, x, norm_weight_, norm_bias_, groups_, epsilon_, input.batch, slots_);
    const Tensor average = rms_norm(
        context, diagonal_ssm(context, t, modes.poles, modes.reads, omega_, input.batch, average_),
        rmsnorm_, epsilon_);
    const auto [z, r, h] =
        linear_maps(context, average, {{&wz_, &z_bias_}, {&wr_, &r_bias_}, {&wh1_, &h1_bias_}});
    const Tensor v = activate(context, linear(context, t, wv_, v_bias_), Activation::silu);
    // An RMSNorm of each head over sqrt(head_dim).
    const auto head_dim = static_cast<float>(options_.head_dim);
    const Tensor unit = l2_normalize(context, z, options_.head_dim, head_dim * epsilon_);
    const Tensor seen = heads_.attend(input, unit, v, options_, key_value_);
    return add(context, h, linear(context, swiglu(context, r, seen), wh2_));
  }

  // TimestepNorm: about 12 operations a channel.
  double sequence_cost(double context) const override {
    return attention_cost(options_, context) + average_cost(d_, modes_) +
           12.0 * static_cast<double>(d_);
  }

  int64_t context_limit() const override { return pronghorn::context_limit(options_.angles); }

 private:
  int64_t d_, modes_, groups_;
  float epsilon_;
  AttentionOptions options_;
  SharedHeads heads_;
  TimestepNormSlots slots_;
  JournalSlot average_, key_value_;
  Weight wv_, wz_, wr_, wh1_, wh2_;
  Tensor norm_weight_, norm_bias_, alpha_, delta_, theta_, gamma_, omega_, rmsnorm_;
  Tensor v_bias_, z_bias_, r_bias_, h1_bias_;
  std::unique_ptr<Known<DiagonalModes>> known_ = std::make_unique<Known<DiagonalModes>>();
};

}  // namespace

MixerType mega_mixer_type() {
  return mixer_type<MegaMixer>("mega", "moving averages, and attention within chunks, behind gates",
                               "arXiv 2209.10655",
                               R"({"type": "mega", "ndim": 4, "chunk_size": 32, "rope": {}})");
}

MixerType megalodon_mixer_type() {
  return mixer_type<MegalodonMixer>(
      "megalodon", "complex moving averages, and attention of units within chunks",
      "arXiv 2404.08801",
      R"({"type": "megalodon", "heads": 2, "z_dim": 16, "cema_ndim": 4, "chunk_size": 32,
          "rope": {}})");
}

}  // namespace pronghorn
