#include "backend/rwkv.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/rwkv.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target.
#include <hwy/highway.h>

#include <cmath>

#include "backend/cpu/row_sums-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

using V = FloatVector;

constexpr float kDecayScale = 0.60653066f;  // e^(-1/2)
constexpr float kLeastLength = 1e-12f;      // of a key that is divided by its length

void ShiftRows(const TokenShift& a, std::span<const Matrix> y) {
  const int64_t columns = a.extent.columns;
  const auto count = static_cast<int64_t>(a.mixes.size());
  ForEachRow({a.extent.rows, columns * count}, [&](int64_t row) {
    const float *x = a.x.row(row), *before = a.before[row];
    ForEachVector(columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      const V own = v.load(x + i);
      const V last = before != nullptr ? v.load(before + i) : hn::Zero(FloatTag());
      const V difference = hn::Sub(last, own);
      for (size_t s = 0; s < a.mixes.size(); ++s) {
        v.store(hn::MulAdd(difference, v.load(a.mixes[s] + i), own), y[s].row(row) + i);
      }
    });
  });
}

void ShiftRowsBackward(const TokenShift& a, std::span<const ConstMatrix> dy, const int32_t* after,
                       const Matrix& dx, std::span<const GradVector> dmixes) {
  const int64_t columns = a.extent.columns;
  SumRowsInto(a.extent, dmixes, [&](int64_t row, float* sums) {
    const float *x = a.x.row(row), *before = a.before[row];
    float* to = dx.data != nullptr ? dx.row(row) : nullptr;
    const int64_t next = after[row];
    ForEachVector(columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      const V last = before != nullptr ? v.load(before + i) : hn::Zero(FloatTag());
      const V difference = hn::Sub(last, v.load(x + i));
      V total = hn::Zero(FloatTag());
      for (size_t s = 0; s < a.mixes.size(); ++s) {
        if (dy[s].data == nullptr) continue;
        const V mix = v.load(a.mixes[s] + i), gradient = v.load(dy[s].row(row) + i);
        if (sums != nullptr) {
          AddTo(v, hn::Mul(gradient, difference), sums + static_cast<int64_t>(s) * columns + i);
        }
        total = hn::Add(total, hn::NegMulAdd(gradient, mix, gradient));
        if (next >= 0) total = hn::MulAdd(v.load(dy[s].row(next) + i), mix, total);
      }
      if (to != nullptr) v.store(total, to + i, dx.accumulate);
    });
  });
}

// 1 / |k k_k| of a head.
HWY_INLINE float InverseLength(const float* k, const float* k_k, int64_t count) {
  V squares = hn::Zero(FloatTag());
  ForEachVector(count, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
    const V value = hn::Mul(v.load(k + i), v.load(k_k + i));
    squares = hn::MulAdd(value, value, squares);
  });
  return 1.0f / std::max(std::sqrt(Total(squares)), kLeastLength);
}

void Keys(const Rwkv7Keys& a, const Rwkv7KeysResult& to) {
  ForEachRow({a.extent.rows, 4 * a.extent.columns}, [&](int64_t row) {
    const FloatTag d;
    const V one = hn::Set(d, 1.0f), scale = hn::Set(d, -kDecayScale);
    for (int64_t first = 0; first < a.extent.columns; first += a.head_dim) {
      const float *decay = a.decay.row(row) + first, *rate = a.rate.row(row) + first;
      const float *k = a.k.row(row) + first, *k_k = a.k_k + first, *k_a = a.k_a + first;
      const V inverse = hn::Set(d, InverseLength(k, k_k, a.head_dim));
      ForEachVector(a.head_dim, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const V s = Sigmoid(d, v.load(rate + i)), key = v.load(k + i);
        const V unit = hn::Mul(hn::Mul(key, v.load(k_k + i)), inverse);
        const V factor = hn::MulAdd(hn::Sub(s, one), v.load(k_a + i), one);
        const int64_t at = first + i;
        v.store(hn::Mul(scale, Sigmoid(d, v.load(decay + i))), to.log_decay.row(row) + at);
        v.store(hn::Mul(key, factor), to.key.row(row) + at);
        v.store(hn::Neg(unit), to.remove.row(row) + at);
        v.store(hn::Mul(unit, s), to.replace.row(row) + at);
      });
    }
  });
}

// A vector of a matrix that may be absent.
template <class Vector>
HWY_INLINE V LoadOr0(Vector v, const ConstMatrix& from, int64_t row, int64_t column) {
  return from.data != nullptr ? v.load(from.row(row) + column) : hn::Zero(FloatTag());
}

// With u = k k_k, n = u / |u| and s the rate: dn = s dreplace - dremove, du = (dn - n (n . dn)) /
// |u|, ds = n dreplace + k k_a dkey.
void KeysBackward(const Rwkv7Keys& a, const Rwkv7KeysResultGradients& from,
                  const Rwkv7KeysGradients& to) {
  const GradVector targets[] = {to.k_k, to.k_a};
  const int64_t columns = a.extent.columns;
  SumRowsInto(a.extent, targets, [&](int64_t row, float* sums) {
    const FloatTag d;
    const V one = hn::Set(d, 1.0f), scale = hn::Set(d, -kDecayScale);
    for (int64_t first = 0; first < columns; first += a.head_dim) {
      const float *decay = a.decay.row(row) + first, *rate = a.rate.row(row) + first;
      const float *k = a.k.row(row) + first, *k_k = a.k_k + first, *k_a = a.k_a + first;
      const V inverse = hn::Set(d, InverseLength(k, k_k, a.head_dim));
      const auto unit_of = [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        return hn::Mul(hn::Mul(v.load(k + i), v.load(k_k + i)), inverse);
      };
      const auto unit_gradient = [&](auto v, V s, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        return hn::MulSub(s, LoadOr0(v, from.replace, row, first + i),
                          LoadOr0(v, from.remove, row, first + i));
      };
      V product = hn::Zero(d);
      ForEachVector(a.head_dim, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const V s = Sigmoid(d, v.load(rate + i));
        product = hn::MulAdd(unit_of(v, i), unit_gradient(v, s, i), product);
      });
      const V along = hn::Set(d, Total(product));
      ForEachVector(a.head_dim, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const int64_t at = first + i;
        const V s = Sigmoid(d, v.load(rate + i)), key = v.load(k + i), unit = unit_of(v, i);
        const V k_a_own = v.load(k_a + i), less = hn::Sub(s, one);
        const V dkey = LoadOr0(v, from.key, row, at);
        const V du = hn::Mul(inverse, hn::NegMulAdd(unit, along, unit_gradient(v, s, i)));
        const V ds = hn::MulAdd(unit, LoadOr0(v, from.replace, row, at),
                                hn::Mul(hn::Mul(key, k_a_own), dkey));
        const V w = Sigmoid(d, v.load(decay + i));
        const V dw = hn::Mul(scale, LoadOr0(v, from.log_decay, row, at));
        StoreIfWanted(v, hn::Mul(dw, hn::NegMulAdd(w, w, w)), to.decay, row, at);
        StoreIfWanted(v, hn::Mul(ds, hn::NegMulAdd(s, s, s)), to.rate, row, at);
        const V through_key = hn::Mul(dkey, hn::MulAdd(less, k_a_own, one));
        StoreIfWanted(v, hn::MulAdd(du, v.load(k_k + i), through_key), to.k, row, at);
        if (sums == nullptr) return;
        AddTo(v, hn::Mul(du, key), sums + at);
        AddTo(v, hn::Mul(hn::Mul(dkey, key), less), sums + columns + at);
      });
    }
  });
}

// The sum of r k r_k over a head; 0 without a bonus.
HWY_INLINE float BonusOfHead(const Rwkv7Output& a, int64_t row, int64_t first) {
  if (a.r_k == nullptr) return 0;
  const float *r = a.r.row(row) + first, *k = a.k.row(row) + first;
  V bonus = hn::Zero(FloatTag());
  ForEachVector(a.head_dim, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
    bonus = hn::MulAdd(hn::Mul(v.load(r + i), v.load(k + i)), v.load(a.r_k + first + i), bonus);
  });
  return Total(bonus);
}

// Mean and inverse deviation of a head's x, and its sum of r k r_k.
struct HeadSums {
  float mean, inverse, bonus;
};
HWY_INLINE HeadSums SumsOfHead(const Rwkv7Output& a, int64_t row, int64_t first) {
  const float* x = a.x.row(row) + first;
  const float per_column = 1.0f / static_cast<float>(a.head_dim);
  V sum = hn::Zero(FloatTag()), squares = sum;
  ForEachVector(a.head_dim, [&](auto v, int64_t i)
                                PRONGHORN_VECTOR_LAMBDA { sum = hn::Add(sum, v.load(x + i)); });
  const float mean = Total(sum) * per_column;
  const V center = hn::Set(FloatTag(), mean);
  ForEachVector(a.head_dim, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
    const V value = v.zero_rest(hn::Sub(v.load(x + i), center));
    squares = hn::MulAdd(value, value, squares);
  });
  return {mean, 1.0f / std::sqrt(Total(squares) * per_column + a.epsilon),
          BonusOfHead(a, row, first)};
}

void Output(const Rwkv7Output& a, const Matrix& y) {
  ForEachRow(a.extent, [&](int64_t row) {
    const FloatTag d;
    for (int64_t first = 0; first < a.extent.columns; first += a.head_dim) {
      const HeadSums head = SumsOfHead(a, row, first);
      const V mean = hn::Set(d, head.mean), inverse = hn::Set(d, head.inverse);
      const V bonus = hn::Set(d, head.bonus);
      ForEachVector(a.head_dim, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const int64_t at = first + i;
        const V n = hn::Mul(hn::Sub(v.load(a.x.row(row) + at), mean), inverse);
        V value = hn::MulAdd(n, v.load(a.weight + at), v.load(a.bias + at));
        if (a.r_k != nullptr) value = hn::MulAdd(bonus, v.load(a.v.row(row) + at), value);
        v.store(hn::Mul(value, v.load(a.gate.row(row) + at)), y.row(row) + at);
      });
    }
  });
}

// With e = dy gate and g = e weight: dx = (g - mean(g) - n mean(g n)) / deviation, and the bonus'
// gradient is e . v.
void OutputBackward(const Rwkv7Output& a, ConstMatrix dy, const Rwkv7OutputGradients& to) {
  const GradVector targets[] = {to.weight, to.bias, to.r_k};
  const int64_t columns = a.extent.columns;
  const float per_column = 1.0f / static_cast<float>(a.head_dim);
  SumRowsInto(a.extent, targets, [&](int64_t row, float* sums) {
    const FloatTag d;
    for (int64_t first = 0; first < columns; first += a.head_dim) {
      const HeadSums head = SumsOfHead(a, row, first);
      const V mean = hn::Set(d, head.mean), inverse = hn::Set(d, head.inverse);
      const V bonus = hn::Set(d, head.bonus);
      V sum = hn::Zero(d), product = sum, d_bonus = sum;
      ForEachVector(a.head_dim, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const int64_t at = first + i;
        const V n = hn::Mul(hn::Sub(v.load(a.x.row(row) + at), mean), inverse);
        const V e = hn::Mul(v.load(dy.row(row) + at), v.load(a.gate.row(row) + at));
        const V g = hn::Mul(e, v.load(a.weight + at));
        sum = hn::Add(sum, g);
        product = hn::MulAdd(g, n, product);
        if (a.r_k != nullptr) d_bonus = hn::MulAdd(e, v.load(a.v.row(row) + at), d_bonus);
      });
      const V mean_g = hn::Set(d, Total(sum) * per_column);
      const V mean_gn = hn::Set(d, Total(product) * per_column);
      const V bonus_gradient = hn::Set(d, Total(d_bonus));
      ForEachVector(a.head_dim, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const int64_t at = first + i;
        const V n = hn::Mul(hn::Sub(v.load(a.x.row(row) + at), mean), inverse);
        const V given = v.load(dy.row(row) + at);
        const V e = hn::Mul(given, v.load(a.gate.row(row) + at));
        const V weight = v.load(a.weight + at);
        const V g = hn::Sub(hn::Mul(e, weight), mean_g);
        V ungated = hn::MulAdd(n, weight, v.load(a.bias + at));
        if (a.r_k != nullptr) ungated = hn::MulAdd(bonus, v.load(a.v.row(row) + at), ungated);
        StoreIfWanted(v, hn::Mul(inverse, hn::NegMulAdd(n, mean_gn, g)), to.x, row, at);
        if (a.r_k != nullptr) {
          const V r = v.load(a.r.row(row) + at), k = v.load(a.k.row(row) + at);
          const V through = hn::Mul(bonus_gradient, v.load(a.r_k + at));
          StoreIfWanted(v, hn::Mul(through, k), to.r, row, at);
          StoreIfWanted(v, hn::Mul(through, r), to.k, row, at);
          StoreIfWanted(v, hn::Mul(e, bonus), to.v, row, at);
          if (sums != nullptr) {
            AddTo(v, hn::Mul(bonus_gradient, hn::Mul(r, k)), sums + 2 * columns + at);
          }
        }
        StoreIfWanted(v, hn::Mul(given, ungated), to.gate, row, at);
        if (sums == nullptr) return;
        AddTo(v, hn::Mul(e, n), sums + at);
        AddTo(v, e, sums + columns + at);
      });
    }
  });
}

void Interpolate(Extent extent, ConstMatrix from, ConstMatrix to, ConstMatrix share, Matrix y) {
  ForEachRow(extent, [&](int64_t row) {
    ForEachVector(extent.columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      const V start = v.load(from.row(row) + i), end = v.load(to.row(row) + i);
      const V s = Sigmoid(FloatTag(), v.load(share.row(row) + i));
      v.store(hn::MulAdd(hn::Sub(end, start), s, start), y.row(row) + i);
    });
  });
}

void InterpolateBackward(Extent extent, ConstMatrix from, ConstMatrix to, ConstMatrix share,
                         ConstMatrix dy, Matrix dfrom, Matrix dto, Matrix dshare) {
  ForEachRow(extent, [&](int64_t row) {
    ForEachVector(extent.columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      const V gradient = v.load(dy.row(row) + i);
      const V difference = hn::Sub(v.load(to.row(row) + i), v.load(from.row(row) + i));
      const V s = Sigmoid(FloatTag(), v.load(share.row(row) + i));
      const V slope = hn::NegMulAdd(s, s, s);
      StoreIfWanted(v, hn::NegMulAdd(gradient, s, gradient), dfrom, row, i);
      StoreIfWanted(v, hn::Mul(gradient, s), dto, row, i);
      StoreIfWanted(v, hn::Mul(gradient, hn::Mul(difference, slope)), dshare, row, i);
    });
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {
namespace {

HWY_EXPORT(ShiftRows);
HWY_EXPORT(ShiftRowsBackward);
HWY_EXPORT(Keys);
HWY_EXPORT(KeysBackward);
HWY_EXPORT(Output);
HWY_EXPORT(OutputBackward);
HWY_EXPORT(Interpolate);
HWY_EXPORT(InterpolateBackward);

class CpuRwkvKernels final : public RwkvKernels {
 public:
  void token_shift(const TokenShift& shift, std::span<const Matrix> y) override {
    HWY_DYNAMIC_DISPATCH(ShiftRows)(shift, y);
  }
  void token_shift_backward(const TokenShift& shift, std::span<const ConstMatrix> dy,
                            const int32_t* after, const Matrix& dx,
                            std::span<const GradVector> dmixes) override {
    HWY_DYNAMIC_DISPATCH(ShiftRowsBackward)(shift, dy, after, dx, dmixes);
  }
  void rwkv7_keys(const Rwkv7Keys& keys, const Rwkv7KeysResult& to) override {
    HWY_DYNAMIC_DISPATCH(Keys)(keys, to);
  }
  void rwkv7_keys_backward(const Rwkv7Keys& keys, const Rwkv7KeysResultGradients& from,
                           const Rwkv7KeysGradients& to) override {
    HWY_DYNAMIC_DISPATCH(KeysBackward)(keys, from, to);
  }
  void rwkv7_output(const Rwkv7Output& output, const Matrix& y) override {
    HWY_DYNAMIC_DISPATCH(Output)(output, y);
  }
  void rwkv7_output_backward(const Rwkv7Output& output, ConstMatrix dy,
                             const Rwkv7OutputGradients& to) override {
    HWY_DYNAMIC_DISPATCH(OutputBackward)(output, dy, to);
  }
  void interpolate(Extent extent, ConstMatrix from, ConstMatrix to, ConstMatrix share,
                   Matrix y) override {
    HWY_DYNAMIC_DISPATCH(Interpolate)(extent, from, to, share, y);
  }
  void interpolate_backward(Extent extent, ConstMatrix from, ConstMatrix to, ConstMatrix share,
                            ConstMatrix dy, Matrix dfrom, Matrix dto, Matrix dshare) override {
    HWY_DYNAMIC_DISPATCH(InterpolateBackward)(extent, from, to, share, dy, dfrom, dto, dshare);
  }
};

}  // namespace

std::unique_ptr<RwkvKernels> make_cpu_rwkv_kernels() { return std::make_unique<CpuRwkvKernels>(); }

}  // namespace pronghorn
#endif  // HWY_ONCE
