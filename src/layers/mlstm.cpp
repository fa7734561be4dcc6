// mLSTM of xLSTM (Beck et al., arXiv 2405.04517), as xLSTM-7B has it (arXiv 2503.13427): a matrix
// memory with an exponential input gate and a forget gate per head, read relative to the sum of
// what was written. Parameter names are those of the published checkpoints.
//
// Gates are capped, so that e^gate and the sums of them stay far inside f32 and the running maximum
// of the paper's equations, which cancels, is not needed: h = C^T q / max(|n . q|, 1) of the true
// state.
#include <cmath>
#include <string>

#include "layers/layers.h"
#include "layers/linear_parts.h"
#include "layers/toolbox.h"
#include "ops/gates.h"
#include "ops/linear.h"
#include "ops/linear_maps.h"
#include "ops/outer_product_state.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

constexpr double kMostGate = 30;  // e^30 times a million tokens is far below the largest f32

struct MlstmConfig {
  HalfKeyHeads heads;
  double gate_soft_cap = 0, norm_epsilon = 0;

  void fields(ConfigFields& f, const LayerContext& context) {
    heads.fields(f, context);
    f.number("gate_soft_cap", gate_soft_cap, 15.0, 0.1, kMostGate,
             "c of c tanh(gate / c), of both gates before their exp and sigmoid");
    read_norm_epsilon(f, norm_epsilon, "of the norm of heads");
  }
};

class MlstmMixer final : public Mixer {
 public:
  using Config = MlstmConfig;

  MlstmMixer(const Config& config, const LayerContext& context, const ParameterScope& scope,
             const StateScope& states)
      : value_dim_(config.heads.value_head_dim),
        soft_cap_(static_cast<float>(config.gate_soft_cap)),
        epsilon_(epsilon_or_default(config.norm_epsilon, context)) {
    const int64_t heads = config.heads.heads, d = context.hidden_size;
    options_.key_heads = options_.value_heads = heads;
    options_.key_dim = config.heads.head_dim;
    options_.value_dim = value_dim_ + 1;
    options_.query_scale = 1 / std::sqrt(static_cast<float>(options_.key_dim));
    const int64_t key_width = heads * config.heads.head_dim, value_width = heads * value_dim_;
    const Initializer in = projection_initializer(context);
    q_ = scope.matrix("q.weight", key_width, d, in);
    k_ = scope.matrix("k.weight", key_width, d, in);
    v_ = scope.matrix("v.weight", value_width, d, in);
    ogate_ = scope.matrix("ogate_preact.weight", value_width, d, in);
    const Initializer zero = initializers::constant(0);
    igate_ = scope.matrix("igate_preact.weight", heads, d, zero);
    igate_bias_ = scope.tensor("igate_preact.bias", {heads}, initializers::constant(-10));
    fgate_ = scope.matrix("fgate_preact.weight", heads, d, zero);
    fgate_bias_ = scope.tensor("fgate_preact.bias", {heads}, [heads](Random&, int64_t head) {
      return heads == 1 ? 3.0f : 3 + 3 * static_cast<float>(head) / static_cast<float>(heads - 1);
    });
    norm_ = scope.tensor("multihead_norm.weight", {value_width}, initializers::constant(1));
    out_proj_ = scope.matrix("out_proj.weight", d, value_width, residual_initializer(context));
    unit_ = Tensor::full({value_dim_}, 1);
    state_ = states.add(outer_product_state_journal(options_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const auto [q, k, v, o, i, f] = linear_maps(
        context, x,
        {{&q_}, {&k_}, {&v_}, {&ogate_}, {&igate_, &igate_bias_}, {&fgate_, &fgate_bias_}});
    const auto gate = [&](const Tensor& raw, Activation activation) {
      return activate(context, soft_cap(context, raw, soft_cap_), activation);
    };
    OuterProductStateInputs inputs;
    inputs.q = q;
    inputs.k = k;
    inputs.v = append_ones(context, v, value_dim_);
    inputs.beta = gate(i, Activation::exp);
    inputs.log_decay = gate(f, Activation::log_sigmoid);
    const Tensor read = outer_product_state(context, inputs, options_, input.batch, state_);
    const Tensor h = divide_by_sums(context, read, value_dim_, 1);
    const Tensor heads = h.reshape({h.size() / value_dim_, value_dim_});
    const Tensor normed = layer_norm(context, heads, unit_, {}, epsilon_).reshape(h.shape());
    const Tensor gated =
        multiply(context, scale_columns(context, normed, norm_), sigmoid(context, o));
    return linear(context, gated, out_proj_);
  }

  // Per number of the state: decay 1, write 2, read 2.
  double sequence_cost(double) const override {
    return 5.0 * static_cast<double>(options_.value_heads * options_.key_dim * options_.value_dim);
  }

 private:
  int64_t value_dim_;
  float soft_cap_, epsilon_;
  OuterProductStateOptions options_;
  JournalSlot state_;
  Weight q_, k_, v_, ogate_, igate_, fgate_, out_proj_;
  Tensor igate_bias_, fgate_bias_, norm_, unit_;
};

}  // namespace

MixerType mlstm_mixer_type() {
  return mixer_type<MlstmMixer>("mlstm",
                                "matrix memory with an exponential input gate, read as a mean",
                                "arXiv 2405.04517", R"({"type": "mlstm", "heads": 2})");
}

}  // namespace pronghorn
