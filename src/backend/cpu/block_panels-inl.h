// Panels of blocks as vectors: codes of one quad, the codes and the scales of some units. Included
// once for each instruction set, as simd-inl.h.
#if defined(PRONGHORN_BLOCK_PANELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_BLOCK_PANELS_INL_H_
#undef PRONGHORN_BLOCK_PANELS_INL_H_
#else
#define PRONGHORN_BLOCK_PANELS_INL_H_
#endif

#include <hwy/highway.h>

#include <array>
#include <cstdint>

#include "backend/cpu/block_panels.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
namespace {

// At most a panel wide, so that a panel is a whole number of vectors everywhere.
using Tag = hn::CappedTag<float, static_cast<size_t>(kPanel)>;
using IntTag = hn::RebindToSigned<Tag>;
using Vector = hn::Vec<Tag>;
using IntVector = hn::Vec<IntTag>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Tag()));
constexpr int kVectors = static_cast<int>(kPanel) / kLanes;  // of one panel

constexpr int kQuads = 8;
constexpr int64_t kQuadBytes = 4 * kPanel;
// ---- Codes.

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
HWY_INLINE ByteVector LoadQuad(const uint8_t* HWY_RESTRICT from) {
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
  return codes;
}

// Those of all quads.
template <int kBits>
HWY_INLINE void LoadQuads(const uint8_t* HWY_RESTRICT from, ByteVector (&quads)[kQuads]) {
  quads[0] = LoadQuad<kBits, 0>(from);
  quads[1] = LoadQuad<kBits, 1>(from);
  quads[2] = LoadQuad<kBits, 2>(from);
  quads[3] = LoadQuad<kBits, 3>(from);
  quads[4] = LoadQuad<kBits, 4>(from);
  quads[5] = LoadQuad<kBits, 5>(from);
  quads[6] = LoadQuad<kBits, 6>(from);
  quads[7] = LoadQuad<kBits, 7>(from);
}

template <int kBits>
HWY_INLINE void UnpackUnit(const uint8_t* HWY_RESTRICT from, uint8_t* HWY_RESTRICT to) {
  const ByteTag d;
  for (int64_t i = 0; i < kQuadBytes; i += static_cast<int64_t>(hn::MaxLanes(d))) {
    ByteVector quads[kQuads];
    LoadQuads<kBits>(from + i, quads);
    for (int quad = 0; quad < kQuads; ++quad) {
      hn::StoreU(quads[quad], d, to + quad * kQuadBytes + i);
    }
  }
}

#endif

// Codes -> values of a table of 16.
inline void LookUp(const uint8_t* HWY_RESTRICT values, int64_t count, uint8_t* HWY_RESTRICT codes) {
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

// ---- Scales.

template <bool kBf16>
HWY_INLINE Vector LoadHalves(const uint8_t* from) {
  const Tag d;
  if constexpr (kBf16) {
    const hn::Rebind<uint16_t, Tag> narrow;
    const hn::RebindToUnsigned<Tag> wide;
    const auto bits =
        hn::PromoteTo(wide, hn::LoadU(narrow, reinterpret_cast<const uint16_t*>(from)));
    return hn::BitCast(d, hn::ShiftLeft<16>(bits));
  } else {
    const hn::Rebind<hwy::float16_t, Tag> narrow;
    return hn::PromoteTo(d, hn::LoadU(narrow, reinterpret_cast<const hwy::float16_t*>(from)));
  }
}

template <typename T>
HWY_INLINE Vector LoadBytes(const uint8_t* from) {
  const hn::Rebind<T, Tag> narrow;
  const auto bytes = hn::LoadU(narrow, reinterpret_cast<const T*>(from));
  return hn::ConvertTo(Tag(), hn::PromoteTo(IntTag(), bytes));
}

// What kernels are compiled for: a layout's numbers. kValueBits are those of a code or, if there is
// a table, of its values.
template <int kBits_, int kValueBits_, int kGroup_, bool kFactors_, bool kMinimum_>
struct Kind {
  static constexpr int kBits = kBits_, kValueBits = kValueBits_;
  static constexpr bool kTable = kValueBits != kBits, kFactors = kFactors_, kMinimum = kMinimum_;
  static constexpr bool kWide = kValueBits == 8;        // the offset is 128
  static constexpr bool kBf16Scale = kTable && !kWide;  // MXFP4
  static constexpr bool kNibbleFactors = kBits == 2;
  static constexpr int kParts = kUnitTerms / kGroup_;  // of a unit
  static constexpr int kEach = kQuads / kParts;        // quads of a part
  static constexpr int kUnits = kFactors ? 8 : 1;      // of a block
  static constexpr int kGroups = kUnits * kParts;      // of a block
  static constexpr int64_t kScaleBytes =
      kPanel * (kMinimum ? 4 : 2) +
      (kFactors ? kPanel * kGroups * (kMinimum && !kNibbleFactors ? 2 : 1) : 0);
};

// f(Kind) of one of the layouts of block_layouts.h.
template <typename F>
auto WithKind(const BlockLayout& layout, F f) {
  const bool factors = layout.has_factors, minimum = layout.has_minimum;
  switch (layout.bits) {
    case 2:
      return f(Kind<2, 2, 16, true, true>());
    case 3:
      return f(Kind<3, 3, 16, true, false>());
    case 4:
      if (layout.values != nullptr) {
        if (layout.offset < 128) return f(Kind<4, 5, 32, false, false>());
        return factors ? f(Kind<4, 8, 32, true, false>()) : f(Kind<4, 8, 32, false, false>());
      }
      if (factors) return f(Kind<4, 4, 32, true, true>());
      return minimum ? f(Kind<4, 4, 32, false, true>()) : f(Kind<4, 4, 32, false, false>());
    case 5:
      if (factors) return f(Kind<5, 5, 32, true, true>());
      return minimum ? f(Kind<5, 5, 32, false, true>()) : f(Kind<5, 5, 32, false, false>());
    case 6:
      return f(Kind<6, 6, 16, true, false>());
    default:
      return f(Kind<8, 8, 32, false, false>());
  }
}

// The scales of a block for kPass vectors of columns, [group][column].
template <class K, int kPass>
HWY_INLINE void UnpackScales(const uint8_t* HWY_RESTRICT from, float* HWY_RESTRICT scales,
                             float* HWY_RESTRICT minima) {
  const Tag d;
  for (int64_t lane = 0; lane < kPass * kLanes; lane += kLanes) {
    const Vector scale = LoadHalves<K::kBf16Scale>(from + 2 * lane);
    Vector minimum = hn::Zero(d);
    if constexpr (K::kMinimum) minimum = LoadHalves<false>(from + 2 * kPanel + 2 * lane);
    if constexpr (!K::kFactors) {
      hn::StoreU(scale, d, scales + lane);
      if constexpr (K::kMinimum) hn::StoreU(minimum, d, minima + lane);
      continue;
    }
    const uint8_t* factors = from + 2 * kPanel * (K::kMinimum ? 2 : 1) + lane;
    for (int64_t g = 0; g < K::kGroups; ++g) {
      const int64_t at = g * kPanel + lane;
      if constexpr (K::kNibbleFactors) {
        const IntTag di;
        const hn::Rebind<uint8_t, Tag> narrow;
        const IntVector both = hn::PromoteTo(di, hn::LoadU(narrow, factors));
        const Vector factor = hn::ConvertTo(d, hn::And(both, hn::Set(di, 15)));
        const Vector low = hn::ConvertTo(d, hn::ShiftRight<4>(both));
        hn::StoreU(hn::Mul(scale, factor), d, scales + at);
        hn::StoreU(hn::Neg(hn::Mul(minimum, low)), d, minima + at);
      } else {
        hn::StoreU(hn::Mul(scale, LoadBytes<int8_t>(factors)), d, scales + at);
        if constexpr (K::kMinimum) {
          factors += kPanel;
          hn::StoreU(hn::Neg(hn::Mul(minimum, LoadBytes<uint8_t>(factors))), d, minima + at);
        }
      }
      factors += kPanel;
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif
