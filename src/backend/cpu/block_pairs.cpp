// Weights in panels of blocks -> pairs of bf16, for products of many rows where those of bf16 are
// far faster than those of whole numbers.
#include "backend/cpu/block_panels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/block_pairs.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/block_panels-inl.h"
#include "base/error.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET <= HWY_AVX3

// 16 pairs of neighbours, rounded to nearest even, the first in the lower half.
HWY_INLINE IntVector RoundPairs(Vector first, Vector second) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  __m512i both;
  // Inline assembly: the intrinsic needs the whole file to be compiled for AVX-512 BF16.
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(first.raw), "v"(second.raw));
  return IntVector{_mm512_maskz_permutexvar_epi16(0xffffffff, _mm512_load_si512(kOrder), both)};
}

template <class K>
void UnpackPanel(const uint8_t* HWY_RESTRICT from, const BlockLayout& layout, int64_t units,
                 uint32_t* HWY_RESTRICT to) {
  const Tag d;
  const IntTag di;
  const ByteTag bytes;
  const IntVector byte = hn::Set(di, 255);
  const Vector offset = hn::Set(d, static_cast<float>(-layout.offset));
  alignas(64) float scales[K::kGroups * kPanel], minima[K::kMinimum ? K::kGroups * kPanel : 1];
  for (int64_t block = 0; block < units / K::kUnits; ++block) {
    UnpackScales<K, kVectors>(from, scales, minima);
    from += K::kScaleBytes;
    for (int64_t u = 0; u < K::kUnits; ++u, from += K::kBits * kUnitCodes / 8) {
      ByteVector quads[kQuads];
      LoadQuads<K::kBits>(from, quads);
      for (int quad = 0; quad < kQuads; ++quad) {
        const int64_t at = (u * K::kParts + quad / K::kEach) * kPanel;
        const Vector scale = hn::Load(d, scales + at);
        // code * scale + base is the number: the offset times the scale is exact.
        const Vector base = K::kMinimum ? hn::Load(d, minima + at) : hn::Mul(offset, scale);
        ByteVector codes = quads[quad];
        if constexpr (K::kTable) {
          codes = hn::TableLookupBytes(hn::LoadDup128(bytes, layout.values), codes);
        }
        const IntVector four = hn::BitCast(di, codes);
        const auto number = [&](IntVector code) HWY_ATTR {
          return hn::MulAdd(hn::ConvertTo(d, code), scale, base);
        };
        const IntVector first =
            RoundPairs(number(hn::And(four, byte)), number(hn::And(hn::ShiftRight<8>(four), byte)));
        const hn::RebindToUnsigned<IntTag> du;
        const IntVector last = hn::BitCast(di, hn::ShiftRight<24>(hn::BitCast(du, four)));
        const IntVector second =
            RoundPairs(number(hn::And(hn::ShiftRight<16>(four), byte)), number(last));
        hn::Store(first, di, reinterpret_cast<int32_t*>(to));
        hn::Store(second, di, reinterpret_cast<int32_t*>(to + kPanel));
        to += 2 * kPanel;
      }
    }
  }
}

void UnpackPairs(const BlockLayout& layout, const uint8_t* from, int64_t units, uint32_t* to) {
  WithKind(layout,
           [&](auto kind) HWY_ATTR { UnpackPanel<decltype(kind)>(from, layout, units, to); });
}

#else

void UnpackPairs(const BlockLayout&, const uint8_t*, int64_t, uint32_t*) {
  throw Error("matmul", "no bf16 instructions here");
}

#endif

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(UnpackPairs);
void unpack_block_pairs(const BlockPanels& shape, const uint8_t* panel, int64_t unit, int64_t count,
                        uint32_t* to) {
  const uint8_t* from = panel + unit * kUnitTerms / shape.layout->block * shape.block_bytes();
  HWY_DYNAMIC_DISPATCH(UnpackPairs)(*shape.layout, from, count, to);
}

}  // namespace pronghorn
#endif
