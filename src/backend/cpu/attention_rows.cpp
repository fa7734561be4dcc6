// Rows of keys and values, rounded as a journal holds them, and what they then stand for.
#include <algorithm>
#include <cmath>
#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/attention_rows.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "backend/cpu/attention-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

HWY_INLINE void StoreBf16(int64_t n, const float* HWY_RESTRICT from, bf16_t* HWY_RESTRICT to) {
  for (int64_t i = 0; i < n; ++i) to[i] = to_bf16(from[i]);
}

HWY_INLINE void StoreF16(int64_t n, const float* HWY_RESTRICT from, f16_t* HWY_RESTRICT to) {
  int64_t i = 0;
#if HWY_TARGET <= HWY_AVX2 && HWY_ARCH_X86
  const FloatTag d;
  const hn::Rebind<hwy::float16_t, FloatTag> narrow;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto low = hn::Set(d, -kLargestF16), high = hn::Set(d, kLargestF16);
  for (; i + lanes <= n; i += lanes) {
    const auto value = hn::LoadU(d, from + i);
    const auto clamped = hn::IfThenElse(hn::IsNaN(value), value, hn::Clamp(value, low, high));
    hn::StoreU(hn::DemoteTo(narrow, clamped), narrow, reinterpret_cast<hwy::float16_t*>(to) + i);
  }
#endif
  for (; i < n; ++i) {
    to[i] = to_f16(std::isnan(from[i]) ? from[i] : std::clamp(from[i], -kLargestF16, kLargestF16));
  }
}

void StoreRows(const ConstMatrix& from, int64_t rows, int64_t columns, DType type, std::byte* to,
               int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) {
    std::byte* row = to + i * dtype_bytes(type, stride);
    if (is_block_type(type)) {
      StoreBlocks(columns, from.row(i), type, row);
    } else if (type == DType::bf16) {
      StoreBf16(columns, from.row(i), reinterpret_cast<bf16_t*>(row));
    } else if (type == DType::f16) {
      StoreF16(columns, from.row(i), reinterpret_cast<f16_t*>(row));
    } else {
      std::memcpy(row, from.row(i), static_cast<size_t>(columns) * sizeof(float));
    }
  }
}

void LoadRows(const std::byte* from, int64_t rows, int64_t columns, DType type, int64_t stride,
              const Matrix& to) {
  for (int64_t i = 0; i < rows; ++i, from += dtype_bytes(type, stride)) {
    float* row = to.row(i);
    const ConstMatrix held = FloatRows(type, from, 0, stride, 1, columns, row);
    if (held.data != row) std::copy_n(held.data, columns, row);
    if (is_block_type(type)) TurnBlocks(columns, row);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(StoreRows);
HWY_EXPORT(LoadRows);

void cpu_attention::store_rows(const ConstMatrix& from, int64_t rows, int64_t columns, DType type,
                               std::byte* to, int64_t stride) {
  HWY_DYNAMIC_DISPATCH(StoreRows)(from, rows, columns, type, to, stride);
}

void cpu_attention::load_rows(const std::byte* from, int64_t rows, int64_t columns, DType type,
                              int64_t stride, const Matrix& to) {
  HWY_DYNAMIC_DISPATCH(LoadRows)(from, rows, columns, type, stride, to);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
