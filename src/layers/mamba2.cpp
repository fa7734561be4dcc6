// Mamba-2 layer (Dao and Gu, arXiv 2405.21060, section 7): one projection for everything, a short
// convolution over x, B and C, the gated outer-product state (SSD), a gated norm. Parameter names
// are those of the published checkpoints.
#include <cmath>
#include <limits>

#include "base/error.h"
#include "layers/layers.h"
#include "ops/linear.h"
#include "ops/outer_product_state.h"
#include "ops/pointwise.h"
#include "ops/short_convolution.h"

namespace pronghorn {
namespace {

constexpr int64_t kMaxWidth = 1 << 20;

class Mamba2Mixer final : public Mixer {
 public:
  Mamba2Mixer(const nlohmann::json& config, const LayerContext& context,
              const ParameterScope& scope, const StateScope& states)
      : heads_(config.at("heads")),
        inner_size_(heads_ * config.at("head_dim").get<int64_t>()),
        groups_state_(config.at("groups").get<int64_t>() * config.at("state").get<int64_t>()),
        conv_kernel_(config.at("conv_kernel")),
        time_step_limit_low_(config.at("time_step_limit").at(0)),
        norm_epsilon_(context.norm_epsilon) {
    if (!config.at("time_step_limit").at(1).is_null()) {
      time_step_limit_high_ = config.at("time_step_limit").at(1);
    }
    options_.value_heads = heads_;
    options_.key_heads = config.at("groups");
    options_.key_dim = config.at("state");
    options_.value_dim = config.at("head_dim");
    const int64_t d = context.hidden_size;
    const int64_t conv_width = inner_size_ + 2 * groups_state_;
    in_proj_ = scope.matrix("in_proj.weight", inner_size_ + conv_width + heads_, d,
                            initializers::normal(context.initializer_range));
    const double conv_bound = 1 / std::sqrt(static_cast<double>(conv_kernel_));
    conv_weight_ = scope.tensor("conv1d.weight", {conv_width, conv_kernel_},
                                initializers::uniform(-conv_bound, conv_bound), Decay::yes);
    if (config.at("conv_bias").get<bool>()) {
      conv_bias_ =
          scope.tensor("conv1d.bias", {conv_width}, initializers::uniform(-conv_bound, conv_bound));
    }
    dt_bias_ = scope.tensor(
        "dt_bias", {heads_},
        initializers::inverse_softplus_log_uniform(
            config.at("time_step_min"), config.at("time_step_max"), config.at("time_step_floor")));
    // A uniform in [1, 16], as in the paper's implementation.
    A_log_ = scope.tensor("A_log", {heads_}, [](Random& random, int64_t) {
      return static_cast<float>(std::log(random.uniform(1, 16)));
    });
    D_ = scope.tensor("D", {heads_}, initializers::constant(1));
    norm_ = scope.tensor("norm.weight", {inner_size_}, initializers::constant(1));
    out_proj_ =
        scope.matrix("out_proj.weight", d, inner_size_,
                     initializers::normal(context.initializer_range * context.residual_scale));
    if (config.at("bias").get<bool>()) {
      const Initializer zero = initializers::constant(0);
      in_bias_ = scope.tensor("in_proj.bias", {in_proj_.out()}, zero);
      out_bias_ = scope.tensor("out_proj.bias", {d}, zero);
    }
    conv_rows_ = states.add(short_convolution_journal(conv_width, conv_kernel_));
    state_ = states.add(outer_product_state_journal(options_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const CheckedBatch& batch = input.batch;
    const Tensor projected = linear(context, x, in_proj_, in_bias_);
    const int64_t conv_width = inner_size_ + 2 * groups_state_;
    const Tensor z = projected.column_slice(0, inner_size_);
    const Tensor raw_dt = projected.column_slice(inner_size_ + conv_width, heads_);
    const Tensor x_B_C = short_convolution(context, projected.column_slice(inner_size_, conv_width),
                                           conv_weight_, conv_bias_, true, batch, conv_rows_);
    const auto [dt, log_decay] =
        decay_gate(context, raw_dt, dt_bias_, A_log_, time_step_limit_low_, time_step_limit_high_);
    OuterProductStateInputs inputs;
    inputs.v = x_B_C.column_slice(0, inner_size_);
    inputs.k = x_B_C.column_slice(inner_size_, groups_state_);
    inputs.q = x_B_C.column_slice(inner_size_ + groups_state_, groups_state_);
    inputs.log_decay = log_decay;
    inputs.beta = dt;
    inputs.skip = D_;
    const Tensor y = outer_product_state(context, inputs, options_, batch, state_);
    // Each group of heads that shares B and C is normalised on its own.
    const Tensor normed = gated_rms_norm(context, y, z, norm_, inner_size_ / options_.key_heads,
                                         norm_epsilon_, GateOrder::gate_then_norm);
    return linear(context, normed, out_proj_, out_bias_);
  }

  // Per number of the state: decay 1, write 2, read 2.
  double sequence_cost(double) const override {
    return 5.0 * static_cast<double>(inner_size_ * options_.key_dim);
  }

 private:
  int64_t heads_, inner_size_, groups_state_, conv_kernel_;
  float time_step_limit_low_;
  float time_step_limit_high_ = std::numeric_limits<float>::infinity();
  float norm_epsilon_;
  OuterProductStateOptions options_;
  JournalSlot conv_rows_, state_;
  Weight in_proj_, out_proj_;
  Tensor in_bias_, out_bias_, conv_weight_, conv_bias_, dt_bias_, A_log_, D_, norm_;
};

nlohmann::json complete_mamba2(ConfigReader reader, const LayerContext& context) {
  nlohmann::json config = {{"type", reader.string("type")}};
  const double expand = reader.number("expand", 2.0, 0.0625, 64);
  const auto inner = static_cast<int64_t>(expand * static_cast<double>(context.hidden_size));
  const int64_t heads = reader.integer("heads", {}, 1, 4096);
  if (!reader.has("head_dim")) {
    require(inner % heads == 0, reader.path("heads"),
            "{} does not divide the inner size {} (expand x hidden_size)", heads, inner);
  }
  const int64_t groups = reader.integer("groups", 1, 1, heads);
  require(heads % groups == 0, reader.path("groups"), "{} does not divide heads {}", groups, heads);
  config["heads"] = heads;
  config["head_dim"] = reader.integer("head_dim", inner / heads, 1, kMaxWidth / heads);
  config["state"] = reader.integer("state", 128, 1, 4096);
  config["groups"] = groups;
  config["conv_kernel"] = reader.integer("conv_kernel", 4, 1, 64);
  config["time_step_min"] = reader.number("time_step_min", 0.001, 1e-8, 1e3);
  config["time_step_max"] =
      reader.number("time_step_max", 0.1, config["time_step_min"].get<double>(), 1e3);
  config["time_step_floor"] = reader.number("time_step_floor", 1e-4, 1e-8, 1e3);
  config["time_step_limit"] = {0.0, nullptr};  // null: no upper limit
  if (reader.has("time_step_limit")) {
    const nlohmann::json& limit = reader.raw("time_step_limit");
    require(limit.is_array() && limit.size() == 2 && limit[0].is_number() &&
                (limit[1].is_number() || limit[1].is_null()) && limit[0] >= 0.0 &&
                (limit[1].is_null() || limit[0] <= limit[1]),
            reader.path("time_step_limit"), "{} is not a pair [low, high], 0 <= low <= high",
            limit.dump());
    config["time_step_limit"] = limit;
  } else {
    reader.ignore("time_step_limit");
  }
  config["bias"] = reader.boolean("bias", false);
  config["conv_bias"] = reader.boolean("conv_bias", true);
  reader.finish();
  return config;
}

}  // namespace

MixerType mamba2_mixer_type() {
  return {"mamba2", "state space duality: an outer-product state with one decay a head",
          "arXiv 2405.21060", complete_mamba2, create_mixer<Mamba2Mixer>};
}

}  // namespace pronghorn
