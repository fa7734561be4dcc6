// Mamba-3 layer (arXiv 2603.15569), with one input and one output per head: the state space of
// Mamba-2 discretised by trapezoids, with a state that tokens turn, no convolution, and norms and
// biases on B and C. Parameter names are those of the flash-linear-attention checkpoints.
#include <cmath>
#include <numbers>
#include <vector>

#include "layers/layers.h"
#include "layers/linear_parts.h"
#include "layers/mamba_core.h"
#include "layers/toolbox.h"
#include "ops/diagonal_scan.h"
#include "ops/linear.h"
#include "ops/outer_product_state.h"
#include "ops/pointwise.h"
#include "ops/state_rows.h"

namespace pronghorn {
namespace {

struct Mamba3Config : StateHeads {
  double rope_fraction = 0, least_rate = 0, norm_epsilon = 0;
  TimeStepConfig time_step;
  bool bias = false, output_norm = false;

  void fields(ConfigFields& f, const LayerContext& context) {
    head_fields(f, context, 2);
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
        groups_(config.groups),
        state_size_(config.state),
        head_dim_(config.head_dim),
        inner_size_(heads_ * head_dim_),
        pairs_(config.pairs()),
        epsilon_(epsilon_or_default(config.norm_epsilon, context)) {
    options_.key_heads = options_.value_heads = heads_;
    options_.key_dim = state_size_;
    options_.value_dim = head_dim_;
    const int64_t d = context.hidden_size;
    const int64_t width = 2 * inner_size_ + 2 * groups_ * state_size_ + 3 * heads_ + pairs_;
    in_proj_ = scope.matrix("in_proj.weight", width, d, projection_initializer(context));
    out_proj_ = scope.matrix("out_proj.weight", d, inner_size_, residual_initializer(context));
    const Initializer zero = initializers::constant(0), one = initializers::constant(1);
    if (config.bias) {
      in_bias_ = scope.tensor("in_proj.bias", {width}, zero);
      out_bias_ = scope.tensor("out_proj.bias", {d}, zero);
    }
    dt_bias_ = scope.tensor("dt_bias", {heads_}, config.time_step.bias());
    B_bias_ = scope.tensor("B_bias", {heads_, state_size_}, one);
    C_bias_ = scope.tensor("C_bias", {heads_, state_size_}, one);
    B_norm_ = scope.tensor("B_norm.weight", {state_size_}, one);
    C_norm_ = scope.tensor("C_norm.weight", {state_size_}, one);
    D_ = scope.tensor("D", {heads_}, one);
    if (config.output_norm) norm_ = scope.tensor("norm.weight", {inner_size_}, one);
    const auto least = static_cast<float>(config.least_rate);
    least_rate_ = Tensor::full({heads_}, least);
    minus_least_rate_ = Tensor::full({heads_}, -least);
    angles_ = states.add(diagonal_scan_journal(heads_ * pairs_, true));
    before_ = PreviousRow(heads_ * state_size_ + inner_size_ + heads_, states);
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
    const Tensor k =
        turned_heads(context, normed(context, parts.B, B_norm_), B_bias_, turns, groups_);
    const Tensor q =
        turned_heads(context, normed(context, parts.C, C_norm_), C_bias_, turns, groups_);

    const Tensor written[] = {k, parts.x, steps.own};
    const Tensor before = before_.forward(input, concatenate_columns(context, written));
    const int64_t keys = heads_ * state_size_;
    OuterProductStateInputs inputs;
    inputs.q = q;
    inputs.k = before.column_slice(0, keys);
    inputs.v = before.column_slice(keys, inner_size_);
    inputs.log_decay = steps.log_decay;
    const Tensor given = add(context, before.column_slice(keys + inner_size_, heads_), steps.late);
    inputs.beta = multiply(context, given, activate(context, steps.log_decay, Activation::exp));
    OwnReadInputs own;
    own.y = outer_product_state(context, inputs, options_, input.batch, state_);
    own.v = parts.x;
    own.q = q;
    own.k = k;
    own.strength = steps.own;
    own.skip = D_;
    const Tensor y = own_read(context, own, heads_);
    const Tensor out = norm_.defined() ? gated_rms_norm(context, y, parts.z, norm_, head_dim_,
                                                        epsilon_, GateOrder::norm_then_gate)
                                       : swiglu(context, parts.z, y);
    return linear(context, out, out_proj_, out_bias_);
  }

  // Per number of the state: decay 1, write 2, read 2. Turning B and C: 6 for each pair of columns
  // and angle; what a token reads of itself besides.
  double sequence_cost(double) const override {
    return 5.0 * static_cast<double>(inner_size_ * state_size_) +
           12.0 * static_cast<double>(heads_ * pairs_) +
           2.0 * static_cast<double>(heads_ * state_size_ + inner_size_);
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
    parts.B = take(groups_ * state_size_);
    parts.C = take(groups_ * state_size_);
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
    for (int64_t g = 0; g < groups_; ++g) {
      const Tensor group = x.column_slice(g * state_size_, state_size_);
      groups.push_back(rms_norm(context, group, weight, epsilon_));
    }
    return groups.size() == 1 ? groups.front() : concatenate_columns(context, groups);
  }

  int64_t heads_, groups_, state_size_, head_dim_, inner_size_, pairs_;
  float epsilon_;
  OuterProductStateOptions options_;
  JournalSlot angles_, state_;
  PreviousRow before_;
  Weight in_proj_, out_proj_;
  Tensor in_bias_, out_bias_, dt_bias_, B_bias_, C_bias_, B_norm_, C_norm_, D_, norm_;
  Tensor least_rate_, minus_least_rate_;
};

}  // namespace

MixerType mamba3_mixer_type() {
  return mixer_type<Mamba3Mixer>(
      "mamba3", "state space by trapezoids, with a state that tokens turn", "arXiv 2603.15569",
      R"({"type": "mamba3", "heads": 2, "state": 8})");
}

}  // namespace pronghorn
