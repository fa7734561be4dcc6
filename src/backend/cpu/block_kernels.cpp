// Products with weights in panels of blocks, for every instruction set that Highway builds: whole
// numbers of 8 bits are multiplied and added up in 32 bits, and units of 32 in f32.
#include "backend/cpu/block_panels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/block_kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "backend/cpu/cpu_features.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
// At most a panel wide, so that a panel is a whole number of vectors everywhere.
using Tag = hn::CappedTag<float, static_cast<size_t>(kPanel)>;
using IntTag = hn::RebindToSigned<Tag>;
using Vector = hn::Vec<Tag>;
using IntVector = hn::Vec<IntTag>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Tag()));
constexpr int kVectors = static_cast<int>(kPanel) / kLanes;  // of one panel

constexpr int kQuads = 8;
constexpr int64_t kQuadBytes = 4 * kPanel;
// Units that are unpacked at a time: 16 KB of codes, which stay in the first cache. Whole blocks.
constexpr int64_t kChunkUnits = 32;

// Codes and scales of a chunk of one panel.
struct Chunk {
  alignas(64) std::array<uint8_t, kChunkUnits * kUnitCodes> codes;  // [unit][quad][column][4]
  alignas(64) std::array<float, kChunkUnits * 2 * kPanel> scales, minima;  // [unit][half][column]
};

// ---- Unpacking codes.

#if HWY_TARGET == HWY_SCALAR

template <int kBits>
HWY_INLINE void UnpackUnit(const uint8_t* HWY_RESTRICT from, uint8_t* HWY_RESTRICT to) {
  constexpr int64_t n = kQuadBytes;
  for (int64_t quad = 0; quad < kQuads; ++quad) {
    for (int64_t i = 0; i < n; ++i) {
      const auto bits = [&](int64_t vector, int64_t shift, int mask) {
        return from[vector * n + i] >> shift & mask;
      };
      int code = 0;
      if constexpr (kBits == 8) {
        code = bits(quad, 0, 255);
      } else if constexpr (kBits < 4) {
        code = bits(quad / 4, 2 * (quad % 4), 3);
        if (kBits == 3) code |= bits(2, quad, 1) << 2;
      } else {
        code = bits(quad / 2, 4 * (quad % 2), 15);
        if (kBits == 5) code |= bits(4, quad, 1) << 4;
        if (kBits == 6) code |= bits(4 + quad / 4, 2 * (quad % 4), 3) << 4;
      }
      to[quad * n + i] = static_cast<uint8_t>(code);
    }
  }
}

#else

using ByteTag = hn::CappedTag<uint8_t, static_cast<size_t>(kQuadBytes)>;
using ByteVector = hn::Vec<ByteTag>;

// Bits kFrom and following of each byte to kTo and following, and the others 0.
template <int kFrom, int kTo, int kMask>
HWY_INLINE ByteVector MoveBits(ByteVector v) {
  const ByteTag d;
  // In 16 bits, of which those that cross into the other byte are masked.
  const hn::Repartition<uint16_t, ByteTag> wide;
  const auto mask = hn::Set(d, static_cast<uint8_t>(kMask << kTo));
  if constexpr (kFrom > kTo) {
    v = hn::BitCast(d, hn::ShiftRight<kFrom - kTo>(hn::BitCast(wide, v)));
  } else if constexpr (kFrom < kTo) {
    v = hn::BitCast(d, hn::ShiftLeft<kTo - kFrom>(hn::BitCast(wide, v)));
  }
  return hn::And(v, mask);
}

// The codes of one quad from the vectors at `from`.
template <int kBits, int kQuad>
HWY_INLINE void UnpackQuad(const uint8_t* HWY_RESTRICT from, uint8_t* HWY_RESTRICT to) {
  const ByteTag d;
  const auto load = [&](int vector) HWY_ATTR { return hn::LoadU(d, from + vector * kQuadBytes); };
  ByteVector codes;
  if constexpr (kBits == 8) {
    codes = load(kQuad);
  } else if constexpr (kBits < 4) {
    codes = MoveBits<2 * (kQuad % 4), 0, 3>(load(kQuad / 4));
    if constexpr (kBits == 3) codes = hn::Or(codes, MoveBits<kQuad, 2, 1>(load(2)));
  } else {
    codes = MoveBits<4 * (kQuad % 2), 0, 15>(load(kQuad / 2));
    if constexpr (kBits == 5) codes = hn::Or(codes, MoveBits<kQuad, 4, 1>(load(4)));
    if constexpr (kBits == 6) {
      codes = hn::Or(codes, MoveBits<2 * (kQuad % 4), 4, 3>(load(4 + kQuad / 4)));
    }
  }
  hn::StoreU(codes, d, to + kQuad * kQuadBytes);
}

template <int kBits>
HWY_INLINE void UnpackUnit(const uint8_t* HWY_RESTRICT from, uint8_t* HWY_RESTRICT to) {
  for (int64_t i = 0; i < kQuadBytes; i += static_cast<int64_t>(hn::MaxLanes(ByteTag()))) {
    UnpackQuad<kBits, 0>(from + i, to + i);
    UnpackQuad<kBits, 1>(from + i, to + i);
    UnpackQuad<kBits, 2>(from + i, to + i);
    UnpackQuad<kBits, 3>(from + i, to + i);
    UnpackQuad<kBits, 4>(from + i, to + i);
    UnpackQuad<kBits, 5>(from + i, to + i);
    UnpackQuad<kBits, 6>(from + i, to + i);
    UnpackQuad<kBits, 7>(from + i, to + i);
  }
}

#endif

// Codes -> values of a table of 16.
void LookUp(const uint8_t* HWY_RESTRICT values, int64_t count, uint8_t* HWY_RESTRICT codes) {
#if HWY_TARGET == HWY_SCALAR
  for (int64_t i = 0; i < count; ++i) codes[i] = values[codes[i]];
#else
  const ByteTag d;
  const auto table = hn::LoadDup128(d, values);
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d))) {
    hn::StoreU(hn::TableLookupBytes(table, hn::LoadU(d, codes + i)), d, codes + i);
  }
#endif
}

template <int kBits>
void UnpackUnits(const uint8_t* from, int64_t count, uint8_t* to) {
  for (int64_t u = 0; u < count; ++u) {
    UnpackUnit<kBits>(from + u * kBits * kUnitCodes / 8, to + u * kUnitCodes);
  }
}

void UnpackCodes(int bits, const uint8_t* from, int64_t count, uint8_t* to) {
  switch (bits) {
    case 2:
      return UnpackUnits<2>(from, count, to);
    case 3:
      return UnpackUnits<3>(from, count, to);
    case 4:
      return UnpackUnits<4>(from, count, to);
    case 5:
      return UnpackUnits<5>(from, count, to);
    case 6:
      return UnpackUnits<6>(from, count, to);
    default:
      return UnpackUnits<8>(from, count, to);
  }
}

// ---- Unpacking scales.

HWY_INLINE Vector LoadHalves(bool bf16, const uint8_t* from) {
  const Tag d;
  if (bf16) {
    const hn::Rebind<uint16_t, Tag> narrow;
    const hn::RebindToUnsigned<Tag> wide;
    const auto bits =
        hn::PromoteTo(wide, hn::LoadU(narrow, reinterpret_cast<const uint16_t*>(from)));
    return hn::BitCast(d, hn::ShiftLeft<16>(bits));
  }
  const hn::Rebind<hwy::float16_t, Tag> narrow;
  return hn::PromoteTo(d, hn::LoadU(narrow, reinterpret_cast<const hwy::float16_t*>(from)));
}

template <typename T>
HWY_INLINE Vector LoadBytes(const uint8_t* from) {
  const hn::Rebind<T, Tag> narrow;
  const auto bytes = hn::LoadU(narrow, reinterpret_cast<const T*>(from));
  return hn::ConvertTo(Tag(), hn::PromoteTo(IntTag(), bytes));
}

// The scales of `units` units from the scales of their blocks, [unit][half][column].
void UnpackScales(const BlockPanels& shape, const uint8_t* from, int64_t units, Chunk& chunk) {
  const Tag d;
  const BlockLayout& layout = *shape.layout;
  const int64_t groups = layout.groups(), blocks = units * kUnitTerms / layout.block;
  const bool has_minimum = layout.has_minimum;
  float *scales = chunk.scales.data(), *minima = chunk.minima.data();
  for (int64_t b = 0; b < blocks; ++b, from += shape.scale_bytes()) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t lane = v * kLanes;
      const Vector scale = LoadHalves(layout.bf16_scale, from + 2 * lane);
      Vector minimum = hn::Zero(d);
      if (has_minimum) minimum = LoadHalves(false, from + 2 * kPanel + 2 * lane);
      if (!layout.has_factors) {
        hn::StoreU(scale, d, scales + lane);
        if (has_minimum) hn::StoreU(minimum, d, minima + lane);
        continue;
      }
      const uint8_t* factors = from + 2 * kPanel * shape.block_floats() + lane;
      for (int64_t g = 0; g < groups; ++g) {
        if (shape.nibble_factors()) {
          const IntTag di;
          const hn::Rebind<uint8_t, Tag> narrow;
          const IntVector both = hn::PromoteTo(di, hn::LoadU(narrow, factors));
          const Vector factor = hn::ConvertTo(d, hn::And(both, hn::Set(di, 15)));
          const Vector low = hn::ConvertTo(d, hn::ShiftRight<4>(both));
          hn::StoreU(hn::Mul(scale, factor), d, scales + g * kPanel + lane);
          hn::StoreU(hn::Neg(hn::Mul(minimum, low)), d, minima + g * kPanel + lane);
          factors += kPanel;
          continue;
        }
        hn::StoreU(hn::Mul(scale, LoadBytes<int8_t>(factors)), d, scales + g * kPanel + lane);
        factors += kPanel;
        if (!has_minimum) continue;
        hn::StoreU(hn::Neg(hn::Mul(minimum, LoadBytes<uint8_t>(factors))), d,
                   minima + g * kPanel + lane);
        factors += kPanel;
      }
    }
    scales += groups * kPanel;
    minima += groups * kPanel;
  }
}

// ---- Tiles.

struct Tile {
  const Chunk* chunk = nullptr;
  int64_t units = 0;
  // Of the first unit and row; rows are tile_rows apart where there is one of each unit.
  const int8_t* codes = nullptr;
  const float* scales = nullptr;
  const int32_t* corrections = nullptr;
  const float* sums = nullptr;
  int64_t tile_rows = 0;
  float* y = nullptr;  // [rows][y_stride], of which 16 columns
  int64_t y_stride = 0;
  bool load = false;  // the sum starts from y
};

#undef PRONGHORN_BLOCK_VECTORS
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4 || \
    HWY_TARGET == HWY_SSSE3
#define PRONGHORN_BLOCK_VECTORS 1
#else
#define PRONGHORN_BLOCK_VECTORS 0
#endif

#if PRONGHORN_BLOCK_VECTORS

// Rows whose sums stay in registers beside a unit's codes.
#if HWY_TARGET <= HWY_AVX3
constexpr int kMostRows = 16;
#else
constexpr int kMostRows = 4;
#endif
HWY_INLINE IntVector Quad(const int8_t* from) {
  int32_t four;
  std::memcpy(&four, from, sizeof(four));
  return hn::Set(IntTag(), four);
}

// sum + the four products of each lane's bytes: weights times the four activations at `quad`, which
// are not -128. With kVnni weights are unsigned. Without, neighbours are added in 16 bits: weights
// have at most 7 bits or, if kSigned, are signed and change signs with their activations.
template <bool kSigned, bool kVnni>
HWY_INLINE IntVector Dot(IntVector sum, IntVector weights, const int8_t* quad) {
#if HWY_TARGET == HWY_AVX3
  if constexpr (kVnni) {
    // Written out, because the functions for it want to be compiled for machines that have it all.
    asm("vpdpbusd %2%{1to16%}, %1, %0"
        : "+v"(sum.raw)
        : "v"(weights.raw), "m"(*reinterpret_cast<const int32_t*>(quad)));
    return sum;
  }
  __m512i w = weights.raw, a = Quad(quad).raw;
  if constexpr (kSigned) {
    a = _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(w), _mm512_setzero_si512(), a);
    w = _mm512_abs_epi8(w);
  }
  const __m512i pairs = _mm512_maddubs_epi16(w, a);
  return IntVector{_mm512_add_epi32(sum.raw, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
#elif HWY_TARGET == HWY_AVX2
  __m256i w = weights.raw, a = Quad(quad).raw;
  if constexpr (kSigned) {
    a = _mm256_sign_epi8(a, w);
    w = _mm256_abs_epi8(w);
  }
  const __m256i pairs = _mm256_maddubs_epi16(w, a);
  return IntVector{_mm256_add_epi32(sum.raw, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
#else
  __m128i w = weights.raw, a = Quad(quad).raw;
  if constexpr (kSigned) {
    a = _mm_sign_epi8(a, w);
    w = _mm_abs_epi8(w);
  }
  const __m128i pairs = _mm_maddubs_epi16(w, a);
  return IntVector{_mm_add_epi32(sum.raw, _mm_madd_epi16(pairs, _mm_set1_epi16(1)))};
#endif
}

// R rows of 16 columns. kWide: codes of more than 7 bits, whose offset is 128.
template <int R, bool kHalves, bool kMinimum, bool kWide, bool kVnni>
HWY_NOINLINE void RunTile(const Tile& tile) {
  constexpr int kParts = kHalves ? 2 : 1;
  constexpr bool kSigned = kWide && !kVnni;
  const Tag d;
  const IntTag di;
  const int64_t rows = tile.tile_rows, units = tile.units;
  for (int v = 0; v < kVectors; ++v) {
    const uint8_t* HWY_RESTRICT codes = tile.chunk->codes.data() + v * kLanes * 4;
    const float* HWY_RESTRICT scales = tile.chunk->scales.data() + v * kLanes;
    const float* HWY_RESTRICT minima = tile.chunk->minima.data() + v * kLanes;
    const int8_t* HWY_RESTRICT a = tile.codes;
    const float* HWY_RESTRICT a_scales = tile.scales;
    const int32_t* HWY_RESTRICT corrections = tile.corrections;
    const float* HWY_RESTRICT sums = tile.sums;
    float* const y = tile.y + v * kLanes;
    Vector total[R];
    for (int i = 0; i < R; ++i) {
      total[i] = tile.load ? hn::LoadU(d, y + i * tile.y_stride) : hn::Zero(d);
    }
    for (int64_t u = 0; u < units; ++u) {
      IntVector weights[kQuads];
      for (int quad = 0; quad < kQuads; ++quad) {
        const hn::RebindToUnsigned<IntTag> du;
        const auto loaded =
            hn::LoadU(du, reinterpret_cast<const uint32_t*>(codes + quad * kQuadBytes));
        weights[quad] =
            hn::BitCast(di, kSigned ? hn::Xor(loaded, hn::Set(du, 0x80808080u)) : loaded);
      }
      Vector scale[kParts], minimum[kParts];
      for (int part = 0; part < kParts; ++part) {
        scale[part] = hn::LoadU(d, scales + part * kPanel);
        if constexpr (kMinimum) minimum[part] = hn::LoadU(d, minima + part * kPanel);
      }
      for (int i = 0; i < R; ++i) {
        const int8_t* const row = a + i * kUnitTerms;
        const Vector a_scale = hn::Set(d, a_scales[i]);
        for (int part = 0; part < kParts; ++part) {
          constexpr int kEach = kQuads / kParts;
          IntVector sum = kSigned ? hn::Zero(di) : hn::Set(di, corrections[part * rows + i]);
          for (int quad = part * kEach; quad < (part + 1) * kEach; ++quad) {
            sum = Dot<kSigned, kVnni>(sum, weights[quad], row + 4 * quad);
          }
          total[i] = hn::MulAdd(hn::ConvertTo(d, sum), hn::Mul(scale[part], a_scale), total[i]);
          if constexpr (kMinimum) {
            total[i] = hn::MulAdd(minimum[part], hn::Set(d, sums[part * rows + i]), total[i]);
          }
        }
      }
      codes += kUnitCodes;
      scales += kParts * kPanel;
      minima += kParts * kPanel;
      a += rows * kUnitTerms;
      a_scales += rows;
      corrections += kParts * rows;
      sums += kParts * rows;
    }
    for (int i = 0; i < R; ++i) hn::StoreU(total[i], d, y + i * tile.y_stride);
  }
}

#else

constexpr int kMostRows = 1;

// The same, one number after another.
template <int R, bool kHalves, bool kMinimum, bool kWide, bool kVnni>
HWY_NOINLINE void RunTile(const Tile& tile) {
  static_assert(R == 1 && !kVnni);
  constexpr int kParts = kHalves ? 2 : 1;
  const int64_t rows = tile.tile_rows;
  for (int64_t column = 0; column < kPanel; ++column) {
    float total = tile.load ? tile.y[column] : 0;
    for (int64_t u = 0; u < tile.units; ++u) {
      const uint8_t* codes = tile.chunk->codes.data() + u * kUnitCodes + 4 * column;
      const int8_t* a = tile.codes + u * rows * kUnitTerms;
      for (int64_t part = 0; part < kParts; ++part) {
        constexpr int64_t kEach = kQuads / kParts;
        const int64_t place = u * kParts + part;
        int32_t sum = tile.corrections[place * rows];
        for (int64_t quad = part * kEach; quad < (part + 1) * kEach; ++quad) {
          for (int64_t k = 0; k < 4; ++k) sum += codes[quad * kQuadBytes + k] * a[4 * quad + k];
        }
        const auto at = static_cast<size_t>(place * kPanel + column);
        total += static_cast<float>(sum) * (tile.chunk->scales[at] * tile.scales[u * rows]);
        if constexpr (kMinimum) total += tile.chunk->minima[at] * tile.sums[place * rows];
      }
    }
    tile.y[column] = total;
  }
}

#endif

// Tiles of R rows while there are that many, then smaller ones.
template <int R, bool kHalves, bool kMinimum, bool kWide, bool kVnni>
void RunRows(Tile tile, int64_t rows) {
  while (rows >= R) {
    RunTile<R, kHalves, kMinimum, kWide, kVnni>(tile);
    rows -= R;
    tile.codes += R * kUnitTerms;
    tile.scales += R;
    tile.corrections += R;
    tile.sums += R;
    tile.y += R * tile.y_stride;
  }
  if constexpr (R > 1) {
    if (rows > 0) RunRows<R / 2, kHalves, kMinimum, kWide, kVnni>(tile, rows);
  }
}

using Runner = void (*)(Tile, int64_t);

template <bool kVnni>
Runner RunnerOf(const BlockLayout& layout) {
  const bool halves = layout.group < kUnitTerms, wide = layout.offset == 128;
  if (halves) {
    return layout.has_minimum ? RunRows<kMostRows, true, true, false, kVnni>
                              : RunRows<kMostRows, true, false, false, kVnni>;
  }
  if (layout.has_minimum) return RunRows<kMostRows, false, true, false, kVnni>;
  return wide ? RunRows<kMostRows, false, false, true, kVnni>
              : RunRows<kMostRows, false, false, false, kVnni>;
}

Runner ChooseRunner(const BlockLayout& layout) {
#if HWY_TARGET == HWY_AVX3
  if (cpu_features().vnni) return RunnerOf<true>(layout);
#endif
  return RunnerOf<false>(layout);
}

void AddBias(const float* bias, int64_t rows, int64_t columns, float* y, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) y[i * stride + j] += bias[j];
  }
}

void MultiplyPanels(const BlockProduct& product) {
  const BlockPanels& shape = product.shape;
  const BlockLayout& layout = *shape.layout;
  const QuantisedRows& x = product.x;
  const Runner run = ChooseRunner(layout);
  const int64_t parts = x.halves ? 2 : 1, unit_bytes = shape.unit_bytes();
  static thread_local Chunk chunk;
  alignas(64) std::array<float, kRowTile * kPanel> edge;
  for (int64_t panel = product.first; panel < product.end; ++panel) {
    const uint8_t* codes = product.panels + panel * shape.panel_bytes();
    const uint8_t* scales = codes + x.units * unit_bytes;
    const int64_t column = panel * kPanel, columns = std::min(kPanel, shape.out - column);
    for (int64_t unit = 0; unit == 0 || unit < x.units; unit += kChunkUnits) {
      const int64_t units = std::min(kChunkUnits, x.units - unit);
      UnpackCodes(layout.bits, codes + unit * unit_bytes, units, chunk.codes.data());
      if (layout.values != nullptr) LookUp(layout.values, units * kUnitCodes, chunk.codes.data());
      UnpackScales(shape, scales + unit * kUnitTerms / layout.block * shape.scale_bytes(), units,
                   chunk);
      const bool first = unit == 0, last = unit + kChunkUnits >= x.units;
      for (int64_t t = product.begin_tile; t < product.end_tile; ++t) {
        const int64_t rows = x.tile_rows(t), place = t * kRowTile * x.units + unit * rows;
        float* y = product.y.row(t * kRowTile) + column;
        Tile tile;
        tile.chunk = &chunk;
        tile.units = units;
        tile.codes = x.codes + place * kUnitTerms;
        tile.scales = x.scales + place;
        tile.corrections = x.corrections + place * parts;
        tile.sums = x.sums + place * parts;
        tile.tile_rows = rows;
        tile.load = !first || product.y.accumulate;
        tile.y = y;
        tile.y_stride = product.y.stride;
        if (columns < kPanel) {
          edge.fill(0);
          for (int64_t i = 0; tile.load && i < rows; ++i) {
            std::copy_n(y + i * product.y.stride, columns, edge.data() + i * kPanel);
          }
          tile.y = edge.data();
          tile.y_stride = kPanel;
        }
        run(tile, rows);
        for (int64_t i = 0; columns < kPanel && i < rows; ++i) {
          std::copy_n(edge.data() + i * kPanel, columns, y + i * product.y.stride);
        }
        if (last && product.bias != nullptr) {
          AddBias(product.bias + column, rows, columns, y, product.y.stride);
        }
      }
    }
  }
}

// ---- Activations.

// 32 numbers. A scale that is not a number says that one of them is none.
HWY_INLINE float QuantiseUnit(const float* HWY_RESTRICT x, int8_t* HWY_RESTRICT codes) {
  constexpr float kMost = 127;
  const Tag d;
  Vector most = hn::Zero(d), faults = hn::Zero(d);
  for (int64_t k = 0; k < kUnitTerms; k += kLanes) {
    const Vector numbers = hn::LoadU(d, x + k);
    most = hn::Max(most, hn::Abs(numbers));
    faults = hn::MulAdd(numbers, hn::Zero(d), faults);
  }
  const float largest = hn::GetLane(hn::MaxOfLanes(d, most));
  const float fault = hn::GetLane(hn::SumOfLanes(d, faults));
  // Below this the reciprocal is not finite, and the numbers are nothing beside others.
  const bool usable = largest > std::numeric_limits<float>::min() && fault == 0;
  const float inverse = usable ? kMost / largest : 0;
  alignas(64) std::array<int32_t, kUnitTerms> rounded;
  const Vector factor = hn::Set(d, inverse);
  for (int64_t k = 0; k < kUnitTerms; k += kLanes) {
    const Vector numbers = hn::Mul(hn::LoadU(d, x + k), factor);
    hn::StoreU(hn::NearestInt(numbers), IntTag(), rounded.data() + k);
  }
  for (size_t k = 0; k < kUnitTerms; ++k) codes[k] = static_cast<int8_t>(rounded[k]);
  return usable ? largest / kMost : fault * largest;
}

void QuantiseTiles(ConstMatrix x, int offset, const QuantisedRows& to, int64_t begin, int64_t end) {
  const int64_t parts = to.halves ? 2 : 1, each = kUnitTerms / parts;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t rows = to.tile_rows(t);
    for (int64_t i = 0; i < rows; ++i) {
      const float* from = x.row(t * kRowTile + i);
      for (int64_t u = 0; u < to.units; ++u) {
        const int64_t place = t * kRowTile * to.units + u * rows + i;
        const int64_t first_part = (t * kRowTile * to.units + u * rows) * parts + i;
        int8_t* codes = to.codes + place * kUnitTerms;
        const float scale = QuantiseUnit(from + u * kUnitTerms, codes);
        to.scales[place] = scale;
        for (int64_t part = 0; part < parts; ++part) {
          int32_t sum = 0;
          for (int64_t k = 0; k < each; ++k) sum += codes[part * each + k];
          to.corrections[first_part + part * rows] = -offset * sum;
          to.sums[first_part + part * rows] = scale * static_cast<float>(sum);
        }
      }
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(MultiplyPanels);
HWY_EXPORT(QuantiseTiles);
void multiply_block_panels(const BlockProduct& product) {
  HWY_DYNAMIC_DISPATCH(MultiplyPanels)(product);
}
void quantise_tiles(ConstMatrix x, int offset, const QuantisedRows& to, int64_t begin,
                    int64_t end) {
  HWY_DYNAMIC_DISPATCH(QuantiseTiles)(x, offset, to, begin, end);
}

}  // namespace pronghorn
#endif
