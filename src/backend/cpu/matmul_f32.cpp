// f32 kernels of the dense matrix products, for every instruction set that Highway builds.
#include "backend/cpu/matmul_block.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/matmul_f32.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>

#include "backend/cpu/matmul_strips.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

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
constexpr int TilePanels(int rows) { return rows <= 3 ? 8 : rows == 4 ? 6 : rows <= 6 ? 4 : 3; }
#else
constexpr int kTileRows = 4;
constexpr int TilePanels(int rows) { return std::max(1, 12 / kVectors / rows); }
#endif

// The two numbers of a pair of bf16.
struct Pair {
  Vector first, second;
};
HWY_INLINE Pair LoadPair(const uint32_t* pairs) {
  const Tag d;
  const hn::RebindToUnsigned<Tag> bits;
  const auto pair = hn::LoadU(bits, pairs);
  return {hn::BitCast(d, hn::ShiftLeft<16>(pair)),
          hn::BitCast(d, hn::And(pair, hn::Set(bits, 0xffff0000u)))};
}

// The sums of a tile.
template <int R, int P>
HWY_INLINE void AddSteps(const MatmulBlock& block, const float* HWY_RESTRICT a,
                         const float* HWY_RESTRICT b, Vector (&sum)[R][P * kVectors]) {
  constexpr int kColumns = P * kVectors;
  const Tag d;
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
}

// The same for two steps at a time, from pairs that memory holds: lines are asked for
// 2 KB ahead.
template <int R, int P>
HWY_INLINE void AddPairs(const MatmulBlock& block, const float* HWY_RESTRICT a,
                         const uint32_t* HWY_RESTRICT b, Vector (&sum)[R][P * kVectors]) {
  constexpr int64_t kAhead = 2048 / sizeof(uint32_t);
  const Tag d;
  for (int64_t s = 0; s < block.steps; s += 2, a += 2 * block.a_step, b += kPanel) {
    const bool both = s + 1 < block.steps;
    for (int p = 0; p < P; ++p) {
      const uint32_t* from = b + p * block.b_panel;
      __builtin_prefetch(from + kAhead);
      for (int v = 0; v < kVectors; ++v) {
        const Pair right = LoadPair(from + v * kLanes);
        for (int i = 0; i < R; ++i) {
          Vector& to = sum[i][p * kVectors + v];
          to = hn::MulAdd(hn::Set(d, a[i * block.a_row]), right.first, to);
          if (both) {
            to = hn::MulAdd(hn::Set(d, a[i * block.a_row + block.a_step]), right.second, to);
          }
        }
      }
    }
  }
}

// One register tile of R rows and P panels; the last panel holds last_columns columns.
template <int R, int P, bool kPairs>
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
  if constexpr (kPairs) {
    AddPairs<R, P>(block, a, reinterpret_cast<const uint32_t*>(b), sum);
  } else {
    AddSteps<R, P>(block, a, b, sum);
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

template <bool kPairs>
struct Kernel {
  using Step = float;
  static constexpr int tile_panels(int rows) { return TilePanels(rows); }
  template <int R, int P>
  static void tile(const MatmulBlock& block, const float* a, const float* b, float* c,
                   const float* bias, int64_t last_columns) {
    Tile<R, P, kPairs>(block, a, b, c, bias, last_columns);
  }
};

void Block(const MatmulBlock& block) {
  if (block.pairs) {
    matmul_strips<Kernel<true>, kTileRows>(block, 0);
  } else {
    matmul_strips<Kernel<false>, kTileRows>(block, 0);
  }
}

void UnpackPairs(const uint32_t* pairs, int64_t steps, float* to) {
  const Tag d;
  for (int64_t s = 0; s < steps; s += 2, pairs += kPanel, to += 2 * kPanel) {
    for (int64_t j = 0; j < kPanel; j += kLanes) {
      const Pair pair = LoadPair(pairs + j);
      hn::StoreU(pair.first, d, to + j);
      if (s + 1 < steps) hn::StoreU(pair.second, d, to + kPanel + j);
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(Block);
HWY_EXPORT(UnpackPairs);
void matmul_block_f32(const MatmulBlock& block) { HWY_DYNAMIC_DISPATCH(Block)(block); }
void unpack_pairs(const uint32_t* pairs, int64_t steps, float* to) {
  HWY_DYNAMIC_DISPATCH(UnpackPairs)(pairs, steps, to);
}

}  // namespace pronghorn
#endif
