// The inner kernels of the dense matrix products: one block of the result on one thread.
//
// Operands hold steps of 4 bytes: an f32, or a pair of bf16 that are neighbours along the sum. The
// right operand, and the left one of weight gradients, lie in panels 16 columns wide:
// [columns / 16][steps][16], columns past the end being zero.
#pragma once

#include <cstdint>

namespace pronghorn {

constexpr int64_t kPanel = 16;

// Steps of a sum that AMX adds in one instruction.
constexpr int64_t kStepGroup = 16;

// c [rows, columns] = a b, after which `bias` (if not null) is added; if `load` the sum starts from
// what is in c, so a sum may be cut after any whole group of steps without changing a bit of it.
// Every element is one sum over the steps in increasing order with the same instructions whatever
// rows and columns are.
struct MatmulBlock {
  int64_t rows = 0, columns = 0, steps = 0;
  // Left operand: step s of row i is at (i / 16) a_panel + (i % 16) a_row + s a_step, in 4-byte
  // units. Rows at a fixed stride r have a_row = r, a_panel = 16 r, a_step = 1; panels have a_row =
  // 1, a_step = 16.
  const void* a = nullptr;
  int64_t a_panel = 0, a_row = 0, a_step = 0;
  const void* b = nullptr;  // first panel
  int64_t b_panel = 0;      // from panel to panel, in 4-byte units
  bool pairs = false;       // f32 kernel: b holds pairs of bf16, each for two steps
  float* c = nullptr;
  int64_t c_stride = 0;
  bool load = false;
  const float* bias = nullptr;
};

// f32 sums of f32 products, for the instruction set in use.
void matmul_block_f32(const MatmulBlock& block);

// A panel of bf16 pairs -> the f32 panel [steps][16] of the same numbers.
void unpack_pairs(const uint32_t* pairs, int64_t steps, float* to);

// AVX-512 BF16; to be called only where cpu_features().bf16.
void matmul_block_bf16(const MatmulBlock& block);

// The same numbers by AMX, up to rounding; to be called only where cpu_features().amx.
void matmul_block_amx(const MatmulBlock& block);

// Rows of numbers -> rows of bf16 pairs, `pairs_stride` pairs apart; an odd last number is paired
// with zero.
void pair_columns_bf16(const float* x, int64_t x_stride, int64_t rows, int64_t columns,
                       uint32_t* pairs, int64_t pairs_stride);

// Pairs of neighbouring rows -> panels [columns / 16][steps][16], `panel` units from one to the
// next; an odd last row is paired with zero.
void pack_row_pairs_bf16(const float* x, int64_t x_stride, int64_t rows, int64_t columns,
                         uint32_t* panels, int64_t panel);

}  // namespace pronghorn
