// Sums over rows of several vectors at once, for gradients of parameters. Included once for each
// instruction set, as simd-inl.h.
#if defined(PRONGHORN_ROW_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_ROW_SUMS_INL_H_
#undef PRONGHORN_ROW_SUMS_INL_H_
#else
#define PRONGHORN_ROW_SUMS_INL_H_
#endif

#include <algorithm>
#include <span>

#include "backend/cpu/pointwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Calls body(row, sums) for all rows, and gives the sums over rows, a vector of `columns` for each
// target, to these. sums is null if no target wants any.
template <class Body>
HWY_INLINE void SumRowsInto(Extent extent, std::span<const GradVector> targets, const Body& body) {
  const bool wanted =
      std::any_of(targets.begin(), targets.end(), [](const GradVector& t) { return t.data; });
  const int64_t count = static_cast<int64_t>(targets.size()) * extent.columns;
  const Storage storage(static_cast<size_t>(wanted ? count : 0) * sizeof(float));
  auto* sums = wanted ? reinterpret_cast<float*>(storage.data()) : nullptr;
  SumOverRows({extent.rows, count}, count, {sums, false}, {},
              [&](int64_t row, float* own, float*) { body(row, own); });
  for (size_t s = 0; wanted && s < targets.size(); ++s) {
    const GradVector& target = targets[s];
    if (target.data == nullptr) continue;
    const float* from = sums + static_cast<int64_t>(s) * extent.columns;
    for (int64_t c = 0; c < extent.columns; ++c) {
      target.data[c] = target.accumulate ? target.data[c] + from[c] : from[c];
    }
  }
}

template <class Vector>
HWY_INLINE void AddTo(Vector v, FloatVector value, float* sums) {
  v.store(value, sums, true);
}

template <class Vector>
HWY_INLINE void StoreIfWanted(Vector v, FloatVector value, const Matrix& to, int64_t row,
                              int64_t column) {
  if (to.data != nullptr) v.store(value, to.row(row) + column, to.accumulate);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_ROW_SUMS_INL_H_
