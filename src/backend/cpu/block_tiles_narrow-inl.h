// Tiles for instruction sets of 16 registers. Quads are the outer loop: what stays in registers is
// sums of 16 bits, and what is loaded of a quad serves several vectors of columns and several rows.
// Included once for each instruction set, as simd-inl.h.
#if defined(PRONGHORN_BLOCK_TILES_NARROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_BLOCK_TILES_NARROW_INL_H_
#undef PRONGHORN_BLOCK_TILES_NARROW_INL_H_
#else
#define PRONGHORN_BLOCK_TILES_NARROW_INL_H_
#endif

#include "backend/cpu/block_tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

#if PRONGHORN_BLOCK_VECTORS && HWY_TARGET > HWY_AVX3

constexpr int kMostRows = 4;

// R rows and one panel. kPacked: blocks are read as the panel has them, else codes of a chunk.
// Several panels side by side were no faster where they come from memory (Zen 3): a panel is short,
// and one stream that goes on in the next is what the processor foresees.
template <class K, int R, bool kPacked>
struct NarrowTile {
  static constexpr bool kSigned = K::kWide;
  static constexpr int kPass = std::min(kVectors, 8 / R);  // vectors of columns at a time
  static constexpr int kRun = RunOfQuads<K>(), kRuns = K::kEach / kRun;
  static_assert(K::kEach % kRun == 0 && kVectors % kPass == 0);
  static constexpr int64_t kCodeBytes = (kPacked ? K::kBits : 8) * kUnitCodes / 8;
  static constexpr int64_t kUnitScales = K::kParts * kPanel;

  using Sums = IntVector[R][kPass];

  // The weights of one quad in one vector of columns.
  template <int kQuad>
  static HWY_INLINE IntVector Weights(const uint8_t* from, const uint8_t* values) {
    const ByteTag d;
    ByteVector quad = LoadQuad < kPacked ? K::kBits : 8, kQuad > (from);
    if constexpr (kPacked && K::kTable) {
      quad = hn::TableLookupBytes(hn::LoadDup128(d, values), quad);
    }
    if constexpr (K::kWide) quad = hn::Xor(quad, hn::Set(d, 0x80));
    return hn::BitCast(IntTag(), quad);
  }

  // A sum as it is: compilers turn sums of many products into trees, whose leaves do not fit the
  // registers.
  static HWY_INLINE IntVector Keep(IntVector sum) {
    asm("" : "+x"(sum.raw));
    return sum;
  }

  // pairs + the products of quads kQuad ... kEnd - 1.
  template <int kQuad, int kEnd, bool kFirst>
  static HWY_INLINE void AddQuads(const uint8_t* const (&from)[kPass], const uint8_t* values,
                                  const int8_t* a, Sums& pairs) {
    IntVector quads[R];
    for (int i = 0; i < R; ++i) quads[i] = Quad(a + i * kUnitTerms + 4 * kQuad);
    for (int v = 0; v < kPass; ++v) {
      const IntVector weights = Weights<kQuad>(from[v], values);
      for (int i = 0; i < R; ++i) {
        const IntVector products = Pairs<kSigned>(weights, quads[i]);
        pairs[i][v] = kFirst ? products : Keep(AddPairs(pairs[i][v], products));
      }
    }
    if constexpr (kQuad + 1 < kEnd) AddQuads<kQuad + 1, kEnd, false>(from, values, a, pairs);
  }

  // sums + the products of kLeft runs of quads, from kQuad on.
  template <int kQuad, int kLeft>
  static HWY_INLINE void AddRuns(const uint8_t* const (&from)[kPass], const uint8_t* values,
                                 const int8_t* a, Sums& sums) {
    Sums pairs;
    AddQuads<kQuad, kQuad + kRun, true>(from, values, a, pairs);
    for (int i = 0; i < R; ++i) {
      for (int v = 0; v < kPass; ++v) {
        sums[i][v] = Keep(hn::Add(sums[i][v], AddNeighbours(pairs[i][v])));
      }
    }
    if constexpr (kLeft > 1) AddRuns<kQuad + kRun, kLeft - 1>(from, values, a, sums);
  }

  // What a unit's parts share.
  struct Rows {
    const int8_t* codes;
    const float* scales;
    const int32_t* corrections;
    const float* sums;
    int64_t count;
  };

  // total + part kPart of a unit and those after it, in vectors kFirst ...
  template <int kPart, int kFirst>
  static HWY_INLINE void AddPart(const uint8_t* codes, const uint8_t* values, const float* scales,
                                 const float* minima, const Rows& rows,
                                 Vector (&total)[R][kVectors]) {
    const Tag d;
    const IntTag di;
    const uint8_t* from[kPass];
    for (int v = 0; v < kPass; ++v) from[v] = codes + (kFirst + v) * kLanes * 4;
    Sums sums;
    for (int i = 0; i < R; ++i) {
      const IntVector start =
          kSigned ? hn::Zero(di) : hn::Set(di, rows.corrections[kPart * rows.count + i]);
      for (int v = 0; v < kPass; ++v) sums[i][v] = start;
    }
    AddRuns<kPart * K::kEach, kRuns>(from, values, rows.codes, sums);
    for (int v = 0; v < kPass; ++v) {
      const int64_t lane = (kFirst + v) * kLanes;
      Vector scale, minimum;
      if constexpr (kPacked && !K::kFactors) {
        const uint8_t* block = codes - K::kScaleBytes;  // which begins with them
        scale = LoadHalves<K::kBf16Scale>(block + 2 * lane);
        if constexpr (K::kMinimum) minimum = LoadHalves<false>(block + 2 * kPanel + 2 * lane);
      } else {
        scale = hn::LoadU(d, scales + kPart * kPanel + lane);
        if constexpr (K::kMinimum) minimum = hn::LoadU(d, minima + kPart * kPanel + lane);
      }
      for (int i = 0; i < R; ++i) {
        Vector& to = total[i][kFirst + v];
        to = hn::MulAdd(hn::ConvertTo(d, sums[i][v]), hn::Mul(scale, hn::Set(d, rows.scales[i])),
                        to);
        if constexpr (K::kMinimum) {
          to = hn::MulAdd(minimum, hn::Set(d, rows.sums[kPart * rows.count + i]), to);
        }
      }
    }
    if constexpr (kFirst + kPass < kVectors) {
      AddPart<kPart, kFirst + kPass>(codes, values, scales, minima, rows, total);
    } else if constexpr (kPart + 1 < K::kParts) {
      AddPart<kPart + 1, 0>(codes, values, scales, minima, rows, total);
    }
  }

  static HWY_INLINE void Next(Rows& rows) {
    rows.codes += rows.count * kUnitTerms;
    rows.scales += rows.count;
    rows.corrections += K::kParts * rows.count;
    rows.sums += K::kParts * rows.count;
  }

  static HWY_INLINE void AddPacked(const Tile& tile, Rows rows, Vector (&total)[R][kVectors]) {
    constexpr int64_t kDistance = 2048;  // measured on Zen 3
    constexpr int64_t kBlockScales = K::kFactors ? K::kGroups * kPanel : 1;
    alignas(64) float scales[kBlockScales], minima[K::kMinimum ? kBlockScales : 1];
    const uint8_t* HWY_RESTRICT from = tile.packed;
    for (int64_t u = 0; u < tile.units; u += K::kUnits) {
      if constexpr (K::kFactors) UnpackScales<K, kVectors>(from, scales, minima);
      from += K::kScaleBytes;
      for (int64_t i = 0; i < K::kUnits; ++i, from += kCodeBytes) {
        Ahead<kCodeBytes + K::kScaleBytes / K::kUnits>(from + kDistance);
        AddPart<0, 0>(from, tile.values, scales + i * kUnitScales,
                      minima + (K::kMinimum ? i * kUnitScales : 0), rows, total);
        Next(rows);
      }
    }
  }

  static HWY_INLINE void AddChunk(const Tile& tile, Rows rows, Vector (&total)[R][kVectors]) {
    const Chunk& chunk = *tile.chunk;
    for (int64_t u = 0; u < tile.units; ++u) {
      AddPart<0, 0>(chunk.codes.data() + u * kCodeBytes, tile.values,
                    chunk.scales.data() + u * kUnitScales, chunk.minima.data() + u * kUnitScales,
                    rows, total);
      Next(rows);
    }
  }

  static HWY_NOINLINE void Run(const Tile& tile) {
    const Tag d;
    Vector total[R][kVectors];
    for (int i = 0; i < R; ++i) {
      for (int v = 0; v < kVectors; ++v) {
        total[i][v] =
            tile.load ? hn::LoadU(d, tile.y + i * tile.y_stride + v * kLanes) : hn::Zero(d);
      }
    }
    const Rows rows{tile.codes, tile.scales, tile.corrections, tile.sums, tile.tile_rows};
    if constexpr (kPacked) {
      AddPacked(tile, rows, total);
    } else {
      AddChunk(tile, rows, total);
    }
    for (int i = 0; i < R; ++i) {
      for (int v = 0; v < kVectors; ++v) {
        hn::StoreU(total[i][v], d, tile.y + i * tile.y_stride + v * kLanes);
      }
    }
  }
};

#endif

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif
