// Watched element-wise kernels, norms, losses and the optimiser. Their operations are not counted:
// memory bounds them.
#include "backend/watched_kernels.h"

namespace pronghorn {
namespace {

constexpr char kElements[] = "element-wise", kNorm[] = "norm", kEmbedding[] = "embedding",
               kRows[] = "rows", kLoss[] = "loss", kOptimiser[] = "optimiser";

class WatchedPointwise final : public PointwiseKernels {
 public:
  WatchedPointwise(PointwiseKernels& kernels, KernelWatcher& watcher)
      : kernels_(kernels), watcher_(watcher) {}

  void add(Extent extent, ConstMatrix a, ConstMatrix b, Matrix y) override {
    const Watched watched(watcher_, call("add", kElements, extent, 3));
    kernels_.add(extent, a, b, y);
  }
  void multiply(Extent extent, ConstMatrix a, ConstMatrix b, Matrix y) override {
    const Watched watched(watcher_, call("multiply", kElements, extent, 3));
    kernels_.multiply(extent, a, b, y);
  }
  void add_bias(Extent extent, ConstMatrix x, const float* bias, Matrix y) override {
    const Watched watched(watcher_, call("add_bias", kElements, extent, 2));
    kernels_.add_bias(extent, x, bias, y);
  }
  void column_sums(Extent extent, ConstMatrix x, GradVector sums) override {
    const Watched watched(watcher_, call("column_sums", kElements, extent, 1));
    kernels_.column_sums(extent, x, sums);
  }
  void scale(Extent extent, ConstMatrix x, float factor, Matrix y) override {
    const Watched watched(watcher_, call("scale", kElements, extent, 2));
    kernels_.scale(extent, x, factor, y);
  }
  void sigmoid(Extent extent, ConstMatrix x, Matrix y) override {
    const Watched watched(watcher_, call("sigmoid", kElements, extent, 2));
    kernels_.sigmoid(extent, x, y);
  }
  void sigmoid_backward(Extent extent, ConstMatrix y, ConstMatrix dy, Matrix dx) override {
    const Watched watched(watcher_, call("sigmoid_backward", kElements, extent, 3));
    kernels_.sigmoid_backward(extent, y, dy, dx);
  }
  void activate(Extent extent, ConstMatrix x, Activation activation, Matrix y) override {
    const Watched watched(watcher_, call("activate", kElements, extent, 2));
    kernels_.activate(extent, x, activation, y);
  }
  void activate_backward(Extent extent, ConstMatrix x, ConstMatrix dy, Activation activation,
                         Matrix dx) override {
    const Watched watched(watcher_, call("activate_backward", kElements, extent, 3));
    kernels_.activate_backward(extent, x, dy, activation, dx);
  }
  void soft_cap(Extent extent, ConstMatrix x, float cap, Matrix y) override {
    const Watched watched(watcher_, call("soft_cap", kElements, extent, 2));
    kernels_.soft_cap(extent, x, cap, y);
  }
  void soft_cap_backward(Extent extent, ConstMatrix y, ConstMatrix dy, float cap,
                         Matrix dx) override {
    const Watched watched(watcher_, call("soft_cap_backward", kElements, extent, 3));
    kernels_.soft_cap_backward(extent, y, dy, cap, dx);
  }
  void round_rows(Extent extent, ConstMatrix x, Matrix y) override {
    const Watched watched(watcher_, call("round_rows", kElements, extent, 2));
    kernels_.round_rows(extent, x, y);
  }
  void round_ternary(Extent extent, ConstMatrix x, Matrix y) override {
    const Watched watched(watcher_, call("round_ternary", kElements, extent, 2));
    kernels_.round_ternary(extent, x, y);
  }
  void swiglu(Extent extent, ConstMatrix gate, ConstMatrix up, Matrix y) override {
    const Watched watched(watcher_, call("swiglu", kElements, extent, 3));
    kernels_.swiglu(extent, gate, up, y);
  }
  void swiglu_backward(Extent extent, ConstMatrix gate, ConstMatrix up, ConstMatrix dy,
                       Matrix dgate, Matrix dup) override {
    const Watched watched(watcher_, call("swiglu_backward", kElements, extent, 5));
    kernels_.swiglu_backward(extent, gate, up, dy, dgate, dup);
  }
  void clamped_swiglu(Extent extent, ConstMatrix gate, ConstMatrix up, float limit,
                      Matrix y) override {
    const Watched watched(watcher_, call("clamped_swiglu", kElements, extent, 3));
    kernels_.clamped_swiglu(extent, gate, up, limit, y);
  }
  void clamped_swiglu_backward(Extent extent, ConstMatrix gate, ConstMatrix up, float limit,
                               ConstMatrix dy, Matrix dgate, Matrix dup) override {
    const Watched watched(watcher_, call("clamped_swiglu_backward", kElements, extent, 5));
    kernels_.clamped_swiglu_backward(extent, gate, up, limit, dy, dgate, dup);
  }
  void decay_gate(const DecayGate& gate, Matrix dt, Matrix log_decay) override {
    const Watched watched(watcher_, call("decay_gate", kElements, gate.extent, 3));
    kernels_.decay_gate(gate, dt, log_decay);
  }
  void decay_gate_backward(const DecayGate& gate, ConstMatrix d_dt, ConstMatrix d_log_decay,
                           Matrix d_raw, GradVector d_dt_bias, GradVector d_A_log) override {
    const Watched watched(watcher_, call("decay_gate_backward", kElements, gate.extent, 4));
    kernels_.decay_gate_backward(gate, d_dt, d_log_decay, d_raw, d_dt_bias, d_A_log);
  }
  void norm(const NormForward& arguments) override {
    const Watched watched(
        watcher_, call("norm", kNorm, arguments.extent, arguments.delta.data != nullptr ? 4 : 2));
    kernels_.norm(arguments);
  }
  void norm_backward(const NormBackward& arguments) override {
    const Watched watched(watcher_, call("norm_backward", kNorm, arguments.extent,
                                         arguments.residual.data != nullptr ? 4 : 3));
    kernels_.norm_backward(arguments);
  }
  void bias_norm(const BiasNormForward& arguments) override {
    const Watched watched(watcher_, call("bias_norm", kNorm, arguments.extent,
                                         arguments.delta.data != nullptr ? 4 : 2));
    kernels_.bias_norm(arguments);
  }
  void bias_norm_backward(const BiasNormBackward& arguments) override {
    const Watched watched(watcher_, call("bias_norm_backward", kNorm, arguments.extent,
                                         arguments.residual.data != nullptr ? 4 : 3));
    kernels_.bias_norm_backward(arguments);
  }
  void gated_norm(const GatedNorm& arguments, Matrix y, float* inverse_rms) override {
    const Watched watched(watcher_, call("gated_norm", kNorm, arguments.extent, 3));
    kernels_.gated_norm(arguments, y, inverse_rms);
  }
  void gated_norm_backward(const GatedNorm& arguments, const float* inverse_rms, ConstMatrix dy,
                           Matrix dx, Matrix dz, GradVector dweight) override {
    const Watched watched(watcher_, call("gated_norm_backward", kNorm, arguments.extent, 5));
    kernels_.gated_norm_backward(arguments, inverse_rms, dy, dx, dz, dweight);
  }
  void l2_normalize(Extent extent, int64_t group, float epsilon, ConstMatrix x, Matrix y) override {
    const Watched watched(watcher_, call("l2_normalize", kNorm, extent, 2));
    kernels_.l2_normalize(extent, group, epsilon, x, y);
  }
  void l2_normalize_backward(Extent extent, int64_t group, float epsilon, ConstMatrix x,
                             ConstMatrix dy, Matrix dx) override {
    const Watched watched(watcher_, call("l2_normalize_backward", kNorm, extent, 3));
    kernels_.l2_normalize_backward(extent, group, epsilon, x, dy, dx);
  }
  void group_moments(Extent extent, int64_t group, ConstMatrix x, Matrix mean,
                     Matrix variance) override {
    const Watched watched(watcher_, call("group_moments", kNorm, extent, 1));
    kernels_.group_moments(extent, group, x, mean, variance);
  }
  void group_moments_backward(Extent extent, int64_t group, ConstMatrix x, ConstMatrix mean,
                              ConstMatrix d_mean, ConstMatrix d_variance, Matrix dx) override {
    const Watched watched(watcher_, call("group_moments_backward", kNorm, extent, 2));
    kernels_.group_moments_backward(extent, group, x, mean, d_mean, d_variance, dx);
  }
  void group_norm(const GroupNorm& arguments, Matrix y) override {
    const Watched watched(watcher_, call("group_norm", kNorm, arguments.extent, 2));
    kernels_.group_norm(arguments, y);
  }
  void group_norm_backward(const GroupNorm& arguments, ConstMatrix dy,
                           const GroupNormGradients& to) override {
    const Watched watched(watcher_, call("group_norm_backward", kNorm, arguments.extent, 3));
    kernels_.group_norm_backward(arguments, dy, to);
  }
  void append_ones(Extent extent, int64_t group, ConstMatrix x, Matrix y) override {
    const Watched watched(watcher_, call("append_ones", kElements, extent, 2));
    kernels_.append_ones(extent, group, x, y);
  }
  void append_ones_backward(Extent extent, int64_t group, ConstMatrix dy, Matrix dx) override {
    const Watched watched(watcher_, call("append_ones_backward", kElements, extent, 2));
    kernels_.append_ones_backward(extent, group, dy, dx);
  }
  void divide_by_sums(Extent extent, int64_t group, float least, ConstMatrix x, Matrix y) override {
    const Watched watched(watcher_, call("divide_by_sums", kElements, extent, 2));
    kernels_.divide_by_sums(extent, group, least, x, y);
  }
  void divide_by_sums_backward(Extent extent, int64_t group, float least, ConstMatrix x,
                               ConstMatrix dy, Matrix dx) override {
    const Watched watched(watcher_, call("divide_by_sums_backward", kElements, extent, 3));
    kernels_.divide_by_sums_backward(extent, group, least, x, dy, dx);
  }
  void scale_columns(Extent extent, ConstMatrix x, const float* weight, Matrix y) override {
    const Watched watched(watcher_, call("scale_columns", kElements, extent, 2));
    kernels_.scale_columns(extent, x, weight, y);
  }
  void scale_columns_backward(Extent extent, ConstMatrix x, const float* weight, ConstMatrix dy,
                              Matrix dx, GradVector dweight) override {
    const Watched watched(watcher_, call("scale_columns_backward", kElements, extent, 3));
    kernels_.scale_columns_backward(extent, x, weight, dy, dx, dweight);
  }
  void scale_groups(Extent extent, int64_t group, ConstMatrix x, ConstMatrix factors,
                    Matrix y) override {
    const Watched watched(watcher_, call("scale_groups", kElements, extent, 2));
    kernels_.scale_groups(extent, group, x, factors, y);
  }
  void scale_groups_backward(Extent extent, int64_t group, ConstMatrix x, ConstMatrix factors,
                             ConstMatrix dy, Matrix dx, Matrix dfactors) override {
    const Watched watched(watcher_, call("scale_groups_backward", kElements, extent, 3));
    kernels_.scale_groups_backward(extent, group, x, factors, dy, dx, dfactors);
  }
  void lower_bounded_gate(Extent extent, ConstMatrix x, const float* bound, Matrix log_decay,
                          Matrix k) override {
    const Watched watched(watcher_, call("lower_bounded_gate", kElements, extent, 3));
    kernels_.lower_bounded_gate(extent, x, bound, log_decay, k);
  }
  void lower_bounded_gate_backward(Extent extent, ConstMatrix x, const float* bound,
                                   ConstMatrix d_log_decay, ConstMatrix dk, Matrix dx,
                                   GradVector d_bound) override {
    const Watched watched(watcher_, call("lower_bounded_gate_backward", kElements, extent, 4));
    kernels_.lower_bounded_gate_backward(extent, x, bound, d_log_decay, dk, dx, d_bound);
  }
  void cumulative_softmax(Extent extent, ConstMatrix x, int64_t row, float* bound) override {
    const Watched watched(watcher_, call("cumulative_softmax", kElements, extent, 1));
    kernels_.cumulative_softmax(extent, x, row, bound);
  }
  void cumulative_softmax_backward(Extent extent, ConstMatrix x, int64_t row, const float* d_bound,
                                   Matrix dx) override {
    const Watched watched(watcher_, call("cumulative_softmax_backward", kElements, extent, 2));
    kernels_.cumulative_softmax_backward(extent, x, row, d_bound, dx);
  }
  void rotate(const Rotation& rotation, ConstMatrix x, Matrix y) override {
    const Watched watched(watcher_, call("rotate", kElements, rotation.extent, 2));
    kernels_.rotate(rotation, x, y);
  }
  void gather_rows(Extent extent, ConstMatrix table, const int32_t* tokens, Matrix y) override {
    const Watched watched(watcher_, call("gather_rows", kEmbedding, extent, 2));
    kernels_.gather_rows(extent, table, tokens, y);
  }
  void scatter_add_rows(Extent extent, ConstMatrix dy, const int32_t* tokens, int64_t table_rows,
                        Matrix dtable) override {
    const Watched watched(watcher_, call("scatter_add_rows", kEmbedding, extent, 3));
    kernels_.scatter_add_rows(extent, dy, tokens, table_rows, dtable);
  }
  void upsample(const Upsampling& arguments, Matrix out) override {
    const Watched watched(watcher_, call("upsample", kRows, arguments.extent, 2));
    kernels_.upsample(arguments, out);
  }
  void upsample_backward(const Upsampling& arguments, ConstMatrix d_out, Matrix dx, Matrix dy,
                         Matrix dweights, GradVector d_bypass_scale) override {
    const Watched watched(watcher_, call("upsample_backward", kRows, arguments.extent, 3));
    kernels_.upsample_backward(arguments, d_out, dx, dy, dweights, d_bypass_scale);
  }
  void combine_rows(const Combination& arguments, Matrix y) override {
    const Watched watched(
        watcher_, call("combine_rows", kRows, arguments.extent, as_double(1 + arguments.slots)));
    kernels_.combine_rows(arguments, y);
  }
  void combine_rows_backward(const Combination& arguments, ConstMatrix dy, Matrix dx,
                             Matrix dweights) override {
    const Watched watched(watcher_, call("combine_rows_backward", kRows, arguments.extent,
                                         as_double(1 + 2 * arguments.slots)));
    kernels_.combine_rows_backward(arguments, dy, dx, dweights);
  }
  void cross_entropy(Extent extent, Matrix logits, const int32_t* targets, bool gradient,
                     double gradient_scale, double z_loss_weight, RowLoss* losses) override {
    const Watched watched(watcher_, call("cross_entropy", kLoss, extent, gradient ? 2 : 1));
    kernels_.cross_entropy(extent, logits, targets, gradient, gradient_scale, z_loss_weight,
                           losses);
  }
  void adamw(int64_t count, float* parameters, const float* gradients, float* m, float* v,
             const AdamW& settings) override {
    const Watched watched(watcher_, call("adamw", kOptimiser, Extent{1, count}, 7));
    kernels_.adamw(count, parameters, gradients, m, v, settings);
  }
  void sums_of_squares(std::span<const std::span<const float>> parts, double* sums) override {
    int64_t count = 0;
    for (const std::span<const float> part : parts) count += std::ssize(part);
    const Watched watched(watcher_, call("sums_of_squares", kOptimiser, Extent{1, count}, 1));
    kernels_.sums_of_squares(parts, sums);
  }

 private:
  // matrices: that many of the extent are read or written.
  static KernelCall call(const char* kernel, const char* kind, Extent extent, double matrices) {
    return {.kernel = kernel,
            .kind = kind,
            .bytes = kNumber * matrices * as_double(extent.rows * extent.columns)};
  }

  PointwiseKernels& kernels_;
  KernelWatcher& watcher_;
};

}  // namespace

std::unique_ptr<PointwiseKernels> make_watched_pointwise(PointwiseKernels& kernels,
                                                         KernelWatcher& watcher) {
  return std::make_unique<WatchedPointwise>(kernels, watcher);
}

}  // namespace pronghorn
