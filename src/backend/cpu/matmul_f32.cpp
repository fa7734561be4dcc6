// f32 kernels of the dense matrix products, for every instruction set that Highway builds.
#include "backend/cpu/matmul_block.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/matmul_f32.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
// At most a panel wide, so that a panel is a whole number of vectors everywhere.
using Tag = hn::CappedTag<float, static_cast<size_t>(kPanel)>;
using Vector = hn::Vec<Tag>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Tag()));
constexpr int kVectors = static_cast<int>(kPanel) / kLanes;  // of one panel

// Rows and panels of a register tile: 24 accumulators on 32 registers, 8 to 12 on 16. With fewer
// rows there are more panels, which hides the latency of the additions and reads B in more streams.
#if HWY_TARGET <= HWY_AVX3
constexpr int kTileRows = 8;
constexpr int tile_panels(int rows) { return rows <= 3 ? 8 : rows == 4 ? 6 : rows <= 6 ? 4 : 3; }
#else
constexpr int kTileRows = 4;
constexpr int tile_panels(int rows) { return std::max(1, 12 / kVectors / rows); }
#endif

// One register tile of R rows and P panels; the last panel holds last_columns columns.
template <int R, int P>
void Tile(const MatmulBlock& block, const float* HWY_RESTRICT a, const float* HWY_RESTRICT b,
          float* HWY_RESTRICT c, const float* HWY_RESTRICT bias, int64_t last_columns) {
  constexpr int kColumns = P * kVectors;
  const Tag d;
  const bool partial = last_columns != kPanel;
  // The last panel may be narrower than its vectors: it goes through these.
  HWY_ALIGN float edge[R][kPanel], edge_bias[kPanel];
  const auto at = [&](int i, int j) {
    if (partial && j / kVectors == P - 1) return edge[i] + j % kVectors * kLanes;
    return c + i * block.c_stride + j * kLanes;
  };
  float* const last = c + (P - 1) * kPanel;
  if (partial && block.load) {
    for (int i = 0; i < R; ++i) {
      std::copy_n(last + i * block.c_stride, last_columns, edge[i]);
      std::fill(edge[i] + last_columns, edge[i] + kPanel, 0.0f);
    }
  }
  Vector sum[R][kColumns];
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      sum[i][j] = block.load ? hn::LoadU(d, at(i, j)) : hn::Zero(d);
    }
  }
  const int64_t a_row = block.a_row, a_step = block.a_step, b_panel = block.b_panel;
  for (int64_t s = 0; s < block.steps; ++s) {
    Vector right[kColumns];
    for (int j = 0; j < kColumns; ++j) {
      right[j] = hn::LoadU(d, b + j / kVectors * b_panel + j % kVectors * kLanes);
    }
    for (int i = 0; i < R; ++i) {
      const Vector left = hn::Set(d, a[i * a_row]);
      for (int j = 0; j < kColumns; ++j) sum[i][j] = hn::MulAdd(left, right[j], sum[i][j]);
    }
    a += a_step;
    b += kPanel;
  }
  if (bias != nullptr) {
    if (partial) {
      std::copy_n(bias + (P - 1) * kPanel, last_columns, edge_bias);
      std::fill(edge_bias + last_columns, edge_bias + kPanel, 0.0f);
    }
    for (int j = 0; j < kColumns; ++j) {
      const bool narrow = partial && j / kVectors == P - 1;
      const Vector add =
          hn::LoadU(d, narrow ? edge_bias + j % kVectors * kLanes : bias + j * kLanes);
      for (int i = 0; i < R; ++i) sum[i][j] = hn::Add(sum[i][j], add);
    }
  }
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < kColumns; ++j) hn::StoreU(sum[i][j], d, at(i, j));
    if (partial) std::copy_n(edge[i], last_columns, last + i * block.c_stride);
  }
}

using TileFunction = void (*)(const MatmulBlock&, const float*, const float*, float*, const float*,
                              int64_t);

// The tile of `panels` panels, at most what R rows leave registers for.
template <int R, int P = tile_panels(R)>
TileFunction TileOf(int panels) {
  if constexpr (P > 1) {
    if (panels < P) return TileOf<R, P - 1>(panels);
  }
  return &Tile<R, P>;
}

// All rows from `row` on that make whole strips of R; then what is left in smaller ones. Groups of
// panels are the outer loop, so that a group stays in the first cache while the rows pass.
template <int R>
void RowsFrom(const MatmulBlock& block, int64_t row) {
  const int64_t end = row + (block.rows - row) / R * R;
  int64_t left = row == end ? 0 : (block.columns + kPanel - 1) / kPanel, panel = 0;
  while (left > 0) {
    // Groups of about the same size, instead of full ones and a narrow last one.
    const int64_t groups = (left + tile_panels(R) - 1) / tile_panels(R);
    const int64_t panels = (left + groups - 1) / groups;
    const TileFunction run = TileOf<R>(static_cast<int>(panels));
    const auto* b = static_cast<const float*>(block.b) + panel * block.b_panel;
    const int64_t column = panel * kPanel;
    const float* bias = block.bias == nullptr ? nullptr : block.bias + column;
    const int64_t last = std::min(kPanel, block.columns - column - (panels - 1) * kPanel);
    for (int64_t i = row; i < end; i += R) {
      const auto* a = static_cast<const float*>(block.a) + i / kPanel * block.a_panel +
                      i % kPanel * block.a_row;
      run(block, a, b, block.c + i * block.c_stride + column, bias, last);
    }
    panel += panels;
    left -= panels;
  }
  if constexpr (R > 1) {
    if (end < block.rows) RowsFrom<R - 1>(block, end);
  }
}

void Block(const MatmulBlock& block) { RowsFrom<kTileRows>(block, 0); }

}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(Block);
void matmul_block_f32(const MatmulBlock& block) { HWY_DYNAMIC_DISPATCH(Block)(block); }

}  // namespace pronghorn
#endif
