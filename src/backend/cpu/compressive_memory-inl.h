// What forward and backward of compressive memories share. Included once for each instruction set,
// see simd-inl.h.
#if defined(PRONGHORN_COMPRESSIVE_MEMORY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_COMPRESSIVE_MEMORY_INL_H_
#undef PRONGHORN_COMPRESSIVE_MEMORY_INL_H_
#else
#define PRONGHORN_COMPRESSIVE_MEMORY_INL_H_
#endif

#include <algorithm>

#include "backend/cpu/compressive_memory_tasks.h"
#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// to = ELU(from) + 1
HWY_INLINE void Positive(int64_t n, const float* HWY_RESTRICT from, float* HWY_RESTRICT to) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < n; i += lanes) {
    const auto x = LoadPart(d, from + i, n - i);
    const auto above = hn::Gt(x, hn::Zero(d));
    StorePart(d, hn::IfThenElse(above, hn::Add(x, hn::Set(d, 1.0f)), Exp(d, x)), to + i, n - i);
  }
}

// A memory that is read; null: there is nothing in it.
struct HeldMemory {
  const float *m = nullptr, *z = nullptr;
};

// Each of n rows of keys (after sigma) [n, key_dim] looked up: out [n, value_dim], zeros from a
// memory without anything. inverse [n]: 1 / (key z), or null.
HWY_INLINE void LookUp(const CompressiveMemoryShape& shape, const HeldMemory& memory, int64_t n,
                       const float* keys, float* out, float* inverse) {
  const int64_t key_dim = shape.key_dim, value_dim = shape.value_dim;
  if (memory.m == nullptr) {
    std::fill_n(out, n * value_dim, 0.0f);
    if (inverse != nullptr) std::fill_n(inverse, n, 0.0f);
    return;
  }
  SmallMatmul(n, value_dim, key_dim, keys, key_dim, 1, memory.m, value_dim, out, value_dim, false);
  for (int64_t i = 0; i < n; ++i) {
    const float weight = DotProduct(keys + i * key_dim, memory.z, key_dim);
    const float factor = weight > 0 ? 1 / weight : 0.0f;
    for (int64_t c = 0; c < value_dim; ++c) out[i * value_dim + c] *= factor;
    if (inverse != nullptr) inverse[i] = factor;
  }
}

// What n tokens write: their values [n, value_dim] become u.
HWY_INLINE void Written(const CompressiveMemoryShape& shape, const HeldMemory& memory, int64_t n,
                        const float* keys, float* values, float* scratch) {
  if (!shape.delta_rule || memory.m == nullptr) return;
  LookUp(shape, memory, n, keys, scratch, nullptr);
  AddScaled(n * shape.value_dim, -1, scratch, values);
}

// M and z with what n tokens write: `keys` and `written`.
HWY_INLINE void Grow(const CompressiveMemoryShape& shape, int64_t n, const float* keys,
                     const float* written, float* m, float* z) {
  const int64_t key_dim = shape.key_dim, value_dim = shape.value_dim;
  SmallMatmul(key_dim, value_dim, n, keys, 1, key_dim, written, value_dim, m, value_dim, true);
  for (int64_t i = 0; i < n; ++i) AddScaled(key_dim, 1, keys + i * key_dim, z);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_COMPRESSIVE_MEMORY_INL_H_
