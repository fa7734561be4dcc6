// Rows of q8_0 and q4_0 (backend/attention.h). Included once for each instruction set, see
// simd-inl.h.
#if defined(PRONGHORN_ROW_BLOCKS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_ROW_BLOCKS_INL_H_
#undef PRONGHORN_ROW_BLOCKS_INL_H_
#else
#define PRONGHORN_ROW_BLOCKS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>

#include "backend/cpu/simd-inl.h"
#include "base/float16.h"
#include "tensor/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Whole blocks of x, each times H, which is its own inverse. The order of the sums is the same for
// every instruction set: rows have the same bits.
HWY_INLINE void TurnBlocks(int64_t n, float* x) {
  for (float* block = x; block < x + n; block += kRowBlock) {
    for (int64_t half = kRowBlock / 2; half > 0; half /= 2) {
      for (int64_t first = 0; first < kRowBlock; first += 2 * half) {
        float* HWY_RESTRICT low = block + first;
        float* HWY_RESTRICT high = low + half;
        for (int64_t i = 0; i < half; ++i) {
          const float a = low[i], b = high[i];
          low[i] = a + b;
          high[i] = a - b;
        }
      }
    }
    constexpr float kNorm = 0.1767766952966369f;  // 1 / sqrt(kRowBlock)
    for (int64_t i = 0; i < kRowBlock; ++i) block[i] *= kNorm;
  }
}

// The number of a block that is largest in size, the first of equal ones; NaN if one is not finite.
HWY_INLINE float LargestOfBlock(const float* y) {
  float largest = 0;
  for (int64_t i = 0; i < kRowBlock; ++i) {
    if (!std::isfinite(y[i])) return std::numeric_limits<float>::quiet_NaN();
    if (std::fabs(y[i]) > std::fabs(largest)) largest = y[i];
  }
  return largest;
}

// codes = y / scale to the nearest whole number of low ... high.
HWY_INLINE void CodesOfBlock(const float* HWY_RESTRICT y, float scale, float low, float high,
                             int32_t* HWY_RESTRICT codes) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> whole;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const bool usable = scale != 0 && !std::isnan(scale);
  const auto divisor = hn::Set(d, usable ? scale : 1.0f);
  const auto least = hn::Set(d, usable ? low : 0.0f), most = hn::Set(d, usable ? high : 0.0f);
  for (int64_t i = 0; i < kRowBlock; i += lanes) {
    const auto quotient = hn::Div(hn::LoadU(d, y + i), divisor);
    hn::StoreU(hn::NearestInt(hn::Min(hn::Max(quotient, least), most)), whole, codes + i);
  }
}

// Whole blocks.
HWY_INLINE void StoreBlocks(int64_t n, const float* from, DType type, std::byte* to) {
  HWY_ALIGN float y[kRowBlock];
  HWY_ALIGN int32_t codes[kRowBlock];
  const bool wide = type == DType::q8_0;
  for (int64_t at = 0; at < n; at += kRowBlock, to += dtype_size(type)) {
    std::copy_n(from + at, kRowBlock, y);
    TurnBlocks(kRowBlock, y);
    const float largest = LargestOfBlock(y);
    const float exact = wide ? std::fabs(largest) / 127 : largest / -8;
    const f16_t bits =
        to_f16(std::isnan(exact) ? exact : std::clamp(exact, -kLargestF16, kLargestF16));
    CodesOfBlock(y, from_f16(bits), wide ? -127.0f : -8.0f, wide ? 127.0f : 7.0f, codes);
    std::memcpy(to, &bits, sizeof(bits));
    auto* bytes = reinterpret_cast<uint8_t*>(to + sizeof(bits));
    if (wide) {
      for (int64_t i = 0; i < kRowBlock; ++i) bytes[i] = static_cast<uint8_t>(codes[i]);
      continue;
    }
    constexpr int64_t kHalf = kRowBlock / 2;
    for (int64_t i = 0; i < kHalf; ++i) {
      bytes[i] = static_cast<uint8_t>(codes[i] + 8 + 16 * (codes[i + kHalf] + 8));
    }
  }
}

HWY_INLINE float BlockScale(const std::byte* block) {
  f16_t bits;
  std::memcpy(&bits, block, sizeof(bits));
#if HWY_TARGET <= HWY_AVX2 && HWY_ARCH_X86
  return _cvtsh_ss(bits);
#else
  return from_f16(bits);
#endif
}

// to = scale codes of whole blocks, which stay turned.
HWY_INLINE void LoadQ8Blocks(int64_t n, const std::byte* HWY_RESTRICT from,
                             float* HWY_RESTRICT to) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> whole;
  const hn::Rebind<int8_t, FloatTag> narrow;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (; n > 0; n -= kRowBlock, from += dtype_size(DType::q8_0), to += kRowBlock) {
    const auto scale = hn::Set(d, BlockScale(from));
    const auto* codes = reinterpret_cast<const int8_t*>(from + sizeof(f16_t));
    for (int64_t i = 0; i < kRowBlock; i += lanes) {
      const auto code = hn::PromoteTo(whole, hn::LoadU(narrow, codes + i));
      hn::StoreU(hn::Mul(hn::ConvertTo(d, code), scale), d, to + i);
    }
  }
}

HWY_INLINE void LoadQ4Blocks(int64_t n, const std::byte* HWY_RESTRICT from,
                             float* HWY_RESTRICT to) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> whole;
  const hn::Rebind<uint8_t, FloatTag> narrow;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto mask = hn::Set(whole, 15), zero = hn::Set(whole, 8);
  constexpr int64_t kHalf = kRowBlock / 2;
  for (; n > 0; n -= kRowBlock, from += dtype_size(DType::q4_0), to += kRowBlock) {
    const auto scale = hn::Set(d, BlockScale(from));
    const auto* bytes = reinterpret_cast<const uint8_t*>(from + sizeof(f16_t));
    for (int64_t i = 0; i < kHalf; i += lanes) {
      const auto both = hn::PromoteTo(whole, hn::LoadU(narrow, bytes + i));
      const auto low = hn::Sub(hn::And(both, mask), zero);
      const auto high = hn::Sub(hn::ShiftRight<4>(both), zero);
      hn::StoreU(hn::Mul(hn::ConvertTo(d, low), scale), d, to + i);
      hn::StoreU(hn::Mul(hn::ConvertTo(d, high), scale), d, to + kHalf + i);
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_ROW_BLOCKS_INL_H_
