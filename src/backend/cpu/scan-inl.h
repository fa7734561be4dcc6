// What the forward and the backward pass of the scans share: a fast 2^y, the update of a state, and
// operands brought into the cache. Included once for each instruction set, as simd-inl.h.
#if defined(PRONGHORN_SCAN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_SCAN_INL_H_
#undef PRONGHORN_SCAN_INL_H_
#else
#define PRONGHORN_SCAN_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "backend/cpu/scan_tasks.h"
#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
namespace {

// 2^y for -125 <= y <= 127, to half a unit in the last place and a little.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2(D d, V y) {
  const hn::RebindToSigned<D> di;
  // Adding 1.5 * 2^23 rounds to an integer n and leaves it in the lowest bits.
  const V magic = hn::Set(d, 12582912.0f);
  const V shifted = hn::Add(y, magic);
  const V r = hn::Sub(y, hn::Sub(shifted, magic));
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

// 2^y for y <= 0, a decay; at least 2^-125.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2Decay(D d, V y) {
  return Exp2(d, hn::Max(y, hn::Set(d, -125.0f)));
}

using cpu_scan::kGroup;

// exp(dt A), given A log2(e).
HWY_INLINE FloatVector Decay(FloatVector dt, const float* rate) {
  const FloatTag d;
  return Exp2Decay(d, hn::Mul(dt, hn::Load(d, rate)));
}

// The update of one state of a vector of channels; dtx = dt x. Only products feed the fused
// addition, so the compiler has no choice of how to round.
HWY_INLINE FloatVector Advance(FloatVector decay, FloatVector h, FloatVector dtx, float B) {
  return hn::MulAdd(decay, h, hn::Mul(dtx, hn::Set(FloatTag(), B)));
}

// Tokens of a group of channels: [tokens][kGroup] each.
struct ScanTokens {
  float *dt, *x, *y;
};

// Brings `tokens` rows from `first` on into a tile: x, and dt = softplus(dt_raw + dt_bias).
// journal_rows: of the first row on, or null.
inline HWY_NOINLINE void FillTile(const SelectiveScan& scan, int64_t channel, int64_t count,
                                  int64_t first, int64_t tokens, float* const* journal_rows,
                                  const ScanTokens& tile) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t t = 0; t < tokens; ++t) {
    const float* raw = scan.dt_raw.row(first + t) + channel;
    const float* input = scan.x.row(first + t) + channel;
    for (int64_t c = 0; c < count; c += lanes) {
      const int64_t part = std::min(lanes, count - c);
      const FloatVector bias = LoadPart(d, scan.dt_bias + channel + c, part);
      const FloatVector dt = Softplus(d, hn::Add(LoadPart(d, raw + c, part), bias));
      const FloatVector x = LoadPart(d, input + c, part);
      hn::Store(dt, d, tile.dt + t * kGroup + c);
      hn::Store(x, d, tile.x + t * kGroup + c);
      if (journal_rows != nullptr) {
        StorePart(d, dt, journal_rows[t] + channel + c, part);
        StorePart(d, x, journal_rows[t] + scan.channels + channel + c, part);
      }
    }
  }
}

// A group's part of a state [states, channels], to and from [states][kGroup].
inline void LoadState(const float* state, int64_t states, int64_t channels, int64_t channel,
                      int64_t count, float* group) {
  for (int64_t n = 0; n < states; ++n) {
    float* to = group + n * kGroup;
    const int64_t given = state != nullptr ? count : 0;
    if (given > 0) {
      std::memcpy(to, state + n * channels + channel, static_cast<size_t>(given) * sizeof(float));
    }
    std::fill(to + given, to + kGroup, 0.0f);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_SCAN_INL_H_
