// bf16 products by oneDNN, which has tile kernels for AMX: called on one thread from inside our own
// parallel loops.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "tensor/dtype.h"

namespace pronghorn {

class OneDnnMatmul {
 public:
  OneDnnMatmul();
  ~OneDnnMatmul();

  // c [rows, columns] f32 (+)= a [rows, terms] b [terms, columns] + bias.
  struct Shape {
    int64_t rows = 0, columns = 0, terms = 0;
    int64_t c_stride = 0;
    bool accumulate = false, bias = false;
    bool gradient = false;  // a lies as [terms, rows] and b plain, instead of a plain and b packed
    auto operator<=>(const Shape&) const = default;
  };

  // The packed form of a weight as right operand.
  size_t packed_bytes(int64_t columns, int64_t terms);
  // b (t, c) = weight[c * stride + t] if `transposed`, else weight[t * stride + c].
  void pack(const float* weight, int64_t stride, bool transposed, int64_t columns, int64_t terms,
            std::byte* to);

  void run(const Shape& shape, const bf16_t* a, const void* b, const float* bias, float* c);

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace pronghorn
