#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/pointwise.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cstring>

#include "backend/cpu/pointwise-inl.h"
#include "backend/cpu/pointwise_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

void Add(Extent extent, ConstMatrix a, ConstMatrix b, Matrix y) {
  ForEachSpan(extent, Contiguous(extent, a, b, y), [&](int64_t row, int64_t first, int64_t count) {
    const float *left = a.row(row) + first, *right = b.row(row) + first;
    float* to = y.row(row) + first;
    ForEachVector(count, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      v.store(hn::Add(v.load(left + i), v.load(right + i)), to + i, y.accumulate);
    });
  });
}

void Multiply(Extent extent, ConstMatrix a, ConstMatrix b, Matrix y) {
  ForEachSpan(extent, Contiguous(extent, a, b, y), [&](int64_t row, int64_t first, int64_t count) {
    const float *left = a.row(row) + first, *right = b.row(row) + first;
    float* to = y.row(row) + first;
    ForEachVector(count, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      v.store(hn::Mul(v.load(left + i), v.load(right + i)), to + i, y.accumulate);
    });
  });
}

void AddBias(Extent extent, ConstMatrix x, const float* bias, Matrix y) {
  ForEachRow(extent, [&](int64_t row) {
    const float* from = x.row(row);
    float* to = y.row(row);
    ForEachVector(extent.columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      v.store(hn::Add(v.load(from + i), v.load(bias + i)), to + i, y.accumulate);
    });
  });
}

void ColumnSums(Extent extent, ConstMatrix x, GradVector sums) {
  SumOverRows(extent, extent.columns, sums, {}, [&](int64_t row, float* to, float*) {
    const float* from = x.row(row);
    ForEachVector(extent.columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      v.store(hn::Add(v.load(from + i), v.load(to + i)), to + i);
    });
  });
}

void Scale(Extent extent, ConstMatrix x, float factor, Matrix y) {
  ForEachSpan(extent, Contiguous(extent, x, y), [&](int64_t row, int64_t first, int64_t count) {
    const float* from = x.row(row) + first;
    float* to = y.row(row) + first;
    const FloatVector times = hn::Set(FloatTag(), factor);
    ForEachVector(count, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      v.store(hn::Mul(v.load(from + i), times), to + i, y.accumulate);
    });
  });
}

// Channels 2 i and 2 i + 1 of one head turn by angle i.
HWY_INLINE void RotateNeighbours(int64_t pairs, const float* HWY_RESTRICT cosines,
                                 const float* HWY_RESTRICT sines, float direction,
                                 const float* from, float* to, bool accumulate) {
  for (int64_t i = 0; i < pairs; ++i) {
    const float c = cosines[i], s = direction * sines[i], a = from[2 * i], b = from[2 * i + 1];
    const float first = a * c - b * s, second = b * c + a * s;
    to[2 * i] = accumulate ? to[2 * i] + first : first;
    to[2 * i + 1] = accumulate ? to[2 * i + 1] + second : second;
  }
}

void Rotate(const Rotation& rotation, ConstMatrix x, Matrix y) {
  const int64_t half = rotation.rotary_dim / 2;
  const float sign = rotation.backwards ? -1.0f : 1.0f;
  ForEachRow(rotation.extent, [&](int64_t row) {
    const float *cosines = rotation.cosines + row * half, *sines = rotation.sines + row * half;
    const FloatVector direction = hn::Set(FloatTag(), sign);
    for (int64_t head = 0; head < rotation.extent.columns; head += rotation.head_dim) {
      const float* from = x.row(row) + head;
      float* to = y.row(row) + head;
      if (rotation.interleaved) {
        RotateNeighbours(half, cosines, sines, sign, from, to, y.accumulate);
      } else {
        ForEachVector(half, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
          const FloatVector c = v.load(cosines + i);
          const FloatVector s = hn::Mul(v.load(sines + i), direction);
          const FloatVector a = v.load(from + i), b = v.load(from + half + i);
          v.store(hn::NegMulAdd(b, s, hn::Mul(a, c)), to + i, y.accumulate);
          v.store(hn::MulAdd(a, s, hn::Mul(b, c)), to + half + i, y.accumulate);
        });
      }
      const int64_t rest = rotation.head_dim - 2 * half;
      ForEachVector(rest, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        v.store(v.load(from + 2 * half + i), to + 2 * half + i, y.accumulate);
      });
    }
  });
}

void ScatterAddRows(Extent extent, ConstMatrix dy, const int32_t* tokens, int64_t table_rows,
                    Matrix dtable) {
  if (!dtable.accumulate) {
    ForEachRow({table_rows, extent.columns},
               [&](int64_t row) { std::fill_n(dtable.row(row), extent.columns, 0.0f); });
  }
  // Each task owns some columns and walks all tokens in order: no two tasks write one element, and
  // the order of additions is that of the rows. Whole cache lines, so that tasks share none.
  constexpr int64_t kColumns = 64;
  const int64_t blocks = (extent.columns + kColumns - 1) / kColumns;
  const bool small = extent.rows * extent.columns <= kPointwiseGrain;
  parallel_for(blocks, small ? blocks : 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kColumns;
    const int64_t count = std::min(extent.columns, end * kColumns) - first;
    for (int64_t row = 0; row < extent.rows; ++row) {
      const float* from = dy.row(row) + first;
      float* to = dtable.row(tokens[row]) + first;
      ForEachVector(count, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        v.store(hn::Add(v.load(from + i), v.load(to + i)), to + i);
      });
    }
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(Add);
HWY_EXPORT(Multiply);
HWY_EXPORT(AddBias);
HWY_EXPORT(ColumnSums);
HWY_EXPORT(Scale);
HWY_EXPORT(Rotate);
HWY_EXPORT(ScatterAddRows);

void CpuPointwiseKernels::add(Extent extent, ConstMatrix a, ConstMatrix b, Matrix y) {
  HWY_DYNAMIC_DISPATCH(Add)(extent, a, b, y);
}

void CpuPointwiseKernels::multiply(Extent extent, ConstMatrix a, ConstMatrix b, Matrix y) {
  HWY_DYNAMIC_DISPATCH(Multiply)(extent, a, b, y);
}

void CpuPointwiseKernels::add_bias(Extent extent, ConstMatrix x, const float* bias, Matrix y) {
  HWY_DYNAMIC_DISPATCH(AddBias)(extent, x, bias, y);
}

void CpuPointwiseKernels::column_sums(Extent extent, ConstMatrix x, GradVector sums) {
  HWY_DYNAMIC_DISPATCH(ColumnSums)(extent, x, sums);
}

void CpuPointwiseKernels::scale(Extent extent, ConstMatrix x, float factor, Matrix y) {
  HWY_DYNAMIC_DISPATCH(Scale)(extent, x, factor, y);
}

void CpuPointwiseKernels::rotate(const Rotation& rotation, ConstMatrix x, Matrix y) {
  HWY_DYNAMIC_DISPATCH(Rotate)(rotation, x, y);
}

void CpuPointwiseKernels::gather_rows(Extent extent, ConstMatrix table, const int32_t* tokens,
                                      Matrix y) {
  const int64_t grain =
      std::max<int64_t>(1, HWY_NAMESPACE::kPointwiseGrain / std::max<int64_t>(1, extent.columns));
  parallel_for(extent.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      std::memcpy(y.row(row), table.row(tokens[row]),
                  static_cast<size_t>(extent.columns) * sizeof(float));
    }
  });
}

void CpuPointwiseKernels::scatter_add_rows(Extent extent, ConstMatrix dy, const int32_t* tokens,
                                           int64_t table_rows, Matrix dtable) {
  HWY_DYNAMIC_DISPATCH(ScatterAddRows)(extent, dy, tokens, table_rows, dtable);
}

std::unique_ptr<PointwiseKernels> make_cpu_pointwise_kernels() {
  return std::make_unique<CpuPointwiseKernels>();
}

}  // namespace pronghorn
#endif  // HWY_ONCE
