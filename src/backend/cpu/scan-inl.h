// SIMD helpers of the scans and convolutions: vectors at the edge of a row, and a fast 2^y.
// Included once for each instruction set, as simd-inl.h.
#if defined(PRONGHORN_SCAN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_SCAN_INL_H_
#undef PRONGHORN_SCAN_INL_H_
#else
#define PRONGHORN_SCAN_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// The `count` floats at `from`, zeros behind them. Touches nothing behind them.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LoadPart(D d, const float* from, int64_t count) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  if (HWY_LIKELY(count >= lanes)) return hn::LoadU(d, from);
  HWY_ALIGN float part[hn::MaxLanes(D())] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = from[i];
  return hn::Load(d, part);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE void StorePart(D d, V value, float* to, int64_t count) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  if (HWY_LIKELY(count >= lanes)) {
    hn::StoreU(value, d, to);
    return;
  }
  HWY_ALIGN float part[hn::MaxLanes(D())];
  hn::Store(value, d, part);
  for (int64_t i = 0; i < count; ++i) to[i] = part[i];
}

// 2^y for y <= 0 (a decay), to half a unit in the last place and a little; at least 2^-125.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2Decay(D d, V y) {
  const hn::RebindToSigned<D> di;
  const V clamped = hn::Max(y, hn::Set(d, -125.0f));
  // Adding 1.5 * 2^23 rounds to an integer n and leaves it in the lowest bits.
  const V magic = hn::Set(d, 12582912.0f);
  const V shifted = hn::Add(clamped, magic);
  const V r = hn::Sub(clamped, hn::Sub(shifted, magic));
  // Minimax coefficients of (2^r - 1 - r ln 2) / r^2 on [-1/2, 1/2], relative error 3e-9; with 1
  // and ln 2 kept, decays close to 1 are as exact as they can be.
  V p = hn::Set(d, 0.00015324314881581813f);
  p = hn::MulAdd(p, r, hn::Set(d, 0.0013390958774834871f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.009618517942726612f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.05550359562039375f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.24022647738456726f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.693147180559945309f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
}

}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_SCAN_INL_H_
