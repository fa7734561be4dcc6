// Gates and normalisers of the linear-attention family, row by row.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/pointwise_gates.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>

#include "backend/cpu/pointwise-inl.h"
#include "backend/cpu/pointwise_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

using V = FloatVector;

HWY_INLINE V Constant(float value) { return hn::Set(FloatTag(), value); }

// max(x, low); a NaN stays one.
HWY_INLINE V AtLeast(V x, V low) { return hn::IfThenElse(hn::Lt(x, low), low, x); }

void AppendOnes(Extent extent, int64_t group, ConstMatrix x, Matrix y) {
  ForEachRow(extent, [&](int64_t row) {
    for (int64_t g = 0; g < extent.columns / group; ++g) {
      const float* from = x.row(row) + g * group;
      float* to = y.row(row) + g * (group + 1);
      std::copy_n(from, group, to);
      to[group] = 1;
    }
  });
}

void AppendOnesBackward(Extent extent, int64_t group, ConstMatrix dy, Matrix dx) {
  ForEachRow(extent, [&](int64_t row) {
    for (int64_t g = 0; g < extent.columns / group; ++g) {
      const float* from = dy.row(row) + g * (group + 1);
      float* to = dx.row(row) + g * group;
      ForEachVector(group, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        v.store(v.load(from + i), to + i, dx.accumulate);
      });
    }
  });
}

void DivideBySums(Extent extent, int64_t group, float least, ConstMatrix x, Matrix y) {
  ForEachRow(extent, [&](int64_t row) {
    for (int64_t g = 0; g < extent.columns / group; ++g) {
      const float* from = x.row(row) + g * (group + 1);
      float* to = y.row(row) + g * group;
      const V divisor = AtLeast(hn::Abs(Constant(from[group])), Constant(least));
      ForEachVector(group, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        v.store(hn::Div(v.load(from + i), divisor), to + i);
      });
    }
  });
}

// With n = x / d and d = max(|s|, least): dx = dy / d, ds = -sign(s) sum(dy n) / d where d is |s|.
void DivideBySumsBackward(Extent extent, int64_t group, float least, ConstMatrix x, ConstMatrix dy,
                          Matrix dx) {
  ForEachRow(extent, [&](int64_t row) {
    for (int64_t g = 0; g < extent.columns / group; ++g) {
      const float* from = x.row(row) + g * (group + 1);
      const float* gradient = dy.row(row) + g * group;
      float* to = dx.row(row) + g * (group + 1);
      const float sum = from[group], divisor = std::max(std::abs(sum), least);
      const V inverse = Constant(1 / divisor);
      ForEachVector(group, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        v.store(hn::Mul(v.load(gradient + i), inverse), to + i, dx.accumulate);
      });
      float d_sum = 0;
      if (std::abs(sum) > least) {
        // Two divisions: the square of a large sum overflows.
        d_sum = std::copysign(1.0f, -sum) * (DotProduct(from, gradient, group) / divisor) / divisor;
      }
      to[group] = dx.accumulate ? to[group] + d_sum : d_sum;
    }
  });
}

void ScaleColumns(Extent extent, ConstMatrix x, const float* weight, Matrix y) {
  ForEachRow(extent, [&](int64_t row) {
    const float* from = x.row(row);
    float* to = y.row(row);
    ForEachVector(extent.columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      v.store(hn::Mul(v.load(from + i), v.load(weight + i)), to + i);
    });
  });
}

void ScaleColumnsBackward(Extent extent, ConstMatrix x, const float* weight, ConstMatrix dy,
                          Matrix dx, GradVector dweight) {
  const auto row_gradients = [&](int64_t row, float* weight_sum, float*) {
    const float *from = x.row(row), *gradient = dy.row(row);
    float* to = dx.data ? dx.row(row) : nullptr;
    ForEachVector(extent.columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      const V g = v.load(gradient + i);
      if (to) v.store(hn::Mul(g, v.load(weight + i)), to + i, dx.accumulate);
      if (weight_sum) v.store(hn::Mul(g, v.load(from + i)), weight_sum + i, true);
    });
  };
  SumOverRows(extent, extent.columns, dweight, {}, row_gradients);
}

void ScaleGroups(Extent extent, int64_t group, ConstMatrix x, ConstMatrix factors, Matrix y) {
  ForEachRow(extent, [&](int64_t row) {
    for (int64_t g = 0; g < extent.columns / group; ++g) {
      const float* from = x.row(row) + g * group;
      float* to = y.row(row) + g * group;
      const V factor = Constant(factors.row(row)[g]);
      ForEachVector(group, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        v.store(hn::Mul(v.load(from + i), factor), to + i);
      });
    }
  });
}

void ScaleGroupsBackward(Extent extent, int64_t group, ConstMatrix x, ConstMatrix factors,
                         ConstMatrix dy, Matrix dx, Matrix dfactors) {
  ForEachRow(extent, [&](int64_t row) {
    for (int64_t g = 0; g < extent.columns / group; ++g) {
      const float *from = x.row(row) + g * group, *gradient = dy.row(row) + g * group;
      const V factor = Constant(factors.row(row)[g]);
      if (float* to = dx.data ? dx.row(row) + g * group : nullptr) {
        ForEachVector(group, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
          v.store(hn::Mul(v.load(gradient + i), factor), to + i, dx.accumulate);
        });
      }
      if (dfactors.data == nullptr) continue;
      const float sum = DotProduct(from, gradient, group);
      float& to = dfactors.row(row)[g];
      to = dfactors.accumulate ? to + sum : sum;
    }
  });
}

// A decay of which nothing is left: its logarithm stays finite.
constexpr float kLeastDecay = 1e-37f;

void LowerBoundedGate(Extent extent, ConstMatrix x, const float* bound, Matrix log_decay,
                      Matrix k) {
  ForEachRow(extent, [&](int64_t row) {
    const FloatTag d;
    const float* from = x.row(row);
    float *log_row = log_decay.row(row), *k_row = k.row(row);
    ForEachVector(extent.columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      const V raw = v.load(from + i), low = v.load(bound + i);
      const V free = hn::Sub(Constant(1.0f), low);
      const V decay = hn::MulAdd(free, Sigmoid(d, raw), low);
      const V log = Log(d, AtLeast(decay, Constant(kLeastDecay)));
      v.store(hn::IfThenElse(hn::IsNaN(decay), decay, log), log_row + i);  // Log() loses a NaN
      // 1 - decay without the cancellation.
      v.store(hn::Mul(free, Sigmoid(d, hn::Neg(raw))), k_row + i);
    });
  });
}

// With s = sigmoid(x), n = sigmoid(-x), f the decay: df/dx = (1 - bound) s n, df/dbound = n, and
// the gradient of f is d_log_decay / f - dk.
void LowerBoundedGateBackward(Extent extent, ConstMatrix x, const float* bound,
                              ConstMatrix d_log_decay, ConstMatrix dk, Matrix dx,
                              GradVector d_bound) {
  const auto row_gradients = [&](int64_t row, float* bound_sum, float*) {
    const FloatTag d;
    const float* from = x.row(row);
    const float* log_row = d_log_decay.data ? d_log_decay.row(row) : nullptr;
    const float* k_row = dk.data ? dk.row(row) : nullptr;
    float* to = dx.data ? dx.row(row) : nullptr;
    ForEachVector(extent.columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      const V raw = v.load(from + i), low = v.load(bound + i);
      const V s = Sigmoid(d, raw), n = Sigmoid(d, hn::Neg(raw));
      const V free = hn::Sub(Constant(1.0f), low);
      const V decay = AtLeast(hn::MulAdd(free, s, low), Constant(kLeastDecay));
      const V d_log = log_row ? v.load(log_row + i) : hn::Zero(d);
      const V d_k = k_row ? v.load(k_row + i) : hn::Zero(d);
      if (to) {
        // s / f is at most 1 / (1 - bound), however small both are.
        const V of_log = hn::Mul(d_log, hn::Div(s, decay));
        const V sum = hn::NegMulAdd(d_k, s, of_log);
        v.store(hn::Mul(hn::Mul(free, n), sum), to + i, dx.accumulate);
      }
      if (bound_sum) {
        v.store(hn::Mul(n, hn::Sub(hn::Div(d_log, decay), d_k)), bound_sum + i, true);
      }
    });
  };
  SumOverRows(extent, extent.columns, d_bound, {}, row_gradients);
}

// Calls body(c, p) for each column c with p the softmax over its rows.
template <class Body>
void ForEachSoftmax(Extent extent, ConstMatrix x, const Body& body) {
  std::vector<float> p(static_cast<size_t>(extent.rows));
  for (int64_t c = 0; c < extent.columns; ++c) {
    float largest = x.row(0)[c];
    for (int64_t i = 1; i < extent.rows; ++i) largest = std::max(largest, x.row(i)[c]);
    float sum = 0;
    for (int64_t i = 0; i < extent.rows; ++i) {
      p[static_cast<size_t>(i)] = std::exp(x.row(i)[c] - largest);
      sum += p[static_cast<size_t>(i)];
    }
    for (float& value : p) value /= sum;
    body(c, p.data());
  }
}

void CumulativeSoftmax(Extent extent, ConstMatrix x, int64_t row, float* bound) {
  ForEachSoftmax(extent, x, [&](int64_t c, const float* p) {
    float sum = 0;
    for (int64_t i = 1; i <= row; ++i) sum += p[i];
    bound[c] = sum;
  });
}

void CumulativeSoftmaxBackward(Extent extent, ConstMatrix x, int64_t row, const float* d_bound,
                               Matrix dx) {
  ForEachSoftmax(extent, x, [&](int64_t c, const float* p) {
    float sum = 0;
    for (int64_t i = 1; i <= row; ++i) sum += p[i];
    for (int64_t i = 0; i < extent.rows; ++i) {
      const float own = i >= 1 && i <= row ? 1.0f : 0.0f;
      // Row 0 stands for a bound of 0, whatever x is.
      const float gradient = row > 0 ? d_bound[c] * p[i] * (own - sum) : 0.0f;
      float& to = dx.row(i)[c];
      to = dx.accumulate ? to + gradient : gradient;
    }
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(AppendOnes);
HWY_EXPORT(AppendOnesBackward);
HWY_EXPORT(DivideBySums);
HWY_EXPORT(DivideBySumsBackward);
HWY_EXPORT(ScaleColumns);
HWY_EXPORT(ScaleColumnsBackward);
HWY_EXPORT(ScaleGroups);
HWY_EXPORT(ScaleGroupsBackward);
HWY_EXPORT(LowerBoundedGate);
HWY_EXPORT(LowerBoundedGateBackward);
HWY_EXPORT(CumulativeSoftmax);
HWY_EXPORT(CumulativeSoftmaxBackward);

void CpuPointwiseKernels::append_ones(Extent extent, int64_t group, ConstMatrix x, Matrix y) {
  HWY_DYNAMIC_DISPATCH(AppendOnes)(extent, group, x, y);
}

void CpuPointwiseKernels::append_ones_backward(Extent extent, int64_t group, ConstMatrix dy,
                                               Matrix dx) {
  HWY_DYNAMIC_DISPATCH(AppendOnesBackward)(extent, group, dy, dx);
}

void CpuPointwiseKernels::divide_by_sums(Extent extent, int64_t group, float least, ConstMatrix x,
                                         Matrix y) {
  HWY_DYNAMIC_DISPATCH(DivideBySums)(extent, group, least, x, y);
}

void CpuPointwiseKernels::divide_by_sums_backward(Extent extent, int64_t group, float least,
                                                  ConstMatrix x, ConstMatrix dy, Matrix dx) {
  HWY_DYNAMIC_DISPATCH(DivideBySumsBackward)(extent, group, least, x, dy, dx);
}

void CpuPointwiseKernels::scale_columns(Extent extent, ConstMatrix x, const float* weight,
                                        Matrix y) {
  HWY_DYNAMIC_DISPATCH(ScaleColumns)(extent, x, weight, y);
}

void CpuPointwiseKernels::scale_columns_backward(Extent extent, ConstMatrix x, const float* weight,
                                                 ConstMatrix dy, Matrix dx, GradVector dweight) {
  HWY_DYNAMIC_DISPATCH(ScaleColumnsBackward)(extent, x, weight, dy, dx, dweight);
}

void CpuPointwiseKernels::scale_groups(Extent extent, int64_t group, ConstMatrix x,
                                       ConstMatrix factors, Matrix y) {
  HWY_DYNAMIC_DISPATCH(ScaleGroups)(extent, group, x, factors, y);
}

void CpuPointwiseKernels::scale_groups_backward(Extent extent, int64_t group, ConstMatrix x,
                                                ConstMatrix factors, ConstMatrix dy, Matrix dx,
                                                Matrix dfactors) {
  HWY_DYNAMIC_DISPATCH(ScaleGroupsBackward)(extent, group, x, factors, dy, dx, dfactors);
}

void CpuPointwiseKernels::lower_bounded_gate(Extent extent, ConstMatrix x, const float* bound,
                                             Matrix log_decay, Matrix k) {
  HWY_DYNAMIC_DISPATCH(LowerBoundedGate)(extent, x, bound, log_decay, k);
}

void CpuPointwiseKernels::lower_bounded_gate_backward(Extent extent, ConstMatrix x,
                                                      const float* bound, ConstMatrix d_log_decay,
                                                      ConstMatrix dk, Matrix dx,
                                                      GradVector d_bound) {
  HWY_DYNAMIC_DISPATCH(LowerBoundedGateBackward)(extent, x, bound, d_log_decay, dk, dx, d_bound);
}

void CpuPointwiseKernels::cumulative_softmax(Extent extent, ConstMatrix x, int64_t row,
                                             float* bound) {
  HWY_DYNAMIC_DISPATCH(CumulativeSoftmax)(extent, x, row, bound);
}

void CpuPointwiseKernels::cumulative_softmax_backward(Extent extent, ConstMatrix x, int64_t row,
                                                      const float* d_bound, Matrix dx) {
  HWY_DYNAMIC_DISPATCH(CumulativeSoftmaxBackward)(extent, x, row, d_bound, dx);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
