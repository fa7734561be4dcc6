// Parts of the dense matrix products that several of their files share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/cpu/cpu_features.h"
#include "backend/cpu/matmul_block.h"
#include "backend/cpu/packed_weight.h"
#include "backend/operands.h"

namespace pronghorn {

// How many pieces `work` multiply-adds should be cut into at least: one where a fork of the threads
// costs more than it saves (about 3 microseconds), and enough to keep several threads evenly busy.
inline int64_t matmul_pieces(int64_t work) {
  constexpr int64_t kSerialWork = 1 << 17, kPieces = 16;
  return work < kSerialWork ? 1 : std::min(kPieces, work / (kSerialWork / 4));
}

// Whether products of operands in this format are computed by AMX.
inline bool uses_amx(Format format) { return format == Format::pairs && cpu_features().amx; }

inline void run_matmul_block(Format format, const MatmulBlock& block) {
  if (format != Format::pairs) {
    matmul_block_f32(block);
  } else if (uses_amx(format)) {
    matmul_block_amx(block);
  } else {
    matmul_block_bf16(block);
  }
}

// dW as MatmulKernels::linear_backward_weight() says, by the kernels for `format`.
void matmul_weight_gradient(Format format, ConstMatrix dy, ConstMatrix x, int64_t rows, int64_t out,
                            int64_t in, Matrix dw);

}  // namespace pronghorn
