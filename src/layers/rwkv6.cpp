// Time mixing of RWKV-6 "Finch" (Peng et al., arXiv 2404.05892): linear attention whose state
// decays channel by channel, at rates that tokens choose, and is read before a token has written to
// it. Parameter names are those of the flash-linear-attention checkpoints.
#include <array>
#include <cmath>
#include <string>

#include "layers/layers.h"
#include "layers/linear_parts.h"
#include "layers/rwkv_parts.h"
#include "layers/toolbox.h"
#include "ops/linear.h"
#include "ops/outer_product_state.h"
#include "ops/pointwise.h"
#include "ops/rwkv7.h"
#include "ops/state_rows.h"
#include "ops/token_shift.h"

namespace pronghorn {
namespace {

struct Rwkv6Config {
  HeadsConfig heads;
  int64_t value_head_dim = 0, mix_low_rank_dim = 0, decay_low_rank_dim = 0;
  double norm_epsilon = 0;

  void fields(ConfigFields& f, const LayerContext& context) {
    heads.fields(f, context, "heads, each with a state", "of receptance and keys");
    f.integer("value_head_dim", value_head_dim, {heads.head_dim, "`head_dim`"}, 1,
              2 * limits::kHeadDim, "of values");
    f.integer("mix_low_rank_dim", mix_low_rank_dim, 32, 1, limits::kWidth,
              "rank of each map to the mixes of the token shift");
    f.integer("decay_low_rank_dim", decay_low_rank_dim, 64, 1, limits::kWidth,
              "rank of the map to decays");
    f.number("norm_epsilon", norm_epsilon,
             {0.0, "`value_head_dim` times that of the model's norms"}, 0, 1,
             "of the norm of each head");
  }
};

class Rwkv6Mixer final : public Mixer {
 public:
  using Config = Rwkv6Config;

  Rwkv6Mixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
             const StateScope& states)
      : mix_rank_(config.mix_low_rank_dim),
        norm_epsilon_(config.norm_epsilon > 0
                          ? static_cast<float>(config.norm_epsilon)
                          : context.norm_epsilon * static_cast<float>(config.value_head_dim)) {
    const int64_t d = context.hidden_size;
    options_.key_heads = options_.value_heads = config.heads.heads;
    options_.key_dim = config.heads.head_dim;
    options_.value_dim = config.value_head_dim;
    options_.channel_decay = true;
    make_mixes(context, scope);
    make_projections(config, context, scope);
    whole_ = Tensor::full({d}, 1.0f);
    shift_ = states.add(token_shift_journal(d));
    before_ = PreviousRow(2 * key_width() + value_width(), states);
    state_ = states.add(outer_product_state_journal(options_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const std::array<Tensor, kMixes> mixed = mix(input, x);
    const Tensor r = linear(context, mixed[kR], r_proj_);
    const Tensor narrow = soft_cap(context, linear(context, mixed[kW], w_down_), 1);
    const Tensor decay = linear(context, narrow, w_up_, w_bias_);
    const Tensor k = linear(context, mixed[kK], k_proj_), v = linear(context, mixed[kV], v_proj_);
    const Tensor g = linear(context, mixed[kG], g_proj_);

    // S_t = Diag(w_t) S_{t-1} + k_t v_t^T is read before it is written: what the operator reads
    // after it has written the row before.
    const Tensor parts[] = {k, decay, v};
    const Tensor before = before_.forward(input, concatenate_columns(context, parts));
    OuterProductStateInputs inputs;
    inputs.q = r;
    inputs.k = before.column_slice(0, key_width());
    const Tensor rate =
        activate(context, before.column_slice(key_width(), key_width()), Activation::exp);
    inputs.log_decay = scale(context, rate, -1);
    inputs.v = before.column_slice(2 * key_width(), value_width());
    OwnReadInputs own;
    own.y = outer_product_state(context, inputs, options_, input.batch, state_);
    own.v = v;
    own.q = r;
    own.k = k;
    own.weight = bonus_;
    Rwkv7OutputInputs out;
    out.x = own_read(context, own, options_.key_heads);
    out.gate = activate(context, g, Activation::silu);
    out.weight = g_norm_weight_;
    out.bias = g_norm_bias_;
    return linear(context, rwkv7_output(context, out, options_.value_dim, norm_epsilon_), o_proj_);
  }

  // Per number of the state: decay 1, write 2, read 2; what a token reads of itself besides.
  double sequence_cost(double) const override {
    return 5.0 * static_cast<double>(key_width() * options_.value_dim) +
           3.0 * static_cast<double>(key_width()) + 2.0 * static_cast<double>(value_width());
  }

 private:
  enum Mix : int64_t { kR, kW, kK, kV, kG, kMixes };  // in the order of x_bias

  int64_t key_width() const { return options_.key_heads * options_.key_dim; }
  int64_t value_width() const { return options_.value_heads * options_.value_dim; }

  void make_mixes(const LayerContext& context, const ParameterScope& scope) {
    const int64_t d = context.hidden_size;
    const RwkvDepth depth(context);
    const ParameterScope inner = scope.child("x_proj");
    x_mix_ = inner.tensor("0.mu", {d}, rwkv_shift_initializer(d, depth.left));
    x_down_ = inner.matrix("0.linear.weight", kMixes * mix_rank_, d, initializers::constant(0));
    for (size_t s = 0; s < x_up_.size(); ++s) {
      x_up_[s] = inner.matrix("2." + std::to_string(s) + ".weight", d, mix_rank_,
                              initializers::uniform(-0.01, 0.01));
    }
    const double left = depth.left, done = depth.done;
    x_bias_ = scope.tensor("x_bias", {kMixes, d}, [=](Random&, int64_t i) {
      const int64_t which = i / d;
      const double place = static_cast<double>(i % d) / static_cast<double>(d);
      const double power = which == kR || which == kG ? 0.5 * left : left;
      return static_cast<float>(1 - std::pow(place, power) - (which == kV ? 0.3 * done : 0));
    });
  }

  void make_projections(const Config& config, const LayerContext& context,
                        const ParameterScope& scope) {
    const int64_t d = context.hidden_size, keys = key_width(), values = value_width();
    const double bound = 0.5 / std::sqrt(static_cast<double>(d));
    const double done = RwkvDepth(context).done;
    const auto project = [&](const char* name, int64_t width, double most) {
      return scope.matrix(std::string(name) + ".weight", width, d,
                          initializers::uniform(-most, most));
    };
    r_proj_ = project("r_proj.linear", keys, bound);
    k_proj_ = project("k_proj.linear", keys, 0.1 * bound);
    v_proj_ = project("v_proj.linear", values, bound);
    g_proj_ = project("g_proj.linear", values, bound);
    o_proj_ = scope.matrix("o_proj.weight", d, values, residual_initializer(context));
    const ParameterScope low_rank = scope.child("w_proj").child("linear").child("lora");
    w_down_ = low_rank.matrix("0.weight", config.decay_low_rank_dim, d, initializers::constant(0));
    w_up_ = low_rank.matrix("2.weight", keys, config.decay_low_rank_dim,
                            initializers::uniform(-0.01, 0.01));
    w_bias_ = low_rank.tensor("2.bias", {keys}, [=](Random&, int64_t i) {
      return static_cast<float>(-6 + 5 * std::pow(along_channels(i, keys) + 0.5, 0.7 + 1.3 * done));
    });
    bonus_ = scope.tensor("bonus", {options_.key_heads, options_.key_dim}, [=](Random&, int64_t i) {
      const double ripple = 0.1 * static_cast<double>((i + 1) % 3 - 1);
      return static_cast<float>(done * (0.5 - along_channels(i, keys)) + ripple);
    });
    g_norm_weight_ = scope.tensor("g_norm.weight", {values}, initializers::constant(1));
    g_norm_bias_ = scope.tensor("g_norm.bias", {values}, initializers::constant(0));
  }

  // x mixed with the row before, in proportions that it and its own channels choose.
  std::array<Tensor, kMixes> mix(const LayerInput& input, const Tensor& x) const {
    const Context& context = input.context;
    const Tensor shifts[] = {x_mix_, whole_};
    const auto shifted = token_shift(context, x, shifts, input.batch, shift_);
    const Tensor narrow = soft_cap(context, linear(context, shifted[0], x_down_), 1);
    const Tensor difference = add(context, shifted[1], scale(context, x, -1));
    const int64_t d = x.columns();
    const Tensor biases = x_bias_.reshape({1, kMixes * d});
    std::array<Tensor, kMixes> mixed;
    for (size_t s = 0; s < mixed.size(); ++s) {
      const auto index = static_cast<int64_t>(s);
      const Tensor share = linear(context, narrow.column_slice(index * mix_rank_, mix_rank_),
                                  x_up_[s], biases.column_slice(index * d, d));
      mixed[s] = add(context, x, multiply(context, difference, share));
    }
    return mixed;
  }

  int64_t mix_rank_;
  float norm_epsilon_;
  OuterProductStateOptions options_;
  JournalSlot shift_, state_;
  PreviousRow before_;
  Tensor x_mix_, whole_, x_bias_, w_bias_, bonus_, g_norm_weight_, g_norm_bias_;
  Weight x_down_, r_proj_, k_proj_, v_proj_, g_proj_, o_proj_, w_down_, w_up_;
  std::array<Weight, kMixes> x_up_;
};

}  // namespace

MixerType rwkv6_mixer_type() {
  return mixer_type<Rwkv6Mixer>("rwkv6",
                                "linear attention whose channels decay at rates that tokens choose",
                                "arXiv 2404.05892",
                                R"({"type": "rwkv6", "heads": 2, "mix_low_rank_dim": 5,
                                    "decay_low_rank_dim": 6})");
}

}  // namespace pronghorn
