// Element-wise and row-wise kernels, losses and the optimiser's update.
//
// All matrices are f32 with adjacent columns. Each row of a result is computed from that row of the
// inputs alone, in an order that depends on the number of columns only; sums over rows (gradients
// of parameters) are taken over fixed blocks of rows and combined in order.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "backend/activation.h"
#include "backend/operands.h"

namespace pronghorn {

struct Extent {
  int64_t rows = 0;
  int64_t columns = 0;
};

// y = (h - mean) inverse_rms weight + bias over each row of h = x + delta. centered: LayerNorm;
// else the mean is 0 and is not stored (RMSNorm).
struct NormForward {
  Extent extent;
  bool centered = false;
  float epsilon = 0;
  ConstMatrix x;
  ConstMatrix delta;  // may be null: h = x
  const float* weight = nullptr;
  const float* bias = nullptr;  // may be null
  Matrix sum;                   // h; used if delta is given
  Matrix y;
  float* inverse_rms = nullptr;  // [rows]; may be null, as may mean
  float* mean = nullptr;
};

// dh = residual + the norm's gradient; dweight, dbias.
struct NormBackward {
  Extent extent;
  bool centered = false;
  ConstMatrix h;
  const float* weight = nullptr;
  const float* inverse_rms = nullptr;
  const float* mean = nullptr;
  ConstMatrix dy;
  ConstMatrix residual;  // may be null
  Matrix dh;
  GradVector dweight, dbias;
};

// y = h e^log_scale inverse_rms with the inverse root mean square of h - bias, h = x + delta
// (BiasNorm).
struct BiasNormForward {
  Extent extent;
  float epsilon = 0;
  ConstMatrix x;
  ConstMatrix delta;                 // may be null: h = x
  const float* log_scale = nullptr;  // [1]
  const float* bias = nullptr;
  Matrix sum;  // h; used if delta is given
  Matrix y;
  float* inverse_rms = nullptr;  // [rows]; may be null
};

// dh = residual + the norm's gradient; dbias; and of log_scale what each row gives.
struct BiasNormBackward {
  Extent extent;
  ConstMatrix h;
  const float* log_scale = nullptr;
  const float* bias = nullptr;
  const float* inverse_rms = nullptr;
  ConstMatrix dy;
  ConstMatrix residual;  // may be null
  Matrix dh;
  GradVector dbias;
  float* dlog_scale = nullptr;  // [rows]; may be null
};

// RMSNorm over groups of adjacent columns with a gate silu(z), before or after the norm.
struct GatedNorm {
  Extent extent;
  int64_t group = 0;
  float epsilon = 0;
  bool gate_first = false;
  ConstMatrix x, z;
  const float* weight = nullptr;
  bool weight_per_group = false;  // weight has `group` elements, shared by all groups
};

// y = (x - mean) / sqrt(variance + epsilon) weight + bias, with a mean and a variance for each
// group of `group` adjacent columns of a row.
struct GroupNorm {
  Extent extent;
  int64_t group = 0;
  float epsilon = 0;
  ConstMatrix x;
  ConstMatrix mean, variance;     // [rows, columns / group]
  const float* weight = nullptr;  // [columns], as is bias
  const float* bias = nullptr;
};
struct GroupNormGradients {
  Matrix x, mean, variance;
  GradVector weight, bias;
};

// Rotation of channel pairs of each head by the angles whose cosines and sines are given, [rows,
// rotary_dim / 2]: channels i and i + rotary_dim / 2, or with `interleaved` 2 i and 2 i + 1.
struct Rotation {
  Extent extent;
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;
  const float* cosines = nullptr;
  const float* sines = nullptr;
  bool backwards = false;  // by the negative angle
  bool interleaved = false;
};

// Parameters of decay_gate (ops/pointwise.h); extent.columns is the number of heads.
struct DecayGate {
  Extent extent;
  ConstMatrix raw;
  const float* dt_bias = nullptr;
  const float* A_log = nullptr;
  float minimum = 0, maximum = 0;
};

// Operands of upsample (ops/subsample.h): row rows[i] of x moves towards row i of y.
struct Upsampling {
  Extent extent;  // of x
  int64_t selected = 0;
  const int32_t* rows = nullptr;  // ascending
  ConstMatrix x, y;
  const float* weights = nullptr;       // [selected]
  const float* bypass_scale = nullptr;  // [columns]
};

// Operands of combine_rows (ops/experts.h): y[i] = sum over s of weights[i][s] x[places[i][s]].
// Each row of x has one place at most.
struct Combination {
  Extent extent;  // of y
  int64_t slots = 0;
  const int32_t* places = nullptr;  // [rows, slots]
  const float* weights = nullptr;   // [rows, slots]
  ConstMatrix x;
};

// What a row of logits says of its target.
struct RowLoss {
  double nll = 0;    // ln Z - logit of the target
  double log_z = 0;  // ln Z
  bool correct = false;
};

// One step of AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2):
//   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2  with g the scaled gradient
//   p -= learning_rate (m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + epsilon)
//                       + weight_decay p)
struct AdamW {
  double learning_rate = 1e-3;
  double beta1 = 0.9, beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0;
  double gradient_scale = 1;  // the clipping factor
  int64_t step = 1;           // counts from 1
};

class PointwiseKernels {
 public:
  virtual ~PointwiseKernels() = default;

  virtual void add(Extent extent, ConstMatrix a, ConstMatrix b, Matrix y) = 0;
  virtual void multiply(Extent extent, ConstMatrix a, ConstMatrix b, Matrix y) = 0;
  virtual void add_bias(Extent extent, ConstMatrix x, const float* bias, Matrix y) = 0;
  // sums[c] = the sum of column c of x.
  virtual void column_sums(Extent extent, ConstMatrix x, GradVector sums) = 0;
  // y = factor x; also the copy between matrices of different strides.
  virtual void scale(Extent extent, ConstMatrix x, float factor, Matrix y) = 0;

  virtual void sigmoid(Extent extent, ConstMatrix x, Matrix y) = 0;
  virtual void sigmoid_backward(Extent extent, ConstMatrix y, ConstMatrix dy, Matrix dx) = 0;
  virtual void activate(Extent extent, ConstMatrix x, Activation activation, Matrix y) = 0;
  virtual void activate_backward(Extent extent, ConstMatrix x, ConstMatrix dy,
                                 Activation activation, Matrix dx) = 0;
  // y = cap tanh(x / cap).
  virtual void soft_cap(Extent extent, ConstMatrix x, float cap, Matrix y) = 0;
  // Given the result y.
  virtual void soft_cap_backward(Extent extent, ConstMatrix y, ConstMatrix dy, float cap,
                                 Matrix dx) = 0;
  // Each row rounded to whole multiples of a step, -128 to 127 of them: the largest number of the
  // row, at least 1e-5, is 127.
  virtual void round_rows(Extent extent, ConstMatrix x, Matrix y) = 0;
  // All numbers rounded to -1, 0 and 1 times the mean of their sizes, at least 1e-5.
  virtual void round_ternary(Extent extent, ConstMatrix x, Matrix y) = 0;
  virtual void swiglu(Extent extent, ConstMatrix gate, ConstMatrix up, Matrix y) = 0;
  virtual void swiglu_backward(Extent extent, ConstMatrix gate, ConstMatrix up, ConstMatrix dy,
                               Matrix dgate, Matrix dup) = 0;
  // y = (clamp(up, -limit, limit) + 1) g sigmoid(1.702 g), g = min(gate, limit).
  virtual void clamped_swiglu(Extent extent, ConstMatrix gate, ConstMatrix up, float limit,
                              Matrix y) = 0;
  virtual void clamped_swiglu_backward(Extent extent, ConstMatrix gate, ConstMatrix up, float limit,
                                       ConstMatrix dy, Matrix dgate, Matrix dup) = 0;
  virtual void decay_gate(const DecayGate& gate, Matrix dt, Matrix log_decay) = 0;
  // d_dt and d_log_decay: gradients of the results; either may be null (zero).
  virtual void decay_gate_backward(const DecayGate& gate, ConstMatrix d_dt, ConstMatrix d_log_decay,
                                   Matrix d_raw, GradVector d_dt_bias, GradVector d_A_log) = 0;

  virtual void norm(const NormForward& arguments) = 0;
  virtual void norm_backward(const NormBackward& arguments) = 0;
  virtual void bias_norm(const BiasNormForward& arguments) = 0;
  virtual void bias_norm_backward(const BiasNormBackward& arguments) = 0;
  // inverse_rms: [rows, columns / group], written by gated_norm unless null.
  virtual void gated_norm(const GatedNorm& arguments, Matrix y, float* inverse_rms) = 0;
  virtual void gated_norm_backward(const GatedNorm& arguments, const float* inverse_rms,
                                   ConstMatrix dy, Matrix dx, Matrix dz, GradVector dweight) = 0;
  virtual void l2_normalize(Extent extent, int64_t group, float epsilon, ConstMatrix x,
                            Matrix y) = 0;
  virtual void l2_normalize_backward(Extent extent, int64_t group, float epsilon, ConstMatrix x,
                                     ConstMatrix dy, Matrix dx) = 0;
  // Mean and variance of each group of x's columns: [rows, columns / group].
  virtual void group_moments(Extent extent, int64_t group, ConstMatrix x, Matrix mean,
                             Matrix variance) = 0;
  // Given the means; either gradient of the results may be null (zero).
  virtual void group_moments_backward(Extent extent, int64_t group, ConstMatrix x, ConstMatrix mean,
                                      ConstMatrix d_mean, ConstMatrix d_variance, Matrix dx) = 0;
  virtual void group_norm(const GroupNorm& arguments, Matrix y) = 0;
  virtual void group_norm_backward(const GroupNorm& arguments, ConstMatrix dy,
                                   const GroupNormGradients& to) = 0;

  // Behind each group of x's columns, which extent counts, a 1 in y.
  virtual void append_ones(Extent extent, int64_t group, ConstMatrix x, Matrix y) = 0;
  // dx (+)= dy without the columns of ones.
  virtual void append_ones_backward(Extent extent, int64_t group, ConstMatrix dy, Matrix dx) = 0;
  // y = each group of x over max(|s|, least), s the column of x after the group; extent: of y.
  virtual void divide_by_sums(Extent extent, int64_t group, float least, ConstMatrix x,
                              Matrix y) = 0;
  virtual void divide_by_sums_backward(Extent extent, int64_t group, float least, ConstMatrix x,
                                       ConstMatrix dy, Matrix dx) = 0;
  // y = x with column c times weight[c].
  virtual void scale_columns(Extent extent, ConstMatrix x, const float* weight, Matrix y) = 0;
  virtual void scale_columns_backward(Extent extent, ConstMatrix x, const float* weight,
                                      ConstMatrix dy, Matrix dx, GradVector dweight) = 0;
  // f = bound + (1 - bound) sigmoid(x), bound [columns]: log_decay = ln f, k = 1 - f.
  virtual void lower_bounded_gate(Extent extent, ConstMatrix x, const float* bound,
                                  Matrix log_decay, Matrix k) = 0;
  // Either gradient of the results may be null (zero).
  virtual void lower_bounded_gate_backward(Extent extent, ConstMatrix x, const float* bound,
                                           ConstMatrix d_log_decay, ConstMatrix dk, Matrix dx,
                                           GradVector d_bound) = 0;
  // bound[c] = the sum of rows 1 ... row of the softmax over the rows of x in column c.
  virtual void cumulative_softmax(Extent extent, ConstMatrix x, int64_t row, float* bound) = 0;
  virtual void cumulative_softmax_backward(Extent extent, ConstMatrix x, int64_t row,
                                           const float* d_bound, Matrix dx) = 0;

  // y[i, c] = x[i, c] factors[i, c / group].
  virtual void scale_groups(Extent extent, int64_t group, ConstMatrix x, ConstMatrix factors,
                            Matrix y) = 0;
  virtual void scale_groups_backward(Extent extent, int64_t group, ConstMatrix x,
                                     ConstMatrix factors, ConstMatrix dy, Matrix dx,
                                     Matrix dfactors) = 0;

  virtual void rotate(const Rotation& rotation, ConstMatrix x, Matrix y) = 0;
  // y[i] = table[tokens[i]]; tokens within the table.
  virtual void gather_rows(Extent extent, ConstMatrix table, const int32_t* tokens, Matrix y) = 0;
  // dtable[tokens[i]] += dy[i] in the order of i. dtable [table_rows, columns] is cleared first
  // unless it accumulates.
  virtual void scatter_add_rows(Extent extent, ConstMatrix dy, const int32_t* tokens,
                                int64_t table_rows, Matrix dtable) = 0;

  virtual void upsample(const Upsampling& arguments, Matrix out) = 0;
  virtual void upsample_backward(const Upsampling& arguments, ConstMatrix d_out, Matrix dx,
                                 Matrix dy, Matrix dweights, GradVector d_bypass_scale) = 0;

  virtual void combine_rows(const Combination& arguments, Matrix y) = 0;
  // dx at the rows that have a place.
  virtual void combine_rows_backward(const Combination& arguments, ConstMatrix dy, Matrix dx,
                                     Matrix dweights) = 0;

  // For each row of logits [rows, vocabulary] with a target (targets[i] >= 0) its loss. gradient:
  // logits are overwritten by the gradients of
  //   gradient_scale (sum nll + z_loss_weight sum log_z^2),
  // zeros in rows without a target; else they are left as they are.
  virtual void cross_entropy(Extent extent, Matrix logits, const int32_t* targets, bool gradient,
                             double gradient_scale, double z_loss_weight, RowLoss* losses) = 0;

  virtual void adamw(int64_t count, float* parameters, const float* gradients, float* m, float* v,
                     const AdamW& settings) = 0;
  // sums[i]: the sum of squares of parts[i], in float64. Each is of one thread.
  virtual void sums_of_squares(std::span<const std::span<const float>> parts, double* sums) = 0;
};

std::unique_ptr<PointwiseKernels> make_cpu_pointwise_kernels();

}  // namespace pronghorn
