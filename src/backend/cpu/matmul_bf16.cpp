// bf16 kernels of the dense matrix products for AVX-512 BF16, whose dot product adds the products
// of two neighbouring bf16 to each of 16 f32 sums. Compiled for that instruction set function by
// function, so that the rest of the program runs anywhere.
#include <algorithm>

#include "backend/cpu/matmul_block.h"
#include "backend/cpu/matmul_strips.h"
#include "base/error.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define PRONGHORN_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

namespace pronghorn {
namespace {

// Rows and panels of a register tile: at most 24 accumulators of 32 registers. Six rows by four
// panels are some percent faster than eight by three, but would straddle the panels of a packed
// left operand. With fewer rows there are more panels, which hides the latency of the additions and
// reads B in more streams.
constexpr int kTileRows = 6, kPanelTileRows = 8;
constexpr int panels_for(int rows) { return rows <= 3 ? 8 : rows == 4 ? 6 : rows <= 6 ? 4 : 3; }

// One register tile of R rows and P panels; the last panel holds last_columns columns.
template <int R, int P>
PRONGHORN_BF16 void register_tile(const MatmulBlock& block, const uint32_t* __restrict a,
                                  const uint32_t* __restrict b, float* __restrict c,
                                  const float* __restrict bias, int64_t last_columns) {
  const auto last = static_cast<__mmask16>((1u << last_columns) - 1);
  __m512 sum[R][P];
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < P; ++j) {
      const float* from = c + i * block.c_stride + j * kPanel;
      sum[i][j] = !block.load  ? _mm512_setzero_ps()
                  : j == P - 1 ? _mm512_maskz_loadu_ps(last, from)
                               : _mm512_loadu_ps(from);
    }
  }
  const int64_t a_row = block.a_row, a_step = block.a_step, b_panel = block.b_panel;
  for (int64_t s = 0; s < block.steps; ++s) {
    __m512bh right[P];
    for (int j = 0; j < P; ++j) right[j] = (__m512bh)_mm512_loadu_si512(b + j * b_panel);
    for (int i = 0; i < R; ++i) {
      const auto left = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[i * a_row]));
      for (int j = 0; j < P; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], left, right[j]);
    }
    a += a_step;
    b += kPanel;
  }
  for (int j = 0; j < P; ++j) {
    const __mmask16 mask = j == P - 1 ? last : static_cast<__mmask16>(0xffff);
    if (bias != nullptr) {
      const __m512 add = _mm512_maskz_loadu_ps(mask, bias + j * kPanel);
      for (int i = 0; i < R; ++i) sum[i][j] = _mm512_add_ps(sum[i][j], add);
    }
    for (int i = 0; i < R; ++i) {
      float* to = c + i * block.c_stride + j * kPanel;
      if (j == P - 1) {
        _mm512_mask_storeu_ps(to, mask, sum[i][j]);
      } else {
        _mm512_storeu_ps(to, sum[i][j]);
      }
    }
  }
}

struct Kernel {
  using Step = uint32_t;
  static constexpr int tile_panels(int rows) { return panels_for(rows); }
  template <int R, int P>
  static void tile(const MatmulBlock& block, const uint32_t* a, const uint32_t* b, float* c,
                   const float* bias, int64_t last_columns) {
    register_tile<R, P>(block, a, b, c, bias, last_columns);
  }
};

// 16 numbers (those of `mask`) as bf16 in the lower halves of 16 lanes. (The forms with a mask of
// all lanes, here and below, because g++ 12 warns about its own plain ones.)
PRONGHORN_BF16 inline __m512i load_rounded(__mmask16 mask, const float* x) {
  const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x));
  return _mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)rounded);
}

// Numbers -> bf16.
PRONGHORN_BF16 void round_row_bf16(const float* x, int64_t columns, uint16_t* to) {
  int64_t j = 0;
  for (; j + kPanel <= columns; j += kPanel) {
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(x + j));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + j), (__m256i)rounded);
  }
  if (j == columns) return;
  const auto mask = static_cast<__mmask16>((1u << (columns - j)) - 1);
  const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + j));
  _mm256_mask_storeu_epi16(to + j, mask, (__m256i)rounded);
}

}  // namespace

void matmul_block_bf16(const MatmulBlock& block) {
  if (block.a_panel == kPanel * block.a_row) {
    matmul_strips<Kernel, kTileRows>(block, 0);
  } else {
    matmul_strips<Kernel, kPanelTileRows>(block, 0);
  }
}

void pair_columns_bf16(const float* x, int64_t x_stride, int64_t rows, int64_t columns,
                       uint32_t* pairs, int64_t pairs_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    auto* to = reinterpret_cast<uint16_t*>(pairs + i * pairs_stride);
    round_row_bf16(x + i * x_stride, columns, to);
    if (columns % 2 != 0) to[columns] = 0;
  }
}

// Row by row, not panel by panel: memory is read in the order it lies in.
PRONGHORN_BF16 void pack_row_pairs_bf16(const float* x, int64_t x_stride, int64_t rows,
                                        int64_t columns, uint32_t* panels, int64_t panel) {
  const int64_t steps = (rows + 1) / 2;
  for (int64_t s = 0; s < steps; ++s) {
    const float* from = x + 2 * s * x_stride;
    const bool pair = 2 * s + 1 < rows;
    uint32_t* to = panels + s * kPanel;
    for (int64_t column = 0; column < columns; column += kPanel, to += panel) {
      const int64_t width = std::min(kPanel, columns - column);
      const auto mask = static_cast<__mmask16>((1u << width) - 1);
      const __m512i low = load_rounded(mask, from + column);
      const __m512i high = pair ? load_rounded(mask, from + x_stride + column)  //
                                : _mm512_setzero_si512();
      const __m512i upper = _mm512_maskz_slli_epi32(0xffff, high, 16);
      _mm512_storeu_si512(to, _mm512_or_si512(low, upper));
    }
  }
}

}  // namespace pronghorn

#else  // never called: cpu_features().bf16 is false

namespace pronghorn {
void matmul_block_bf16(const MatmulBlock&) { throw Error("matmul", "no bf16 kernel here"); }
void pair_columns_bf16(const float*, int64_t, int64_t, int64_t, uint32_t*, int64_t) {
  throw Error("matmul", "no bf16 kernel here");
}
void pack_row_pairs_bf16(const float*, int64_t, int64_t, int64_t, uint32_t*, int64_t) {
  throw Error("matmul", "no bf16 kernel here");
}
}  // namespace pronghorn
#endif
