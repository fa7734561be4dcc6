// Mamba-3 layer (arXiv 2603.15569), with one input and output per head or several: the state space
// of Mamba-2 discretised by trapezoids, with a state that tokens turn, no convolution, and norms
// and biases on B and C. Parameter names are those of the flash-linear-attention checkpoints.
#include <cmath>
#include <numbers>
#include <vector>

#include "layers/layers.h"
#include "layers/linear_parts.h"
#include "layers/mamba_core.h"
#include "layers/toolbox.h"
#include "ops/diagonal_scan.h"
#include "ops/gates.h"
#include "ops/linear.h"
#include "ops/outer_product_state.h"
#include "ops/pointwise.h"
#include "ops/state_rows.h"

namespace pronghorn {
namespace {

struct Mamba3Config : StateHeads {
  int64_t rank = 1;
  double rope_fraction = 0, least_rate = 0, norm_epsilon = 0;
  TimeStepConfig time_step;
  bool bias = false, output_norm = false;

  void fields(ConfigFields& f, const LayerContext& context) {
    head_fields(f, context, 2);
    f.integer(
        "rank", rank, 1, 1, kMostUpdates,
        "inputs and outputs of a head (MIMO): columns of B and C, each with a scaled x and z");
    f.number("rope_fraction", rope_fraction, 0.5, 0.0, 1.0,
             "share of B's and C's columns that are turned, in pairs");
    f.check(pairs() > 0, "rope_fraction", "{} of {} columns is no pair", rope_fraction, state);
    f.number("least_rate", least_rate, 1e-4, 1e-12, 1.0, "least decay per step size");
    time_step.fields(f);
    f.boolean("bias", bias, false, "on both projections");
    f.boolean("output_norm", output_norm, false, "RMSNorm of each head, before the gate");
    read_norm_epsilon(f, norm_epsilon, "of the norms of B, C and heads");
  }

  int64_t pairs() const {
    return static_cast<int64_t>(static_cast<double>(state) * rope_fraction) / 2;
  }
};

class Mamba3Mixer final : public Mixer {
 public:
  using Config = Mamba3Config;

  Mamba3Mixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
              const StateScope& states)
      : heads_(config.heads),
        rank_(config.rank),
        groups_(config.groups),
        state_size_(config.state),
        head_dim_(config.head_dim),
        inner_size_(heads_ * head_dim_),
        pairs_(config.pairs()),
        epsilon_(epsilon_or_default(config.norm_epsilon, context)) {
    options_.key_heads = options_.value_heads = heads_;
    options_.key_dim = state_size_;
    options_.value_dim = head_dim_;
    options_.updates = rank_;
    const int64_t d = context.hidden_size;
    const int64_t width = 2 * inner_size_ + 2 * rank_ * groups_ * state_size_ + 3 * heads_ + pairs_;
    in_proj_ = scope.matrix("in_proj.weight", width, d, projection_initializer(context));
    out_proj_ = scope.matrix("out_proj.weight", d, inner_size_, residual_initializer(context));
    const Initializer zero = initializers::constant(0), one = initializers::constant(1);
    if (config.bias) {
      in_bias_ = scope.tensor("in_proj.bias", {width}, zero);
      out_bias_ = scope.tensor("out_proj.bias", {d}, zero);
    }
    dt_bias_ = scope.tensor("dt_bias", {heads_}, config.time_step.bias());
    const Shape biases =
        rank_ == 1 ? Shape{heads_, state_size_} : Shape{rank_, heads_, state_size_};
    B_bias_ = scope.tensor("B_bias", biases, one).reshape({rank_ * heads_, state_size_});
    C_bias_ = scope.tensor("C_bias", biases, one).reshape({rank_ * heads_, state_size_});
    if (rank_ > 1) {
      const Initializer share = initializers::constant(1 / static_cast<float>(rank_));
      const Shape shape = {rank_, heads_, head_dim_};
      const auto scales = [&](const char* name, const Initializer& initial) {
        return scope.tensor(name, shape, initial).reshape({rank_ * inner_size_});
      };
      mimo_x_ = scales("mimo_x", share);
      mimo_z_ = scales("mimo_z", one);
      mimo_o_ = scales("mimo_o", share);
    }
    B_norm_ = scope.tensor("B_norm.weight", {state_size_}, one);
    C_norm_ = scope.tensor("C_norm.weight", {state_size_}, one);
    D_ = scope.tensor("D", {heads_}, one);
    if (config.output_norm) norm_ = scope.tensor("norm.weight", {inner_size_}, one);
    const auto least = static_cast<float>(config.least_rate);
    least_rate_ = Tensor::full({heads_}, least);
    minus_least_rate_ = Tensor::full({heads_}, -least);
    angles_ = states.add(running_sum_journal(heads_ * pairs_));
    before_ = PreviousRow(rank_ * heads_ * state_size_ + inner_size_ + heads_, states);
    state_ = states.add(outer_product_state_journal(options_));
  }

  // The state h_t = a_t (h_{t-1} + (1 - l_t) dt_t B_{t-1} x_{t-1}^T) + l_t dt_t B_t x_t^T is read
  // as C_t^T h_t. What is multiplied with a_t here, the operator keeps: at token t it writes the
  // row before, with what that and this one give it, and own_read() adds the last term.
  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const Parts parts = project(context, x);
    const Steps steps = steps_of(context, parts);
    const Tensor turns = running_sum(context, angle_steps(context, steps.dt, parts.angles),
                                     2 * std::numbers::pi_v<float>, input.batch, angles_);
    const Tensor heads_turns = copies(context, turns);
    const Tensor k = turned_heads(context, normed(context, parts.B, B_norm_), B_bias_, heads_turns,
                                  rank_ * groups_);
    const Tensor q = turned_heads(context, normed(context, parts.C, C_norm_), C_bias_, heads_turns,
                                  rank_ * groups_);

    const Tensor written[] = {k, parts.x, steps.own};
    const Tensor before = before_.forward(input, concatenate_columns(context, written));
    const int64_t keys = rank_ * heads_ * state_size_;
    Past past;
    past.k = before.column_slice(0, keys);
    past.x = scaled_copies(context, before.column_slice(keys, inner_size_), mimo_x_);
    const Tensor given = add(context, before.column_slice(keys + inner_size_, heads_), steps.late);
    const Tensor decay = activate(context, steps.log_decay, Activation::exp);
    past.strength = multiply(context, given, decay);

    OuterProductStateInputs inputs;
    inputs.q = rows_of(context, q);
    inputs.k = rows_of(context, past.k);
    inputs.v = rows_of(context, past.x);
    inputs.log_decay = first_rows(context, steps.log_decay);
    inputs.beta = rows_of(context, copies(context, past.strength));
    Tensor y = outer_product_state(context, inputs, options_, input.batch, state_);
    y = y.reshape({x.rows(), rank_ * inner_size_});
    const Tensor own_x = scaled_copies(context, parts.x, mimo_x_);
    const Tensor own = copies(context, steps.own);
    for (int64_t d = 0; d < rank_; ++d) {
      OwnReadInputs read;
      read.y = y;
      read.v = shifted(context, own_x, d);
      read.q = q;
      read.k = shifted(context, k, d);
      read.strength = own;
      if (d == 0) read.skip = tiled(context, D_);
      y = own_read(context, read, rank_ * heads_);
      if (d > 0) y = later_writes(context, y, q, past, d);
    }
    const Tensor z = scaled_copies(context, parts.z, mimo_z_);
    Tensor out = norm_.defined() ? gated_rms_norm(context, y, z, tiled(context, norm_), head_dim_,
                                                  epsilon_, GateOrder::norm_then_gate)
                                 : swiglu(context, z, y);
    if (rank_ > 1) out = sum_of_copies(context, scale_columns(context, out, mimo_o_));
    return linear(context, out, out_proj_, out_bias_);
  }

  // Per number of the state: decay 1, each write 2, each read 2. Turning B and C: 6 for each pair
  // of columns and angle; what a token reads of itself, and of the token before, besides.
  double sequence_cost(double) const override {
    const auto rank = static_cast<double>(rank_);
    return (1 + 4 * rank) * static_cast<double>(inner_size_ * state_size_) +
           12.0 * rank * static_cast<double>(heads_ * pairs_) +
           2.0 * rank * (2 * rank - 1) * static_cast<double>(heads_ * state_size_ + inner_size_);
  }

 private:
  // What x is projected to.
  struct Parts {
    Tensor z, x, B, C, dt, rate, share, angles;
  };
  Parts project(const Context& context, const Tensor& x) const {
    const Tensor all = linear(context, x, in_proj_, in_bias_);
    int64_t begin = 0;
    const auto take = [&](int64_t width) {
      return all.column_slice((begin += width) - width, width);
    };
    Parts parts;
    parts.z = take(inner_size_);
    parts.x = take(inner_size_);
    parts.B = take(rank_ * groups_ * state_size_);
    parts.C = take(rank_ * groups_ * state_size_);
    parts.dt = take(heads_);
    parts.rate = take(heads_);
    parts.share = take(heads_);
    parts.angles = take(pairs_);
    return parts;
  }

  // [rows, heads]: step sizes; log-decays; the strengths of a token's own write, and of the one
  // that it adds to the token before it.
  struct Steps {
    Tensor dt, log_decay, own, late;
  };
  Steps steps_of(const Context& context, const Parts& parts) const {
    Steps steps;
    steps.dt = activate(context, add_bias(context, parts.dt, dt_bias_), Activation::softplus);
    // max(softplus(rate), least_rate)
    const Tensor above =
        add_bias(context, activate(context, parts.rate, Activation::softplus), minus_least_rate_);
    const Tensor rate = add_bias(context, activate(context, above, Activation::relu), least_rate_);
    steps.log_decay = scale(context, multiply(context, rate, steps.dt), -1);
    steps.own = multiply(context, sigmoid(context, parts.share), steps.dt);
    steps.late = add(context, steps.dt, scale(context, steps.own, -1));
    return steps;
  }

  // The norm of each group's columns.
  Tensor normed(const Context& context, const Tensor& x, const Tensor& weight) const {
    std::vector<Tensor> groups;
    for (int64_t g = 0; g < rank_ * groups_; ++g) {
      const Tensor group = x.column_slice(g * state_size_, state_size_);
      groups.push_back(rms_norm(context, group, weight, epsilon_));
    }
    return groups.size() == 1 ? groups.front() : concatenate_columns(context, groups);
  }

  // ---- several inputs and outputs: columns of one after those of the other ----

  // What the token before gives the state.
  struct Past {
    Tensor k, x;      // of all inputs
    Tensor strength;  // [rows, heads]
  };

  // [rows, columns] -> [rows, rank columns]
  Tensor copies(const Context& context, const Tensor& t) const {
    if (rank_ == 1) return t;
    return concatenate_columns(context, std::vector<Tensor>(static_cast<size_t>(rank_), t));
  }
  Tensor scaled_copies(const Context& context, const Tensor& t, const Tensor& weight) const {
    return rank_ == 1 ? t : scale_columns(context, copies(context, t), weight);
  }
  // A vector of parameters, once for each.
  Tensor tiled(const Context& context, const Tensor& vector) const {
    if (rank_ == 1) return vector;
    return copies(context, vector.reshape({1, vector.size()})).reshape({rank_ * vector.size()});
  }
  // A row for each, as the operator takes them: [rows, rank columns] -> [rows rank, columns]
  Tensor rows_of(const Context& context, const Tensor& t) const {
    if (rank_ == 1) return t;
    const Tensor whole = concatenate_columns(context, {&t, 1});
    return whole.reshape({t.rows() * rank_, t.columns() / rank_});
  }
  // The same with t in the first of a token's rows, and zeros in the others.
  Tensor first_rows(const Context& context, const Tensor& t) const {
    if (rank_ == 1) return t;
    const Tensor parts[] = {t, Tensor::zeros({t.rows(), (rank_ - 1) * t.columns()})};
    return concatenate_columns(context, parts).reshape({t.rows() * rank_, t.columns()});
  }
  // Input r + d in the place of input r, round about.
  Tensor shifted(const Context& context, const Tensor& t, int64_t d) const {
    if (d == 0) return t;
    const int64_t first = t.columns() / rank_ * d;
    const Tensor parts[] = {t.column_slice(first, t.columns() - first), t.column_slice(0, first)};
    return concatenate_columns(context, parts);
  }
  Tensor sum_of_copies(const Context& context, const Tensor& t) const {
    Tensor sum = t.column_slice(0, inner_size_);
    for (int64_t r = 1; r < rank_; ++r) {
      sum = add(context, sum, t.column_slice(r * inner_size_, inner_size_));
    }
    return sum;
  }
  // The operator lets output r read what inputs up to r wrote for the token before; this adds what
  // input r + d did.
  Tensor later_writes(const Context& context, const Tensor& y, const Tensor& q, const Past& past,
                      int64_t d) const {
    std::vector<Tensor> strengths(static_cast<size_t>(rank_ - d), past.strength);
    strengths.push_back(Tensor::zeros({y.rows(), d * heads_}));
    OwnReadInputs read;
    read.y = y;
    read.v = shifted(context, past.x, d);
    read.q = q;
    read.k = shifted(context, past.k, d);
    read.strength = concatenate_columns(context, strengths);
    return own_read(context, read, rank_ * heads_);
  }

  int64_t heads_, rank_, groups_, state_size_, head_dim_, inner_size_, pairs_;
  float epsilon_;
  OuterProductStateOptions options_;
  JournalSlot angles_, state_;
  PreviousRow before_;
  Weight in_proj_, out_proj_;
  Tensor in_bias_, out_bias_, dt_bias_, B_bias_, C_bias_, B_norm_, C_norm_, D_, norm_;
  Tensor mimo_x_, mimo_z_, mimo_o_;  // of all inputs; undefined where there is one
  Tensor least_rate_, minus_least_rate_;
};

}  // namespace

MixerType mamba3_mixer_type() {
  return mixer_type<Mamba3Mixer>(
      "mamba3", "state space by trapezoids, with a state that tokens turn", "arXiv 2603.15569",
      R"({"type": "mamba3", "heads": 2, "state": 8})");
}

}  // namespace pronghorn
