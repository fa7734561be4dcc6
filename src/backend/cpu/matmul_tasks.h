// Parts of the dense matrix products that several of their files share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/cpu/matmul_block.h"
#include "backend/cpu/packed_weight.h"
#include "backend/operands.h"

namespace pronghorn {

class OneDnnMatmul;

// How many pieces `work` multiply-adds should be cut into at least: one where a fork of the threads
// costs more than it saves (about 3 microseconds), and enough to keep several threads evenly busy.
inline int64_t matmul_pieces(int64_t work) {
  constexpr int64_t kSerialWork = 1 << 17, kPieces = 16;
  return work < kSerialWork ? 1 : std::min(kPieces, work / (kSerialWork / 4));
}

inline void run_matmul_block(Format format, const MatmulBlock& block) {
  if (format == Format::pairs) {
    matmul_block_bf16(block);
  } else {
    matmul_block_f32(block);
  }
}

// Rows of numbers -> bf16 [height, width], zero where x is smaller.
void round_rows(const float* x, int64_t x_stride, int64_t rows, int64_t columns, uint16_t* to,
                int64_t height, int64_t width);

// dW as MatmulKernels::linear_backward_weight() says, by our kernels for `format` or, unless it is
// null, by oneDNN's.
void matmul_weight_gradient(OneDnnMatmul* library, Format format, ConstMatrix dy, ConstMatrix x,
                            int64_t rows, int64_t out, int64_t in, Matrix dw);

}  // namespace pronghorn
