// Products with weight matrices: forward, and the gradients of input, weight and bias.
//
// Operands are f32; with Precision::bf16 both operands of a product are rounded to bf16 (to nearest
// even) and the sums are still f32. Strides count elements between rows; rows themselves are
// adjacent numbers. Results are the same bits for any number of threads.
#pragma once

#include <cstdint>
#include <memory>

#include "tensor/tape.h"
#include "tensor/weight.h"

namespace pronghorn {

class MatmulKernels {
 public:
  virtual ~MatmulKernels() = default;

  // y [rows, out] = x [rows, in] W^T + bias (out numbers, or null).
  // exact: a row of y is the same bits whatever the other rows are and however many. It must be set
  // in inference; a caller may leave it away there only for rows of segments longer than kExactStep
  // (tensor/journal.h), which gives machines with AMX their tile kernels for prompts.
  virtual void linear_forward(const Weight& weight, const float* x, int64_t x_stride, int64_t rows,
                              const float* bias, float* y, int64_t y_stride, Precision precision,
                              bool exact) = 0;

  // dx [rows, in] = dy [rows, out] W, added to what is there if `accumulate`.
  virtual void linear_backward_input(const Weight& weight, const float* dy, int64_t dy_stride,
                                     int64_t rows, float* dx, int64_t dx_stride, bool accumulate,
                                     Precision precision) = 0;

  // dW [out, in] = dy^T x, added to what is there if `accumulate`. The sum over rows is one sum in
  // increasing order.
  virtual void linear_backward_weight(const float* dy, int64_t dy_stride, const float* x,
                                      int64_t x_stride, int64_t rows, int64_t out, int64_t in,
                                      float* dw, int64_t dw_stride, bool accumulate,
                                      Precision precision) = 0;

  // db [out] = the sum of the rows of dy, in increasing order, added to what is there if
  // `accumulate`.
  virtual void linear_backward_bias(const float* dy, int64_t dy_stride, int64_t rows, int64_t out,
                                    float* db, bool accumulate) = 0;
};

std::unique_ptr<MatmulKernels> make_cpu_matmul_kernels();

}  // namespace pronghorn
