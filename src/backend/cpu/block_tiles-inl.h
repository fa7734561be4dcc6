// Tiles of products with panels of blocks: what they read and the products of bytes that they are
// made of. Included once for each instruction set, as simd-inl.h.
#if defined(PRONGHORN_BLOCK_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_BLOCK_TILES_INL_H_
#undef PRONGHORN_BLOCK_TILES_INL_H_
#else
#define PRONGHORN_BLOCK_TILES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "backend/cpu/block_panels-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Units that are unpacked at a time: 16 KB of codes, which stay in the first cache. Whole blocks.
constexpr int64_t kChunkUnits = 32;

// Codes and scales of a chunk of one panel.
struct Chunk {
  alignas(64) std::array<uint8_t, kChunkUnits * kUnitCodes> codes;  // [unit][quad][column][4]
  alignas(64) std::array<float, kChunkUnits * 2 * kPanel> scales, minima;  // [unit][half][column]
};

struct Tile {
  const uint8_t* packed = nullptr;  // blocks of the panel, scales and codes
  const Chunk* chunk = nullptr;     // or what they became
  const uint8_t* values = nullptr;  // the layout's table
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
#if HWY_TARGET <= HWY_AVX3 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4 || \
    HWY_TARGET == HWY_SSSE3
#define PRONGHORN_BLOCK_VECTORS 1
#else
#define PRONGHORN_BLOCK_VECTORS 0
#endif

#if PRONGHORN_BLOCK_VECTORS

// Four activations, for each lane.
HWY_INLINE IntVector Quad(const int8_t* from) {
  int32_t four;
  std::memcpy(&four, from, sizeof(four));
  return hn::Set(IntTag(), four);
}

// The products of weights and activations, which are not -128, neighbours added in 16 bits. If
// kSigned, weights are signed and change signs with their activations; else they are unsigned.
template <bool kSigned>
HWY_INLINE IntVector Pairs(IntVector weights, IntVector activations) {
  auto w = weights.raw, a = activations.raw;
#if HWY_TARGET <= HWY_AVX3
  if constexpr (kSigned) {
    a = _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(w), _mm512_setzero_si512(), a);
    w = _mm512_abs_epi8(w);
  }
  return IntVector{_mm512_maddubs_epi16(w, a)};
#elif HWY_TARGET == HWY_AVX2
  if constexpr (kSigned) {
    a = _mm256_sign_epi8(a, w);
    w = _mm256_abs_epi8(w);
  }
  return IntVector{_mm256_maddubs_epi16(w, a)};
#else
  if constexpr (kSigned) {
    a = _mm_sign_epi8(a, w);
    w = _mm_abs_epi8(w);
  }
  return IntVector{_mm_maddubs_epi16(w, a)};
#endif
}

// Neighbours of 16 bits, added in 32.
HWY_INLINE IntVector AddNeighbours(IntVector pairs) {
#if HWY_TARGET <= HWY_AVX3
  return IntVector{_mm512_madd_epi16(pairs.raw, _mm512_set1_epi16(1))};
#elif HWY_TARGET == HWY_AVX2
  return IntVector{_mm256_madd_epi16(pairs.raw, _mm256_set1_epi16(1))};
#else
  return IntVector{_mm_madd_epi16(pairs.raw, _mm_set1_epi16(1))};
#endif
}

HWY_INLINE IntVector AddPairs(IntVector a, IntVector b) {
  const hn::Repartition<int16_t, IntTag> d;
  return hn::BitCast(IntTag(), hn::Add(hn::BitCast(d, a), hn::BitCast(d, b)));
}

// Products of bytes whose sum surely fits into 16 bits, as that many quads of a part.
template <class K>
constexpr int RunOfQuads() {
  constexpr int kLargest = K::kWide ? 128 : (1 << K::kValueBits) - 1;
  return std::min(K::kEach, 32767 / (2 * 127 * kLargest));
}

// Asks for the bytes that are read some units later. They may be past the end of the panels: a
// prefetch reads nothing.
template <int64_t kBytes>
HWY_INLINE void Ahead(const uint8_t* from) {
  constexpr int64_t kLine = 64;
  for (int64_t at = 0; at < kBytes; at += kLine) __builtin_prefetch(from + at);
}

#endif

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif
