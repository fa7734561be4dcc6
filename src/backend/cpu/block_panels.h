// Weights in encodings of blocks as the kernels read them: panels of 16 rows, their codes turned so
// that 64 neighbouring bytes hold four codes of each row, as many bits a code as before. Every bit
// of the blocks is kept, so panels replace what is stored.
//
// A panel is read from its first to its last byte: of each block of its rows first the scales, then
// the codes. Scales: 16 f16, then 16 minima if there are any; for each group, if there are factors,
// 16 of these and 16 for the minima, or both in one byte where codes have 2 bits. Codes, of each 32
// numbers of the rows, in quads of four: of 4 bits they are four vectors of 64 bytes that hold two
// quads each, of 8 bits eight vectors of one quad each. A third or fifth bit is one vector more, of
// bit j in quad j; 2 bits are two vectors, that hold four quads each.
#pragma once

#include <cstdint>

#include "backend/cpu/matmul_block.h"
#include "backend/operands.h"
#include "tensor/block_layouts.h"
#include "tensor/weight.h"

namespace pronghorn {

constexpr int64_t kUnitTerms = 32;  // numbers of a row whose codes lie together, and that share an
                                    // activation's scale
constexpr int64_t kUnitCodes = kUnitTerms * kPanel;  // bytes of a unit's codes, unpacked

// Where things are in the panels of one matrix.
struct BlockPanels {
  const BlockLayout* layout = nullptr;
  int64_t out = 0, in = 0;

  int64_t panels() const { return (out + kPanel - 1) / kPanel; }
  int64_t blocks() const { return in / layout->block; }
  int64_t units() const { return in / kUnitTerms; }
  int64_t unit_bytes() const { return layout->bits * kUnitCodes / 8; }
  bool nibble_factors() const { return layout->bits == 2; }
  int64_t block_floats() const { return layout->has_minimum ? 2 : 1; }  // times 16
  int64_t group_bytes() const {                                         // times 16
    if (!layout->has_factors) return 0;
    return layout->has_minimum && !nibble_factors() ? 2 : 1;
  }
  // Bytes of the scales of one block, of a block of all rows, and of a panel, which begins at a
  // cache line.
  int64_t scale_bytes() const {
    return kPanel * (2 * block_floats() + layout->groups() * group_bytes());
  }
  int64_t block_bytes() const { return scale_bytes() + layout->block / kUnitTerms * unit_bytes(); }
  int64_t panel_bytes() const {
    constexpr int64_t kLine = 64;
    return (blocks() * block_bytes() + kLine - 1) / kLine * kLine;
  }
  int64_t bytes() const { return panels() * panel_bytes(); }
};

// All rows of blocks, of stored_bytes each, -> panels [first, end) of [panels()][panel_bytes()].
void pack_block_panels(const BlockPanels& shape, int64_t stored_bytes, const std::byte* stored,
                       int64_t first, int64_t end, uint8_t* panels);

// Blocks [first, first + count) of one row, as they were stored.
void unpack_blocks(const BlockPanels& shape, int64_t stored_bytes, const uint8_t* panels,
                   int64_t row, int64_t first, int64_t count, std::byte* to);

// Units [unit, unit + count) of a panel, whole blocks, -> pairs of bf16 [16 count][16]: the numbers
// of the weight, rounded. To be called only where cpu_features().bf16.
void unpack_block_pairs(const BlockPanels& shape, const uint8_t* panel, int64_t unit, int64_t count,
                        uint32_t* to);

// Activations rounded to 8 bits, in tiles of 16 rows (the last may have fewer): of each unit, the
// rows' 32 numbers one row after another. A number is about scale * code; the largest of each unit
// has the code 127 or -127.
constexpr int64_t kRowTile = 16;
struct QuantisedRows {
  int64_t rows = 0, units = 0;
  bool halves = false;  // sums of 16 codes, not 32
  int8_t* codes = nullptr;
  float* scales = nullptr;         // [tile][unit][row]
  int32_t* corrections = nullptr;  // [tile][unit][half][row]: the sum of the codes, times -offset
  float* sums = nullptr;           // the same: the sum of the codes, times the scale

  int64_t tiles() const { return (rows + kRowTile - 1) / kRowTile; }
  int64_t tile_rows(int64_t tile) const {
    return rows - tile * kRowTile < kRowTile ? rows - tile * kRowTile : kRowTile;
  }
};

// Tiles [begin, end) of x.
void quantise_tiles(ConstMatrix x, int offset, const QuantisedRows& to, int64_t begin, int64_t end);

// Panels [first, end) of the product for tiles [begin_tile, end_tile) of rows, plus bias, which may
// be null. A result is one sum over the units in increasing order: whole numbers within each, then
// f32, whatever rows and panels are computed with it.
struct BlockProduct {
  BlockPanels shape;
  const uint8_t* panels = nullptr;
  QuantisedRows x;
  int64_t begin_tile = 0, end_tile = 0, first = 0, end = 0;
  Matrix y;
  const float* bias = nullptr;
};
void multiply_block_panels(const BlockProduct& product);

// y [rows, out] = x W^T + bias on all threads.
void multiply_blocks(const BlockPanels& shape, const uint8_t* panels, ConstMatrix x, int64_t rows,
                     const float* bias, Matrix y);

}  // namespace pronghorn
