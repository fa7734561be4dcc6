// Tensor: a handle to dense numbers, with views that share them and a gradient that travels along.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "tensor/dtype.h"
#include "tensor/shape.h"
#include "tensor/storage.h"

namespace pronghorn {

struct GradTarget;

// A copy of a Tensor is another handle to the same numbers and the same gradient. Operators see a
// tensor as a matrix: rows() x columns(), rows row_stride() elements apart, columns adjacent.
class Tensor {
 public:
  Tensor() = default;  // undefined

  // Fresh contiguous tensors. empty() leaves the numbers undefined.
  static Tensor empty(Shape shape, DType dtype = DType::f32);
  static Tensor zeros(Shape shape, DType dtype = DType::f32);
  static Tensor full(Shape shape, float value);
  // values.size() must be the number of elements of `shape`.
  static Tensor from(std::span<const float> values, Shape shape);

  bool defined() const { return node_ != nullptr; }
  DType dtype() const;
  const Shape& shape() const { return shape_; }
  int64_t dim(int index) const;  // negative: from the end
  int64_t size() const;          // number of elements
  int64_t bytes() const { return size() * dtype_size(dtype()); }
  int64_t columns() const { return shape_.empty() ? 1 : shape_.back(); }
  int64_t rows() const { return columns() == 0 ? 0 : size() / columns(); }
  int64_t row_stride() const { return row_stride_; }  // elements
  bool contiguous() const { return row_stride_ == columns() || rows() <= 1; }

  // Addresses in memory() (tensor/memory.h): for kernels, and for who knows that it is the host's.
  float* data() const { return typed<float>(DType::f32); }
  bf16_t* bf16_data() const { return typed<bf16_t>(DType::bf16); }
  int32_t* i32_data() const { return typed<int32_t>(DType::i32); }
  float* row(int64_t index) const { return data() + index * row_stride_; }
  std::span<float> values() const;  // f32 and contiguous only

  // Views: they share numbers and gradient with this tensor.
  Tensor column_slice(int64_t begin, int64_t count) const;  // as a matrix [rows, count]
  Tensor row_slice(int64_t begin, int64_t count) const;     // as a matrix [count, columns]
  Tensor reshape(Shape shape) const;                        // contiguous only
  // A handle to the same numbers without gradient or history.
  Tensor detach() const;
  // A contiguous copy of the numbers, without gradient.
  Tensor clone() const;
  // Copies numbers from a tensor of the same shape.
  void copy_from(const Tensor& other) const;
  void fill(float value) const;
  // The numbers, f32, row after row, in memory of the host, and the opposite.
  PooledVector<float> read() const;
  void write(std::span<const float> values) const;

  // Gradients. Only tensors that require one are given one; a view requires one if its base does.
  bool requires_grad() const;
  const Tensor& set_requires_grad(bool required) const;
  bool has_grad() const;
  // The gradient in this tensor's shape and strides, to be read. Throws Error if there is none.
  Tensor grad() const;
  // Where to write this tensor's gradient: to add to it if `accumulate`, else to overwrite it
  // whole.
  GradTarget grad_target() const;
  // Makes g (same shape, complete: nobody adds to it any more) this tensor's gradient, or adds it.
  // Without a copy where it can: a later grad_target() of either copies first.
  void give_grad(const Tensor& g) const;
  void clear_grad() const;

  // Counts changes of the numbers in place; packed copies of weights compare it.
  uint64_t version() const;
  void bump_version() const;

 private:
  struct Node;
  template <typename T>
  T* typed(DType expected) const;
  bool covers_base() const;

  std::shared_ptr<Node> node_;
  Shape shape_;
  int64_t offset_ = 0;
  int64_t row_stride_ = 0;
};

struct GradTarget {
  Tensor tensor;
  bool accumulate;
};

}  // namespace pronghorn
