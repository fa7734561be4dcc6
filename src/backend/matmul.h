// Products with weight matrices: forward, and the gradients of input, weight and bias; rows of
// weights as they are stored.
//
// Operands are f32; with Precision::bf16 both operands of a product are rounded to bf16 (to nearest
// even) and the sums are still f32. A weight that is stored in fewer bits is the numbers that its
// encoding gives. Results are the same bits for any number of threads.
//
// A read-only weight in blocks of whole numbers (tensor/block_layouts.h) is multiplied in these
// with Precision::bf16: each 32 neighbours of a row of x are rounded to whole numbers of 8 bits
// times a scale, their products with the weight's are added up exactly, and those sums, scaled, in
// f32 in increasing order. With Precision::f32 its blocks are decoded in passing, and x is not
// rounded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "backend/operands.h"
#include "tensor/dtype.h"

namespace pronghorn {

class Weight;

// y [rows, out] = x [rows, in] W^T + bias (out numbers, or null), one of several.
struct GroupedProduct {
  const Weight* weight = nullptr;
  ConstMatrix x;
  int64_t rows = 0;
  const float* bias = nullptr;
  Matrix y;
};

class MatmulKernels {
 public:
  virtual ~MatmulKernels() = default;

  // y [rows, out] = x [rows, in] W^T + bias (out numbers, or null).
  // A row of y is the same bits whatever the other rows are and however many, if `exact` or if the
  // weight is not in blocks. Required in inference, except for rows of segments longer than
  // kExactStep (tensor/journal.h): without it, machines with AMX multiply many rows by a weight in
  // blocks in bf16, which is faster and no less accurate.
  virtual void linear_forward(const Weight& weight, ConstMatrix x, int64_t rows, const float* bias,
                              Matrix y, Precision precision, bool exact) = 0;

  // The same for several weights, each with rows of its own.
  virtual void grouped_forward(std::span<const GroupedProduct> products, Precision precision,
                               bool exact) = 0;

  // dx [rows, in] = dy [rows, out] W.
  virtual void linear_backward_input(const Weight& weight, ConstMatrix dy, int64_t rows, Matrix dx,
                                     Precision precision) = 0;

  // dW [out, in] = dy^T x, for dy [rows, out] and x [rows, in]. The sum over rows is one sum in
  // increasing order.
  virtual void linear_backward_weight(ConstMatrix dy, ConstMatrix x, int64_t rows, int64_t out,
                                      int64_t in, Matrix dw, Precision precision) = 0;

  // db [out] = the sum of the rows of dy, in increasing order.
  virtual void linear_backward_bias(ConstMatrix dy, int64_t rows, int64_t out, GradVector db) = 0;

  // Row i of `to` [rows.size(), in] = row rows[i] of the weight, in f32, exactly. The indices must
  // be in range.
  virtual void read_rows(const Weight& weight, std::span<const int32_t> rows, Matrix to) = 0;

  // The rows of a weight as they are stored or, where only a packed copy is left, as they were.
  virtual void read_stored(const Weight& weight, std::byte* to) = 0;

  // Bytes that a read-only weight takes, stored and packed, once products were computed with it in
  // this precision. Mapped bytes of a file, which need not stay in memory, are not counted.
  virtual int64_t resident_bytes(const Weight& weight, Precision precision) = 0;

  // Bytes that such a product reads of the weight for one row of x.
  virtual int64_t bytes_read(const Weight& weight, Precision precision) = 0;
};

std::unique_ptr<MatmulKernels> make_cpu_matmul_kernels();

}  // namespace pronghorn
