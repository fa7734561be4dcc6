// Mamba layer (Gu and Dao, arXiv 2312.00752, figure 3): projection, short convolution, selective
// scan, output gate. Parameter names are those of the published checkpoints.
#include <algorithm>
#include <cmath>

#include "layers/layers.h"
#include "ops/linear.h"
#include "ops/pointwise.h"
#include "ops/selective_scan.h"
#include "ops/short_convolution.h"

namespace pronghorn {
namespace {

constexpr int64_t kMaxWidth = 1 << 20;

class MambaMixer final : public Mixer {
 public:
  MambaMixer(const nlohmann::json& config, const LayerContext& context, const ParameterScope& scope,
             const StateScope& states)
      : inner_size_(config.at("inner_size")),
        state_(config.at("state")),
        time_step_rank_(config.at("time_step_rank")),
        conv_kernel_(config.at("conv_kernel")) {
    const int64_t d = context.hidden_size;
    const Initializer in = initializers::normal(context.initializer_range);
    const Initializer zero = initializers::constant(0);
    in_proj_ = scope.matrix("in_proj.weight", 2 * inner_size_, d, in);
    // PyTorch's default for a depthwise convolution: uniform within 1/sqrt(fan-in).
    const double conv_bound = 1 / std::sqrt(static_cast<double>(conv_kernel_));
    conv_weight_ = scope.tensor("conv1d.weight", {inner_size_, conv_kernel_},
                                initializers::uniform(-conv_bound, conv_bound), Decay::yes);
    if (config.at("conv_bias").get<bool>()) {
      conv_bias_ = scope.tensor("conv1d.bias", {inner_size_},
                                initializers::uniform(-conv_bound, conv_bound));
    }
    x_proj_ = scope.matrix("x_proj.weight", time_step_rank_ + 2 * state_, inner_size_, in);
    const double dt_bound = 1 / std::sqrt(static_cast<double>(time_step_rank_));
    dt_proj_ = scope.matrix("dt_proj.weight", inner_size_, time_step_rank_,
                            initializers::uniform(-dt_bound, dt_bound));
    dt_bias_ = scope.tensor(
        "dt_proj.bias", {inner_size_},
        initializers::inverse_softplus_log_uniform(
            config.at("time_step_min"), config.at("time_step_max"), config.at("time_step_floor")));
    A_log_ = scope.tensor("A_log", {inner_size_, state_}, [state = state_](Random&, int64_t i) {
      return std::log(static_cast<float>(i % state + 1));
    });
    D_ = scope.tensor("D", {inner_size_}, initializers::constant(1));
    out_proj_ =
        scope.matrix("out_proj.weight", d, inner_size_,
                     initializers::normal(context.initializer_range * context.residual_scale));
    if (config.at("bias").get<bool>()) {
      in_bias_ = scope.tensor("in_proj.bias", {2 * inner_size_}, zero);
      out_bias_ = scope.tensor("out_proj.bias", {d}, zero);
    }
    conv_rows_ = states.add(short_convolution_journal(inner_size_, conv_kernel_));
    scan_ = states.add(selective_scan_journal(inner_size_, state_));
  }

  Tensor forward(const LayerInput& input, const Tensor& x) const override {
    const Context& context = input.context;
    const CheckedBatch& batch = input.batch;
    const Tensor xz = linear(context, x, in_proj_, in_bias_);
    const Tensor z = xz.column_slice(inner_size_, inner_size_);
    const Tensor u = short_convolution(context, xz.column_slice(0, inner_size_), conv_weight_,
                                       conv_bias_, true, batch, conv_rows_);
    const Tensor dt_B_C = linear(context, u, x_proj_);
    const Tensor dt = linear(context, dt_B_C.column_slice(0, time_step_rank_), dt_proj_);
    const Tensor B = dt_B_C.column_slice(time_step_rank_, state_);
    const Tensor C = dt_B_C.column_slice(time_step_rank_ + state_, state_);
    const Tensor y = selective_scan(context, u, dt, dt_bias_, A_log_, B, C, D_, batch, scan_);
    return linear(context, swiglu(context, z, y), out_proj_, out_bias_);
  }

  // Per number of the state: decay 2 (step size times A, product), input 2, sum 1, read 2.
  double sequence_cost(double) const override {
    return 7.0 * static_cast<double>(inner_size_ * state_);
  }

 private:
  int64_t inner_size_, state_, time_step_rank_, conv_kernel_;
  JournalSlot conv_rows_, scan_;
  Weight in_proj_, x_proj_, dt_proj_, out_proj_;
  Tensor in_bias_, out_bias_, conv_weight_, conv_bias_, dt_bias_, A_log_, D_;
};

nlohmann::json complete_mamba(ConfigReader reader, const LayerContext& context) {
  nlohmann::json config = {{"type", reader.string("type")}};
  const double expand = reader.number("expand", 2.0, 0.0625, 64);
  const auto inner = static_cast<int64_t>(expand * static_cast<double>(context.hidden_size));
  config["inner_size"] = reader.integer("inner_size", inner, 1, kMaxWidth);
  config["state"] = reader.integer("state", 16, 1, 1024);
  config["conv_kernel"] = reader.integer("conv_kernel", 4, 1, 64);
  config["time_step_rank"] =
      reader.integer("time_step_rank", (context.hidden_size + 15) / 16, 1, kMaxWidth);
  config["time_step_min"] = reader.number("time_step_min", 0.001, 1e-8, 1e3);
  config["time_step_max"] =
      reader.number("time_step_max", 0.1, config["time_step_min"].get<double>(), 1e3);
  config["time_step_floor"] = reader.number("time_step_floor", 1e-4, 1e-8, 1e3);
  config["bias"] = reader.boolean("bias", false);
  config["conv_bias"] = reader.boolean("conv_bias", true);
  reader.finish();
  return config;
}

}  // namespace

MixerType mamba_mixer_type() {
  return {"mamba", "selective state space model with a diagonal state (S6)", "arXiv 2312.00752",
          complete_mamba, create_mixer<MambaMixer>};
}

}  // namespace pronghorn
