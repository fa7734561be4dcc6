#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/pointwise_norms.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <cmath>

#include "backend/cpu/pointwise-inl.h"
#include "backend/cpu/pointwise_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

using V = FloatVector;

// A row is read from memory once; the later passes over it find it in the first-level cache.
template <bool kCentered>
void NormRows(const NormForward& a) {
  const float per_column = 1.0f / static_cast<float>(a.extent.columns);
  ForEachRow(a.extent, [&](int64_t row) {
    const FloatTag d;
    const int64_t columns = a.extent.columns;
    const float* h = a.x.row(row);
    V sum = hn::Zero(d), squares = hn::Zero(d);
    if (a.delta.data) {
      const float *x = h, *delta = a.delta.row(row);
      float* to = a.sum.row(row);
      ForEachVector(columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const V value = hn::Add(v.load(x + i), v.load(delta + i));
        v.store(value, to + i);
        if (kCentered) sum = hn::Add(sum, value);
        if (!kCentered) squares = hn::MulAdd(value, value, squares);
      });
      h = to;
    } else {
      ForEachVector(columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const V value = v.load(h + i);
        if (kCentered) sum = hn::Add(sum, value);
        if (!kCentered) squares = hn::MulAdd(value, value, squares);
      });
    }
    float mean = 0;
    if (kCentered) {
      mean = Total(sum) * per_column;
      const V center = hn::Set(d, mean);
      ForEachVector(columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const V value = v.zero_rest(hn::Sub(v.load(h + i), center));
        squares = hn::MulAdd(value, value, squares);
      });
      if (a.mean) a.mean[row] = mean;
    }
    const float inverse = 1.0f / std::sqrt(Total(squares) * per_column + a.epsilon);
    if (a.inverse_rms) a.inverse_rms[row] = inverse;
    const V center = hn::Set(d, mean), factor = hn::Set(d, inverse);
    float* y = a.y.row(row);
    ForEachVector(columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      V value = v.load(h + i);
      if (kCentered) value = hn::Sub(value, center);
      value = hn::Mul(hn::Mul(value, factor), v.load(a.weight + i));
      if (a.bias) value = hn::Add(value, v.load(a.bias + i));
      v.store(value, y + i);
    });
  });
}

// With n = (h - mean) r the normalised row and g = dy weight:
//   dh = r (g - mean(g) - n mean(g n)), without mean(g) if not centered
//   dweight = sum over rows of dy n, dbias = sum over rows of dy
template <bool kCentered>
void NormRowsBackward(const NormBackward& a) {
  const int64_t columns = a.extent.columns;
  const float per_column = 1.0f / static_cast<float>(columns);
  SumOverRows(a.extent, columns, a.dweight, a.dbias, [&](int64_t row, float* dw, float* db) {
    const FloatTag d;
    const float *h = a.h.row(row), *dy = a.dy.row(row);
    const V center = hn::Set(d, kCentered ? a.mean[row] : 0.0f);
    const V factor = hn::Set(d, a.inverse_rms[row]);
    V sum = hn::Zero(d), product = hn::Zero(d);
    ForEachVector(columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      V n = v.load(h + i);
      if (kCentered) n = hn::Sub(n, center);
      n = hn::Mul(n, factor);
      const V gradient = v.load(dy + i);
      const V g = hn::Mul(gradient, v.load(a.weight + i));  // zero after the last column
      if (kCentered) sum = hn::Add(sum, g);
      product = hn::MulAdd(g, n, product);
      if (dw) v.store(hn::MulAdd(gradient, n, v.load(dw + i)), dw + i);
      if (db) v.store(gradient, db + i, true);
    });
    if (!a.dh.data) return;
    const V mean_g = hn::Set(d, kCentered ? Total(sum) * per_column : 0.0f);
    const V mean_gn = hn::Set(d, Total(product) * per_column);
    const float* residual = a.residual.data ? a.residual.row(row) : nullptr;
    float* dh = a.dh.row(row);
    ForEachVector(columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      V n = v.load(h + i);
      if (kCentered) n = hn::Sub(n, center);
      n = hn::Mul(n, factor);
      V g = hn::Mul(v.load(dy + i), v.load(a.weight + i));
      if (kCentered) g = hn::Sub(g, mean_g);
      V value = hn::Mul(factor, hn::NegMulAdd(n, mean_gn, g));
      if (residual) value = hn::Add(value, v.load(residual + i));
      v.store(value, dh + i, a.dh.accumulate);
    });
  });
}

void Norm(const NormForward& a) { a.centered ? NormRows<true>(a) : NormRows<false>(a); }

void NormGradient(const NormBackward& a) {
  a.centered ? NormRowsBackward<true>(a) : NormRowsBackward<false>(a);
}

void BiasNormRows(const BiasNormForward& a) {
  const float per_column = 1.0f / static_cast<float>(a.extent.columns);
  const float scale = std::exp(*a.log_scale);
  ForEachRow(a.extent, [&](int64_t row) {
    const FloatTag d;
    const int64_t columns = a.extent.columns;
    const float* h = a.x.row(row);
    V squares = hn::Zero(d);
    if (a.delta.data) {
      const float *x = h, *delta = a.delta.row(row);
      float* to = a.sum.row(row);
      ForEachVector(columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const V value = hn::Add(v.load(x + i), v.load(delta + i));
        v.store(value, to + i);
        const V shifted = hn::Sub(value, v.load(a.bias + i));
        squares = hn::MulAdd(shifted, shifted, squares);
      });
      h = to;
    } else {
      ForEachVector(columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const V shifted = hn::Sub(v.load(h + i), v.load(a.bias + i));
        squares = hn::MulAdd(shifted, shifted, squares);
      });
    }
    const float inverse = 1.0f / std::sqrt(Total(squares) * per_column + a.epsilon);
    if (a.inverse_rms) a.inverse_rms[row] = inverse;
    const V factor = hn::Set(d, inverse * scale);
    float* y = a.y.row(row);
    ForEachVector(columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      v.store(hn::Mul(v.load(h + i), factor), y + i);
    });
  });
}

// With s = e^log_scale, r = inverse_rms and q = s r sum(dy h):
//   dh = s r dy - q r^2 (h - bias) / columns
//   dbias = sum over rows of q r^2 (h - bias) / columns, dlog_scale = sum over rows of q
void BiasNormRowsBackward(const BiasNormBackward& a) {
  const int64_t columns = a.extent.columns;
  const float per_column = 1.0f / static_cast<float>(columns);
  const float scale = std::exp(*a.log_scale);
  SumOverRows(a.extent, columns, a.dbias, {}, [&](int64_t row, float* db, float*) {
    const FloatTag d;
    const float *h = a.h.row(row), *dy = a.dy.row(row);
    V product = hn::Zero(d);
    ForEachVector(columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      product = hn::MulAdd(v.load(dy + i), v.load(h + i), product);
    });
    const float inverse = a.inverse_rms[row], q = scale * inverse * Total(product);
    if (a.dlog_scale) a.dlog_scale[row] = q;
    const V factor = hn::Set(d, scale * inverse);
    const V pull = hn::Set(d, q * inverse * inverse * per_column);
    const float* residual = a.residual.data ? a.residual.row(row) : nullptr;
    float* dh = a.dh.data ? a.dh.row(row) : nullptr;
    ForEachVector(columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      const V pulled = hn::Mul(hn::Sub(v.load(h + i), v.load(a.bias + i)), pull);
      if (db) v.store(pulled, db + i, true);
      if (!dh) return;
      V value = hn::MulSub(v.load(dy + i), factor, pulled);
      if (residual) value = hn::Add(value, v.load(residual + i));
      v.store(value, dh + i, a.dh.accumulate);
    });
  });
}

// The row that is normalised: x, or x silu(z).
template <bool kGateFirst, class Vector>
HWY_INLINE V NormInput(Vector v, const float* x, const float* z) {
  const V value = v.load(x);
  if (!kGateFirst) return value;
  const V gate = v.load(z);
  return hn::Mul(value, hn::Mul(gate, Sigmoid(FloatTag(), gate)));
}

template <bool kGateFirst>
void GatedNormRows(const GatedNorm& a, Matrix y, float* inverse_rms) {
  const float per_column = 1.0f / static_cast<float>(a.group);
  const int64_t groups = a.extent.columns / a.group;
  ForEachRow(a.extent, [&](int64_t row) {
    const FloatTag d;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = group * a.group;
      const float *x = a.x.row(row) + first, *z = a.z.row(row) + first;
      const float* weight = a.weight + (a.weight_per_group ? 0 : first);
      float* to = y.row(row) + first;
      V squares = hn::Zero(d);
      ForEachVector(a.group, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const V value = NormInput<kGateFirst>(v, x + i, z + i);
        if (kGateFirst) v.store(value, to + i);  // to be scaled below
        squares = hn::MulAdd(value, value, squares);
      });
      const float inverse = 1.0f / std::sqrt(Total(squares) * per_column + a.epsilon);
      if (inverse_rms) inverse_rms[row * groups + group] = inverse;
      const V factor = hn::Set(d, inverse);
      ForEachVector(a.group, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        V value = hn::Mul(hn::Mul(v.load((kGateFirst ? to : x) + i), factor), v.load(weight + i));
        if (!kGateFirst) {
          const V gate = v.load(z + i);
          value = hn::Mul(value, hn::Mul(gate, Sigmoid(d, gate)));
        }
        v.store(value, to + i);
      });
    }
  });
}

// With u the normalised input, n = u r, s = silu(z) and s' its slope:
//   gate first (u = x s):  g = dy w,    du = r (g - n mean(g n)), dx = du s, dz = du x s'
//   norm first (u = x):    g = dy w s,  dx = r (g - n mean(g n)), dz = dy w n s'
// and dw = sum over rows of dy n (gate first) or dy n s.
template <bool kGateFirst>
void GatedNormRowsBackward(const GatedNorm& a, const float* inverse_rms, ConstMatrix dy, Matrix dx,
                           Matrix dz, GradVector dweight) {
  const float per_column = 1.0f / static_cast<float>(a.group);
  const int64_t groups = a.extent.columns / a.group;
  const int64_t weights = a.weight_per_group ? a.group : a.extent.columns;
  const auto row_gradients = [&](int64_t row, float* dw_row, float*) {
    const FloatTag d;
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = group * a.group;
      const int64_t first_weight = a.weight_per_group ? 0 : first;
      const float *x = a.x.row(row) + first, *z = a.z.row(row) + first;
      const float *weight = a.weight + first_weight, *dy_group = dy.row(row) + first;
      float* dw = dw_row ? dw_row + first_weight : nullptr;
      const V factor = hn::Set(d, inverse_rms[row * groups + group]);
      V product = hn::Zero(d);
      ForEachVector(a.group, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const V gate = v.load(z + i), value = v.load(x + i);
        const V silu = hn::Mul(gate, Sigmoid(d, gate));
        const V n = hn::Mul(kGateFirst ? hn::Mul(value, silu) : value, factor);
        V gradient = v.load(dy_group + i);
        if (!kGateFirst) gradient = hn::Mul(gradient, silu);
        product = hn::MulAdd(hn::Mul(gradient, v.load(weight + i)), n, product);
        if (dw) v.store(hn::MulAdd(gradient, n, v.load(dw + i)), dw + i);
      });
      if (!dx.data && !dz.data) continue;
      const V mean_gn = hn::Set(d, Total(product) * per_column);
      float* dx_group = dx.data ? dx.row(row) + first : nullptr;
      float* dz_group = dz.data ? dz.row(row) + first : nullptr;
      ForEachVector(a.group, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const V gate = v.load(z + i), value = v.load(x + i);
        const V sigma = Sigmoid(d, gate);
        const V silu = hn::Mul(gate, sigma);
        const V slope = hn::MulAdd(silu, hn::Sub(hn::Set(d, 1.0f), sigma), sigma);
        const V n = hn::Mul(kGateFirst ? hn::Mul(value, silu) : value, factor);
        const V dy_weight = hn::Mul(v.load(dy_group + i), v.load(weight + i));
        const V g = kGateFirst ? dy_weight : hn::Mul(dy_weight, silu);
        const V du = hn::Mul(factor, hn::NegMulAdd(n, mean_gn, g));
        if (dx_group) {
          v.store(kGateFirst ? hn::Mul(du, silu) : du, dx_group + i, dx.accumulate);
        }
        if (dz_group) {
          const V outer = kGateFirst ? hn::Mul(du, value) : hn::Mul(dy_weight, n);
          v.store(hn::Mul(outer, slope), dz_group + i, dz.accumulate);
        }
      });
    }
  };
  SumOverRows(a.extent, weights, dweight, {}, row_gradients);
}

void GatedNormForward(const GatedNorm& a, Matrix y, float* inverse_rms) {
  a.gate_first ? GatedNormRows<true>(a, y, inverse_rms) : GatedNormRows<false>(a, y, inverse_rms);
}

void GatedNormGradient(const GatedNorm& a, const float* inverse_rms, ConstMatrix dy, Matrix dx,
                       Matrix dz, GradVector dweight) {
  a.gate_first ? GatedNormRowsBackward<true>(a, inverse_rms, dy, dx, dz, dweight)
               : GatedNormRowsBackward<false>(a, inverse_rms, dy, dx, dz, dweight);
}

HWY_INLINE float InverseLength(const float* x, int64_t count, float epsilon) {
  V squares = hn::Zero(FloatTag());
  ForEachVector(count, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
    const V value = v.load(x + i);
    squares = hn::MulAdd(value, value, squares);
  });
  return 1.0f / std::sqrt(Total(squares) + epsilon);
}

void L2Normalize(Extent extent, int64_t group, float epsilon, ConstMatrix x, Matrix y) {
  ForEachRow(extent, [&](int64_t row) {
    for (int64_t first = 0; first < extent.columns; first += group) {
      const float* from = x.row(row) + first;
      float* to = y.row(row) + first;
      const V factor = hn::Set(FloatTag(), InverseLength(from, group, epsilon));
      ForEachVector(group, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        v.store(hn::Mul(v.load(from + i), factor), to + i);
      });
    }
  });
}

// dx = r (dy - n sum(dy n)) with r the inverse length, found again, and n = x r.
void L2NormalizeBackward(Extent extent, int64_t group, float epsilon, ConstMatrix x, ConstMatrix dy,
                         Matrix dx) {
  ForEachRow(extent, [&](int64_t row) {
    for (int64_t first = 0; first < extent.columns; first += group) {
      const float *from = x.row(row) + first, *gradient = dy.row(row) + first;
      float* to = dx.row(row) + first;
      const float inverse = InverseLength(from, group, epsilon);
      const float product = DotProduct(from, gradient, group) * inverse;
      const V factor = hn::Set(FloatTag(), inverse);
      const V along = hn::Set(FloatTag(), product * inverse);
      ForEachVector(group, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const V across = hn::NegMulAdd(v.load(from + i), along, v.load(gradient + i));
        v.store(hn::Mul(factor, across), to + i, dx.accumulate);
      });
    }
  });
}

void GroupMoments(Extent extent, int64_t group, ConstMatrix x, Matrix mean, Matrix variance) {
  const float per_column = 1.0f / static_cast<float>(group);
  ForEachRow(extent, [&](int64_t row) {
    const FloatTag d;
    for (int64_t g = 0; g < extent.columns / group; ++g) {
      const float* from = x.row(row) + g * group;
      V sum = hn::Zero(d), squares = hn::Zero(d);
      ForEachVector(group, [&](auto v, int64_t i)
                               PRONGHORN_VECTOR_LAMBDA { sum = hn::Add(sum, v.load(from + i)); });
      const float middle = Total(sum) * per_column;
      const V center = hn::Set(d, middle);
      ForEachVector(group, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const V value = v.zero_rest(hn::Sub(v.load(from + i), center));
        squares = hn::MulAdd(value, value, squares);
      });
      mean.row(row)[g] = middle;
      variance.row(row)[g] = Total(squares) * per_column;
    }
  });
}

// dx = (d_mean + 2 d_variance (x - mean)) / group
void GroupMomentsBackward(Extent extent, int64_t group, ConstMatrix x, ConstMatrix mean,
                          ConstMatrix d_mean, ConstMatrix d_variance, Matrix dx) {
  const float per_column = 1.0f / static_cast<float>(group);
  ForEachRow(extent, [&](int64_t row) {
    const FloatTag d;
    for (int64_t g = 0; g < extent.columns / group; ++g) {
      const float* from = x.row(row) + g * group;
      float* to = dx.row(row) + g * group;
      const V center = hn::Set(d, mean.row(row)[g]);
      const V same = hn::Set(d, d_mean.data ? per_column * d_mean.row(row)[g] : 0.0f);
      const V along = hn::Set(d, d_variance.data ? 2 * per_column * d_variance.row(row)[g] : 0.0f);
      ForEachVector(group, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const V value = hn::Sub(v.load(from + i), center);
        v.store(hn::MulAdd(along, value, same), to + i, dx.accumulate);
      });
    }
  });
}

HWY_INLINE float InverseDeviation(const GroupNorm& a, int64_t row, int64_t g) {
  return 1.0f / std::sqrt(a.variance.row(row)[g] + a.epsilon);
}

void GroupNormForward(const GroupNorm& a, Matrix y) {
  ForEachRow(a.extent, [&](int64_t row) {
    const FloatTag d;
    for (int64_t g = 0; g < a.extent.columns / a.group; ++g) {
      const int64_t first = g * a.group;
      const float *from = a.x.row(row) + first, *weight = a.weight + first, *bias = a.bias + first;
      float* to = y.row(row) + first;
      const V center = hn::Set(d, a.mean.row(row)[g]);
      const V factor = hn::Set(d, InverseDeviation(a, row, g));
      ForEachVector(a.group, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const V n = hn::Mul(hn::Sub(v.load(from + i), center), factor);
        v.store(hn::MulAdd(n, v.load(weight + i), v.load(bias + i)), to + i);
      });
    }
  });
}

// With r the inverse deviation, n = (x - mean) r and e = dy weight:
//   dx = r e,  dmean = -r sum(e),  dvariance = -r^2 / 2 sum(e n),  dweight = dy n,  dbias = dy
void GroupNormBackward(const GroupNorm& a, ConstMatrix dy, const GroupNormGradients& to) {
  const auto row_gradients = [&](int64_t row, float* dw_row, float* db_row) {
    const FloatTag d;
    for (int64_t g = 0; g < a.extent.columns / a.group; ++g) {
      const int64_t first = g * a.group;
      const float *from = a.x.row(row) + first, *weight = a.weight + first;
      const float* gradient = dy.row(row) + first;
      float* dx = to.x.data ? to.x.row(row) + first : nullptr;
      float* dw = dw_row ? dw_row + first : nullptr;
      float* db = db_row ? db_row + first : nullptr;
      const float inverse = InverseDeviation(a, row, g);
      const V center = hn::Set(d, a.mean.row(row)[g]), factor = hn::Set(d, inverse);
      V sum = hn::Zero(d), product = hn::Zero(d);
      ForEachVector(a.group, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const V n = hn::Mul(hn::Sub(v.load(from + i), center), factor);
        const V own = v.load(gradient + i);
        const V e = hn::Mul(own, v.load(weight + i));  // zero after the last column
        sum = hn::Add(sum, e);
        product = hn::MulAdd(e, n, product);
        if (dx) v.store(hn::Mul(e, factor), dx + i, to.x.accumulate);
        if (dw) v.store(hn::Mul(own, n), dw + i, true);
        if (db) v.store(own, db + i, true);
      });
      if (to.mean.data) {
        float& target = to.mean.row(row)[g];
        target = -inverse * Total(sum) + (to.mean.accumulate ? target : 0.0f);
      }
      if (to.variance.data) {
        float& target = to.variance.row(row)[g];
        target =
            -0.5f * inverse * inverse * Total(product) + (to.variance.accumulate ? target : 0.0f);
      }
    }
  };
  SumOverRows(a.extent, a.extent.columns, to.weight, to.bias, row_gradients);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(Norm);
HWY_EXPORT(NormGradient);
HWY_EXPORT(BiasNormRows);
HWY_EXPORT(BiasNormRowsBackward);
HWY_EXPORT(GatedNormForward);
HWY_EXPORT(GatedNormGradient);
HWY_EXPORT(L2Normalize);
HWY_EXPORT(L2NormalizeBackward);
HWY_EXPORT(GroupMoments);
HWY_EXPORT(GroupMomentsBackward);
HWY_EXPORT(GroupNormForward);
HWY_EXPORT(GroupNormBackward);

void CpuPointwiseKernels::norm(const NormForward& arguments) {
  HWY_DYNAMIC_DISPATCH(Norm)(arguments);
}

void CpuPointwiseKernels::norm_backward(const NormBackward& arguments) {
  HWY_DYNAMIC_DISPATCH(NormGradient)(arguments);
}

void CpuPointwiseKernels::bias_norm(const BiasNormForward& arguments) {
  HWY_DYNAMIC_DISPATCH(BiasNormRows)(arguments);
}

void CpuPointwiseKernels::bias_norm_backward(const BiasNormBackward& arguments) {
  HWY_DYNAMIC_DISPATCH(BiasNormRowsBackward)(arguments);
}

void CpuPointwiseKernels::gated_norm(const GatedNorm& arguments, Matrix y, float* inverse_rms) {
  HWY_DYNAMIC_DISPATCH(GatedNormForward)(arguments, y, inverse_rms);
}

void CpuPointwiseKernels::gated_norm_backward(const GatedNorm& arguments, const float* inverse_rms,
                                              ConstMatrix dy, Matrix dx, Matrix dz,
                                              GradVector dweight) {
  HWY_DYNAMIC_DISPATCH(GatedNormGradient)(arguments, inverse_rms, dy, dx, dz, dweight);
}

void CpuPointwiseKernels::l2_normalize(Extent extent, int64_t group, float epsilon, ConstMatrix x,
                                       Matrix y) {
  HWY_DYNAMIC_DISPATCH(L2Normalize)(extent, group, epsilon, x, y);
}

void CpuPointwiseKernels::l2_normalize_backward(Extent extent, int64_t group, float epsilon,
                                                ConstMatrix x, ConstMatrix dy, Matrix dx) {
  HWY_DYNAMIC_DISPATCH(L2NormalizeBackward)(extent, group, epsilon, x, dy, dx);
}

void CpuPointwiseKernels::group_moments(Extent extent, int64_t group, ConstMatrix x, Matrix mean,
                                        Matrix variance) {
  HWY_DYNAMIC_DISPATCH(GroupMoments)(extent, group, x, mean, variance);
}

void CpuPointwiseKernels::group_moments_backward(Extent extent, int64_t group, ConstMatrix x,
                                                 ConstMatrix mean, ConstMatrix d_mean,
                                                 ConstMatrix d_variance, Matrix dx) {
  HWY_DYNAMIC_DISPATCH(GroupMomentsBackward)(extent, group, x, mean, d_mean, d_variance, dx);
}

void CpuPointwiseKernels::group_norm(const GroupNorm& arguments, Matrix y) {
  HWY_DYNAMIC_DISPATCH(GroupNormForward)(arguments, y);
}

void CpuPointwiseKernels::group_norm_backward(const GroupNorm& arguments, ConstMatrix dy,
                                              const GroupNormGradients& to) {
  HWY_DYNAMIC_DISPATCH(GroupNormBackward)(arguments, dy, to);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
