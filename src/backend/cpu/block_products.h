// Several products with weights in panels of blocks, on all threads.
#pragma once

#include <span>

#include "backend/cpu/block_panels.h"

namespace pronghorn {

// y [rows, out] = x W^T + bias, which may be null.
struct BlockLinear {
  BlockPanels shape;
  const uint8_t* panels = nullptr;
  ConstMatrix x;
  int64_t rows = 0;
  const float* bias = nullptr;
  Matrix y;
};

// All of them in one fork of the threads, or one more where their rows are so many that several
// threads round them. Rows that several products read in the same way are rounded once.
void multiply_blocks(std::span<const BlockLinear> products);

}  // namespace pronghorn
