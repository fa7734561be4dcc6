// How a block of a product is cut into register tiles, the same for all inner kernels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/cpu/matmul_block.h"

namespace pronghorn {

// A Kernel has a type Step of 4 bytes, tile_panels(rows), the panels that a tile of that many rows
// has registers for, and tile<R, P>(), one register tile of R rows and P panels:
//   (block, a, b, c, bias or null, columns of the last panel)
template <typename Kernel>
using MatmulTile = void (*)(const MatmulBlock&, const typename Kernel::Step*,
                            const typename Kernel::Step*, float*, const float*, int64_t);

// The tile of `panels` panels, at most what R rows leave registers for.
template <typename Kernel, int R, int P = Kernel::tile_panels(R)>
MatmulTile<Kernel> matmul_tile(int panels) {
  if constexpr (P > 1) {
    if (panels < P) return matmul_tile<Kernel, R, P - 1>(panels);
  }
  return &Kernel::template tile<R, P>;
}

// All rows from `row` on that make whole strips of R; then what is left in smaller ones. Groups of
// panels are the outer loop, so that a group stays in the first cache while the rows pass.
template <typename Kernel, int R>
void matmul_strips(const MatmulBlock& block, int64_t row) {
  using Step = typename Kernel::Step;
  const int64_t end = row + (block.rows - row) / R * R;
  int64_t left = row == end ? 0 : (block.columns + kPanel - 1) / kPanel, panel = 0;
  while (left > 0) {
    // Groups of about the same size, instead of full ones and a narrow last one.
    const int64_t groups = (left + Kernel::tile_panels(R) - 1) / Kernel::tile_panels(R);
    const int64_t panels = (left + groups - 1) / groups;
    const MatmulTile<Kernel> run = matmul_tile<Kernel, R>(static_cast<int>(panels));
    const auto* b = static_cast<const Step*>(block.b) + panel * block.b_panel;
    const int64_t column = panel * kPanel;
    const float* bias = block.bias == nullptr ? nullptr : block.bias + column;
    const int64_t last = std::min(kPanel, block.columns - column - (panels - 1) * kPanel);
    for (int64_t i = row; i < end; i += R) {
      const auto* a =
          static_cast<const Step*>(block.a) + i / kPanel * block.a_panel + i % kPanel * block.a_row;
      run(block, a, b, block.c + i * block.c_stride + column, bias, last);
    }
    panel += panels;
    left -= panels;
  }
  if constexpr (R > 1) {
    if (end < block.rows) matmul_strips<Kernel, R - 1>(block, end);
  }
}

}  // namespace pronghorn
