// The CPU's PointwiseKernels; its methods are spread over pointwise*.cpp by kind.
#pragma once

#include "backend/pointwise.h"

namespace pronghorn {

class CpuPointwiseKernels final : public PointwiseKernels {
 public:
  // pointwise.cpp
  void add(Extent extent, ConstRows a, ConstRows b, Rows y) override;
  void multiply(Extent extent, ConstRows a, ConstRows b, Rows y) override;
  void add_bias(Extent extent, ConstRows x, const float* bias, Rows y) override;
  void column_sums(Extent extent, ConstRows x, ColumnGradient sums) override;
  void scale(Extent extent, ConstRows x, float factor, Rows y) override;
  void rotate(const Rotation& rotation, ConstRows x, Rows y) override;
  void gather_rows(Extent extent, ConstRows table, const int32_t* tokens, Rows y) override;
  void scatter_add_rows(Extent extent, ConstRows dy, const int32_t* tokens, int64_t table_rows,
                        Rows dtable) override;

  // pointwise_activations.cpp
  void sigmoid(Extent extent, ConstRows x, Rows y) override;
  void sigmoid_backward(Extent extent, ConstRows y, ConstRows dy, Rows dx) override;
  void gelu(Extent extent, ConstRows x, bool tanh_approximation, Rows y) override;
  void gelu_backward(Extent extent, ConstRows x, ConstRows dy, bool tanh_approximation,
                     Rows dx) override;
  void swiglu(Extent extent, ConstRows gate, ConstRows up, Rows y) override;
  void swiglu_backward(Extent extent, ConstRows gate, ConstRows up, ConstRows dy, Rows dgate,
                       Rows dup) override;
  void decay_gate(const DecayGate& gate, Rows dt, Rows log_decay) override;
  void decay_gate_backward(const DecayGate& gate, ConstRows d_dt, ConstRows d_log_decay, Rows d_raw,
                           ColumnGradient d_dt_bias, ColumnGradient d_A_log) override;

  // pointwise_norms.cpp
  void norm(const NormForward& arguments) override;
  void norm_backward(const NormBackward& arguments) override;
  void gated_norm(const GatedNorm& arguments, Rows y, float* inverse_rms) override;
  void gated_norm_backward(const GatedNorm& arguments, const float* inverse_rms, ConstRows dy,
                           Rows dx, Rows dz, ColumnGradient dweight) override;
  void l2_normalize(Extent extent, int64_t group, float epsilon, ConstRows x, Rows y) override;
  void l2_normalize_backward(Extent extent, int64_t group, float epsilon, ConstRows x, ConstRows dy,
                             Rows dx) override;

  // pointwise_subsample.cpp
  void upsample(const Upsampling& arguments, Rows out) override;
  void upsample_backward(const Upsampling& arguments, ConstRows d_out, Rows dx, Rows dy,
                         Rows dweights, ColumnGradient d_bypass_scale) override;

  // pointwise_training.cpp
  void cross_entropy(Extent extent, Rows logits, const int32_t* targets, bool gradient,
                     double gradient_scale, double z_loss_weight, RowLoss* losses) override;
  void adamw(int64_t count, float* parameters, const float* gradients, float* m, float* v,
             const AdamW& settings) override;
  double sum_of_squares(int64_t count, const float* values) override;
};

}  // namespace pronghorn
