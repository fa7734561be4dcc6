// Loops over matrices for the element-wise and row-wise kernels. Included once for each instruction
// set, as simd-inl.h.
#if defined(PRONGHORN_POINTWISE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_POINTWISE_INL_H_
#undef PRONGHORN_POINTWISE_INL_H_
#else
#define PRONGHORN_POINTWISE_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <vector>

#include "backend/cpu/simd-inl.h"
#include "backend/pointwise.h"
#include "base/threads.h"
#include "tensor/storage.h"

// Attributes of the lambdas below: built for the current target, and inlined so that sums that they
// capture stay in registers.
#ifndef PRONGHORN_VECTOR_LAMBDA
#define PRONGHORN_VECTOR_LAMBDA HWY_ATTR __attribute__((always_inline))
#endif

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Elements of a task: enough work to outweigh a fork and join.
constexpr int64_t kPointwiseGrain = 1 << 14;

// How a loop body reads and writes the vector it is called for.
struct FullVector {
  HWY_INLINE FloatVector load(const float* from) const { return hn::LoadU(FloatTag(), from); }
  HWY_INLINE void store(FloatVector value, float* to) const { hn::StoreU(value, FloatTag(), to); }
  HWY_INLINE void store(FloatVector value, float* to, bool accumulate) const {
    if (accumulate) value = hn::Add(value, load(to));
    store(value, to);
  }
  // Zeros in the lanes after the last element, for sums of what is not zero there by itself.
  HWY_INLINE FloatVector zero_rest(FloatVector value) const { return value; }
};
struct PartialVector {
  size_t count;
  HWY_INLINE FloatVector load(const float* from) const {
    return LoadPartial(FloatTag(), count, from);
  }
  HWY_INLINE void store(FloatVector value, float* to) const {
    StorePartial(FloatTag(), count, value, to);
  }
  HWY_INLINE void store(FloatVector value, float* to, bool accumulate) const {
    if (accumulate) value = hn::Add(value, load(to));
    store(value, to);
  }
  HWY_INLINE FloatVector zero_rest(FloatVector value) const {
    return hn::IfThenElseZero(hn::FirstN(FloatTag(), count), value);
  }
};

// Calls body(vector, i) for each vector of elements i ... of [0, count).
template <class Body>
HWY_INLINE void ForEachVector(int64_t count, const Body& body) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) body(FullVector(), i);
  if (i < count) body(PartialVector{static_cast<size_t>(count - i)}, i);
}

HWY_INLINE float Total(FloatVector sum) { return hn::GetLane(hn::SumOfLanes(FloatTag(), sum)); }

// Calls body(row) for all rows from several threads.
template <class Body>
HWY_INLINE void ForEachRow(Extent extent, const Body& body) {
  const int64_t grain =
      std::max<int64_t>(1, kPointwiseGrain / std::max<int64_t>(1, extent.columns));
  parallel_for(extent.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

// Calls body(row, first_column, columns) on pieces that cover the matrix, for operations that treat
// all elements alike. contiguous: no operand has gaps between rows, so that pieces may be longer.
template <class Body>
HWY_INLINE void ForEachSpan(Extent extent, bool contiguous, const Body& body) {
  if (contiguous || extent.rows == 1) {
    parallel_for(extent.rows * extent.columns, kPointwiseGrain,
                 [&](int64_t begin, int64_t end) { body(0, begin, end - begin); });
  } else {
    ForEachRow(extent, [&](int64_t row) { body(row, 0, extent.columns); });
  }
}

template <class... Matrices>
bool Contiguous(Extent extent, const Matrices&... matrices) {
  return ((matrices.data == nullptr || matrices.stride == extent.columns) && ...);
}

// Sums over rows of up to two values a column. Rows are cut into fixed blocks; body(row, first,
// second) adds a row's values to its block's sums (null where the gradient is not wanted), and the
// blocks are combined in order.
template <class Body>
HWY_INLINE void SumOverRows(Extent extent, int64_t sums, GradVector first, GradVector second,
                            const Body& body) {
  // At most kMostBlocks blocks, so that combining them costs little beside the rows themselves.
  constexpr int64_t kLeastRows = 16, kMostBlocks = 64;
  if (first.data == nullptr && second.data == nullptr) {
    ForEachRow(extent, [&](int64_t row) { body(row, nullptr, nullptr); });
    return;
  }
  const int64_t block_rows = std::max(kLeastRows, (extent.rows + kMostBlocks - 1) / kMostBlocks);
  const int64_t blocks = (extent.rows + block_rows - 1) / block_rows;
  const Storage scratch(static_cast<size_t>(std::max<int64_t>(1, blocks * sums * 2)) *
                        sizeof(float));
  auto* partial = reinterpret_cast<float*>(scratch.data());
  const int64_t grain =
      std::max<int64_t>(1, kPointwiseGrain / std::max<int64_t>(1, block_rows * extent.columns));
  parallel_for(blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      float* own = partial + block * sums * 2;
      std::fill_n(own, sums * 2, 0.0f);
      const int64_t last = std::min(extent.rows, (block + 1) * block_rows);
      for (int64_t row = block * block_rows; row < last; ++row) {
        body(row, first.data ? own : nullptr, second.data ? own + sums : nullptr);
      }
    }
  });
  const GradVector targets[] = {first, second};
  for (int64_t which = 0; which < 2; ++which) {
    const GradVector target = targets[which];
    if (target.data == nullptr) continue;
    const float* from = partial + which * sums;
    parallel_for(sums, 1024, [&](int64_t begin, int64_t end) {
      if (!target.accumulate) std::fill(target.data + begin, target.data + end, 0.0f);
      for (int64_t block = 0; block < blocks; ++block) {
        const float* own = from + block * sums * 2;
        for (int64_t c = begin; c < end; ++c) target.data[c] += own[c];
      }
    });
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_POINTWISE_INL_H_
