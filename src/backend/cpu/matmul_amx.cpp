// bf16 kernels of the dense matrix products for AMX. Panels of pairs are tiles as they lie: 16
// steps of 16 columns. One instruction adds the products of 16 steps to a sum, whatever the other
// rows and columns of its tile are.
#include <algorithm>
#include <utility>

#include "backend/cpu/matmul_block.h"
#include "backend/cpu/matmul_scratch.h"
#include "base/error.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "backend/cpu/amx_tiles.h"

namespace pronghorn {
namespace {

constexpr int64_t kStepBytes = 4, kPanelBytes = kPanel * kStepBytes;
constexpr int64_t kMostRows = 2 * amx::kTileRows;
constexpr int kMostPanels = 4;

// Steps of a sum that one instruction adds: a tile of a left or right operand.
struct alignas(kPanelBytes) Tile {
  uint32_t steps[kStepGroup * kPanel];
};

// What is left of an operand after its last whole tile of steps, filled up with zeros.
struct Tails {
  Tile left[2], right[kMostPanels];
};

// A piece of a block: up to two tiles of rows and some panels, of which there are accumulators for
// four tiles.
struct Piece {
  int64_t rows = 0, steps = 0;
  const uint32_t* a = nullptr;
  int64_t a_row = 0;
  const uint32_t* b = nullptr;
  int64_t b_panel = 0;
  const Tails* tails = nullptr;
  float* c[kMostPanels] = {};  // of each panel
  int64_t c_stride[kMostPanels] = {};
  bool load = false;
};

// Registers: 0 to 3 hold sums, 4 and 5 rows of a, 6 and 7 panels of b.
void configure(int64_t rows) {
  const int64_t first = std::min(rows, amx::kTileRows), last = rows > first ? rows - first : first;
  amx::Configuration configuration;
  for (const int tile : {0, 1, 4}) configuration.set(tile, first, kPanelBytes);
  for (const int tile : {2, 3}) configuration.set(tile, last, kPanelBytes);
  configuration.set(5, last, kPanelBytes);
  for (const int tile : {6, 7}) configuration.set(tile, kStepGroup, kPanelBytes);
  configuration.load();
}

// The register that sums tile i of R and panel j.
template <int R>
constexpr int sum_register(int i, int j) {
  return R == 2 ? 2 * i + j : j;
}

// Calls f(integral_constant<int, 0>), ..., f(integral_constant<int, N - 1>).
template <int N, typename F>
inline void unrolled(F f) {
  [&]<int... k>(std::integer_sequence<int, k...>) { (f(std::integral_constant<int, k>()), ...); }
  (std::make_integer_sequence<int, N>());
}

// The products of one tile of steps; the rows of tile i lie a_tile steps after those before.
template <int R, int P>
inline void multiply_steps(const uint32_t* a, int64_t a_row, int64_t a_tile, const uint32_t* b,
                           int64_t b_panel) {
  unrolled<R>([&](auto i) { amx::load<4 + i>(a + i * a_tile, a_row * kStepBytes); });
  unrolled<P>([&](auto j) {
    constexpr int kRight = 6 + j % 2;
    amx::load<kRight>(b + j * b_panel, kPanelBytes);
    unrolled<R>([&](auto i) { amx::multiply_bf16<sum_register<R>(i, j), 4 + i, kRight>(); });
  });
}

template <int R, int P>
void multiply_piece(const Piece& piece) {
  const auto sums = [&](auto move) {
    unrolled<P>([&](auto j) {
      unrolled<R>([&](auto i) {
        move(std::integral_constant<int, sum_register<R>(i, j)>(),
             piece.c[j] + i * amx::kTileRows * piece.c_stride[j], piece.c_stride[j]);
      });
    });
  };
  const auto bytes = [](int64_t stride) { return stride * static_cast<int64_t>(sizeof(float)); };
  if (piece.load) {
    sums([&](auto k, const float* c, int64_t stride) { amx::load<k>(c, bytes(stride)); });
  } else {
    sums([](auto k, const float*, int64_t) { amx::zero<k>(); });
  }
  const uint32_t* a = piece.a;
  const uint32_t* b = piece.b;
  int64_t step = kStepGroup;
  for (; step <= piece.steps; step += kStepGroup) {
    multiply_steps<R, P>(a, piece.a_row, amx::kTileRows * piece.a_row, b, piece.b_panel);
    a += kStepGroup;
    b += kStepGroup * kPanel;
  }
  if (step - kStepGroup < piece.steps) {
    constexpr int64_t kTile = sizeof(Tile) / kStepBytes;
    multiply_steps<R, P>(piece.tails->left[0].steps, kStepGroup, kTile, piece.tails->right[0].steps,
                         kTile);
  }
  sums([&](auto k, float* c, int64_t stride) { amx::store<k>(c, bytes(stride)); });
}

template <int R, int P>
void multiply_panels(const Piece& piece, int panels) {
  if constexpr (P > 1) {
    if (panels < P) return multiply_panels<R, P - 1>(piece, panels);
  }
  multiply_piece<R, P>(piece);
}

// Columns of the last panel of a block, where they are not 16.
struct Edge {
  alignas(kPanelBytes) float sums[kMostRows * kPanel];
};

void multiply_rows(const MatmulBlock& block, Piece& piece, int64_t row, int64_t panel, int panels,
                   Tails& tails) {
  const int64_t whole = block.steps / kStepGroup * kStepGroup, rest = block.steps - whole;
  for (int64_t i = 0; rest > 0 && i < piece.rows; ++i) {
    Tile& tile = tails.left[i / amx::kTileRows];
    std::copy_n(piece.a + i * piece.a_row + whole, rest,
                tile.steps + i % amx::kTileRows * kStepGroup);
  }
  const int64_t columns = std::min(panels * kPanel, block.columns - panel * kPanel);
  float* const c = block.c + row * block.c_stride + panel * kPanel;
  for (int j = 0; j < panels; ++j) {
    piece.c[j] = c + j * kPanel;
    piece.c_stride[j] = block.c_stride;
  }
  Edge edge;
  const int64_t last = (panels - 1) * kPanel, width = columns - last;
  if (width < kPanel) {
    for (int64_t i = 0; i < piece.rows && piece.load; ++i) {
      std::copy_n(c + i * block.c_stride + last, width, edge.sums + i * kPanel);
      std::fill(edge.sums + i * kPanel + width, edge.sums + (i + 1) * kPanel, 0.0f);
    }
    piece.c[panels - 1] = edge.sums;
    piece.c_stride[panels - 1] = kPanel;
  }
  if (piece.rows > amx::kTileRows) {
    multiply_panels<2, 2>(piece, panels);
  } else {
    multiply_panels<1, kMostPanels>(piece, panels);
  }
  for (int64_t i = 0; i < piece.rows; ++i) {
    float* const to = c + i * block.c_stride;
    if (width < kPanel) std::copy_n(edge.sums + i * kPanel, width, to + last);
    if (block.bias == nullptr) continue;
    const float* const bias = block.bias + panel * kPanel;
    for (int64_t j = 0; j < columns; ++j) to[j] += bias[j];
  }
}

// 16 rows of 16 steps -> its columns, `stride` steps apart.
__attribute__((target("avx512f"))) void turn_tile(const uint32_t* from, uint32_t* to,
                                                  int64_t stride) {
  constexpr int kRows = 16;
  __m512i rows[kRows];
  for (int i = 0; i < kRows; ++i) rows[i] = _mm512_loadu_si512(from + i * kPanel);
  const __m512i place = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  // Squares of d rows and columns change places with those to the right of and below them.
  for (int d = kRows / 2; d > 0; d /= 2) {
    const __m512i distance = _mm512_set1_epi32(d), bit = _mm512_and_si512(place, distance);
    // Where each place's number is: in the row above at [0, 16), in the one below at [16, 32).
    const __m512i other = _mm512_set1_epi32(kRows);
    const __mmask16 right = _mm512_test_epi32_mask(place, distance);
    const __m512i upper = _mm512_mask_add_epi32(place, right, _mm512_sub_epi32(place, bit), other);
    const __m512i lower =
        _mm512_mask_add_epi32(_mm512_add_epi32(place, distance), right, place, other);
    for (int i = 0; i < kRows; ++i) {
      if ((i & d) != 0) continue;
      const __m512i above = rows[i], below = rows[i + d];
      rows[i] = _mm512_permutex2var_epi32(above, upper, below);
      rows[i + d] = _mm512_permutex2var_epi32(above, lower, below);
    }
  }
  for (int i = 0; i < kRows; ++i) _mm512_storeu_si512(to + i * stride, rows[i]);
}

// Panels of a left operand -> rows, `stride` steps apart, of whole groups of steps and whole tiles.
void turn_panels(const MatmulBlock& block, uint32_t* to, int64_t stride) {
  const auto* const a = static_cast<const uint32_t*>(block.a);
  for (int64_t i = 0; i < block.rows; i += kPanel) {
    const uint32_t* const panel = a + i / kPanel * block.a_panel;
    uint32_t* const rows = to + i * stride;
    int64_t s = 0;
    for (; s + kStepGroup <= block.steps; s += kStepGroup) {
      turn_tile(panel + s * kPanel, rows + s, stride);
    }
    if (s == block.steps) continue;
    Tile rest{};
    std::copy_n(panel + s * kPanel, (block.steps - s) * kPanel, rest.steps);
    turn_tile(rest.steps, rows + s, stride);
  }
}

}  // namespace

void matmul_block_amx(const MatmulBlock& block) {
  Piece all;
  all.steps = block.steps;
  all.a = static_cast<const uint32_t*>(block.a);
  all.a_row = block.a_row;
  all.b_panel = block.b_panel;
  all.load = block.load;
  if (block.a_step != 1) {
    // A group more than needed: rows a power of two apart would share few sets of the cache.
    all.a_row = (block.steps + kStepGroup - 1) / kStepGroup * kStepGroup + kStepGroup;
    const int64_t height = (block.rows + kPanel - 1) / kPanel * kPanel;
    uint32_t* const rows = matmul_scratch(MatmulBuffer::result, height * all.a_row);
    turn_panels(block, rows, all.a_row);
    all.a = rows;
  }
  Tails tails;
  all.tails = &tails;
  const auto* const b = static_cast<const uint32_t*>(block.b);
  const int64_t count = (block.columns + kPanel - 1) / kPanel;
  const int64_t whole = block.steps / kStepGroup * kStepGroup, rest = block.steps - whole;
  if (rest > 0) tails = {};
  int64_t configured = 0;
  const int64_t wide = block.rows > amx::kTileRows ? 2 : kMostPanels;
  for (int64_t panel = 0; panel < count; panel += wide) {
    const auto panels = static_cast<int>(std::min(wide, count - panel));
    Piece piece = all;
    piece.b = b + panel * block.b_panel;
    for (int j = 0; rest > 0 && j < panels; ++j) {
      std::copy_n(piece.b + j * block.b_panel + whole * kPanel, rest * kPanel,
                  tails.right[j].steps);
    }
    for (int64_t row = 0; row < block.rows; row += kMostRows) {
      piece.rows = std::min(kMostRows, block.rows - row);
      piece.a = all.a + row * all.a_row;
      if (piece.rows != configured) configure(piece.rows);
      configured = piece.rows;
      multiply_rows(block, piece, row, panel, panels, tails);
    }
  }
  amx::release();
}

}  // namespace pronghorn

#else  // never called: cpu_features().amx is false

namespace pronghorn {
void matmul_block_amx(const MatmulBlock&) { throw Error("matmul", "no AMX kernel here"); }
}  // namespace pronghorn
#endif
