// The CPU's PointwiseKernels; its methods are spread over pointwise*.cpp by kind.
#pragma once

#include "backend/pointwise.h"

namespace pronghorn {

class CpuPointwiseKernels final : public PointwiseKernels {
 public:
  // pointwise.cpp
  void add(Extent extent, ConstMatrix a, ConstMatrix b, Matrix y) override;
  void multiply(Extent extent, ConstMatrix a, ConstMatrix b, Matrix y) override;
  void add_bias(Extent extent, ConstMatrix x, const float* bias, Matrix y) override;
  void column_sums(Extent extent, ConstMatrix x, GradVector sums) override;
  void scale(Extent extent, ConstMatrix x, float factor, Matrix y) override;
  void rotate(const Rotation& rotation, ConstMatrix x, Matrix y) override;
  void gather_rows(Extent extent, ConstMatrix table, const int32_t* tokens, Matrix y) override;
  void scatter_add_rows(Extent extent, ConstMatrix dy, const int32_t* tokens, int64_t table_rows,
                        Matrix dtable) override;

  // pointwise_activations.cpp
  void sigmoid(Extent extent, ConstMatrix x, Matrix y) override;
  void sigmoid_backward(Extent extent, ConstMatrix y, ConstMatrix dy, Matrix dx) override;
  void activate(Extent extent, ConstMatrix x, Activation activation, Matrix y) override;
  void activate_backward(Extent extent, ConstMatrix x, ConstMatrix dy, Activation activation,
                         Matrix dx) override;
  void soft_cap(Extent extent, ConstMatrix x, float cap, Matrix y) override;
  void soft_cap_backward(Extent extent, ConstMatrix y, ConstMatrix dy, float cap,
                         Matrix dx) override;
  void round_rows(Extent extent, ConstMatrix x, Matrix y) override;
  void round_ternary(Extent extent, ConstMatrix x, Matrix y) override;
  void swiglu(Extent extent, ConstMatrix gate, ConstMatrix up, Matrix y) override;
  void swiglu_backward(Extent extent, ConstMatrix gate, ConstMatrix up, ConstMatrix dy,
                       Matrix dgate, Matrix dup) override;
  void clamped_swiglu(Extent extent, ConstMatrix gate, ConstMatrix up, float limit,
                      Matrix y) override;
  void clamped_swiglu_backward(Extent extent, ConstMatrix gate, ConstMatrix up, float limit,
                               ConstMatrix dy, Matrix dgate, Matrix dup) override;
  void decay_gate(const DecayGate& gate, Matrix dt, Matrix log_decay) override;
  void decay_gate_backward(const DecayGate& gate, ConstMatrix d_dt, ConstMatrix d_log_decay,
                           Matrix d_raw, GradVector d_dt_bias, GradVector d_A_log) override;

  // pointwise_norms.cpp
  void norm(const NormForward& arguments) override;
  void norm_backward(const NormBackward& arguments) override;
  void bias_norm(const BiasNormForward& arguments) override;
  void bias_norm_backward(const BiasNormBackward& arguments) override;
  void gated_norm(const GatedNorm& arguments, Matrix y, float* inverse_rms) override;
  void gated_norm_backward(const GatedNorm& arguments, const float* inverse_rms, ConstMatrix dy,
                           Matrix dx, Matrix dz, GradVector dweight) override;
  void l2_normalize(Extent extent, int64_t group, float epsilon, ConstMatrix x, Matrix y) override;
  void l2_normalize_backward(Extent extent, int64_t group, float epsilon, ConstMatrix x,
                             ConstMatrix dy, Matrix dx) override;
  void group_moments(Extent extent, int64_t group, ConstMatrix x, Matrix mean,
                     Matrix variance) override;
  void group_moments_backward(Extent extent, int64_t group, ConstMatrix x, ConstMatrix mean,
                              ConstMatrix d_mean, ConstMatrix d_variance, Matrix dx) override;
  void group_norm(const GroupNorm& arguments, Matrix y) override;
  void group_norm_backward(const GroupNorm& arguments, ConstMatrix dy,
                           const GroupNormGradients& to) override;

  // pointwise_gates.cpp
  void append_ones(Extent extent, int64_t group, ConstMatrix x, Matrix y) override;
  void append_ones_backward(Extent extent, int64_t group, ConstMatrix dy, Matrix dx) override;
  void divide_by_sums(Extent extent, int64_t group, float least, ConstMatrix x, Matrix y) override;
  void divide_by_sums_backward(Extent extent, int64_t group, float least, ConstMatrix x,
                               ConstMatrix dy, Matrix dx) override;
  void scale_columns(Extent extent, ConstMatrix x, const float* weight, Matrix y) override;
  void scale_columns_backward(Extent extent, ConstMatrix x, const float* weight, ConstMatrix dy,
                              Matrix dx, GradVector dweight) override;
  void scale_groups(Extent extent, int64_t group, ConstMatrix x, ConstMatrix factors,
                    Matrix y) override;
  void scale_groups_backward(Extent extent, int64_t group, ConstMatrix x, ConstMatrix factors,
                             ConstMatrix dy, Matrix dx, Matrix dfactors) override;
  void lower_bounded_gate(Extent extent, ConstMatrix x, const float* bound, Matrix log_decay,
                          Matrix k) override;
  void lower_bounded_gate_backward(Extent extent, ConstMatrix x, const float* bound,
                                   ConstMatrix d_log_decay, ConstMatrix dk, Matrix dx,
                                   GradVector d_bound) override;
  void cumulative_softmax(Extent extent, ConstMatrix x, int64_t row, float* bound) override;
  void cumulative_softmax_backward(Extent extent, ConstMatrix x, int64_t row, const float* d_bound,
                                   Matrix dx) override;

  // pointwise_rows.cpp
  void upsample(const Upsampling& arguments, Matrix out) override;
  void upsample_backward(const Upsampling& arguments, ConstMatrix d_out, Matrix dx, Matrix dy,
                         Matrix dweights, GradVector d_bypass_scale) override;

  void combine_rows(const Combination& arguments, Matrix y) override;
  void combine_rows_backward(const Combination& arguments, ConstMatrix dy, Matrix dx,
                             Matrix dweights) override;

  // pointwise_training.cpp
  void cross_entropy(Extent extent, Matrix logits, const int32_t* targets, bool gradient,
                     double gradient_scale, double z_loss_weight, RowLoss* losses) override;
  void adamw(int64_t count, float* parameters, const float* gradients, float* m, float* v,
             const AdamW& settings) override;
  void sums_of_squares(std::span<const std::span<const float>> parts, double* sums) override;
};

}  // namespace pronghorn
