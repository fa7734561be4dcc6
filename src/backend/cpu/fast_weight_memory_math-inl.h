// Functions of rows and of small matrices that fast-weight memories are made of.
#if defined(PRONGHORN_FAST_WEIGHT_MEMORY_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_FAST_WEIGHT_MEMORY_MATH_INL_H_
#undef PRONGHORN_FAST_WEIGHT_MEMORY_MATH_INL_H_
#else
#define PRONGHORN_FAST_WEIGHT_MEMORY_MATH_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/pointwise-inl.h"
#include "backend/cpu/simd-inl.h"
#include "backend/fast_weight_memory.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// Matrices of pairs of tokens of a mini-batch are [kTokens, kTokens], row t the later one.
constexpr int64_t kTokens = kMemoryMiniBatch;
constexpr int64_t kPairs = kTokens * kTokens;

inline void CopyRow(const float* from, int64_t count, float* to) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

inline void Scale(int64_t count, float factor, const float* HWY_RESTRICT from,
                  float* HWY_RESTRICT to) {
  for (int64_t c = 0; c < count; ++c) to[c] = factor * from[c];
}

inline void AddToRows(int64_t n, int64_t width, const float* addend, float* to) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < width; ++c) to[i * width + c] += addend[c];
  }
}

// ---- the activation ----

// gelu(x) = x (1 + t) / 2 with t = tanh(u), u = c (x + a x^3), and its derivatives
//   gelu'  = (1 + t) / 2 + x (1 - t^2) u' / 2
//   gelu'' = (1 - t^2) (u' + x (u'' - 2 t u'^2) / 2)
struct Gelu {
  explicit HWY_INLINE Gelu(FloatVector value) : x(value) {
    const FloatTag d;
    square = hn::Mul(x, x);
    const auto u =
        hn::Mul(hn::Mul(hn::Set(d, kC), x), hn::MulAdd(hn::Set(d, kA), square, hn::Set(d, 1.0f)));
    t = Tanh(d, u);
    half = hn::MulAdd(hn::Set(d, 0.5f), t, hn::Set(d, 0.5f));
  }
  HWY_INLINE FloatVector value() const { return hn::Mul(x, half); }
  HWY_INLINE FloatVector slope() const {
    const FloatTag d;
    return hn::MulAdd(hn::Mul(hn::Mul(hn::Set(d, 0.5f), x), rest()), inner_slope(), half);
  }
  HWY_INLINE FloatVector curve() const {
    const FloatTag d;
    const auto first = inner_slope();
    const auto second = hn::Mul(hn::Set(d, 6 * kC * kA), x);
    const auto bend = hn::NegMulAdd(hn::Mul(hn::Set(d, 2.0f), t), hn::Mul(first, first), second);
    return hn::Mul(rest(), hn::MulAdd(hn::Mul(hn::Set(d, 0.5f), x), bend, first));
  }

 private:
  static constexpr float kC = 0.7978845608f;  // sqrt(2 / pi)
  static constexpr float kA = 0.044715f;
  HWY_INLINE FloatVector rest() const { return hn::NegMulAdd(t, t, hn::Set(FloatTag(), 1.0f)); }
  HWY_INLINE FloatVector inner_slope() const {
    const FloatTag d;
    return hn::MulAdd(hn::Set(d, 3 * kC * kA), square, hn::Set(d, kC));
  }
  FloatVector x, square, t, half;
};

// value = gelu(x); slope and curve: its derivatives, or null.
inline void GeluRows(int64_t count, const float* x, float* value, float* slope, float* curve) {
  ForEachVector(count, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
    const Gelu gelu(v.load(x + i));
    v.store(gelu.value(), value + i);
    if (slope != nullptr) v.store(gelu.slope(), slope + i);
    if (curve != nullptr) v.store(gelu.curve(), curve + i);
  });
}

// ---- sums over a row ----

inline float Mean(int64_t n, const float* x) {
  auto sum = hn::Zero(FloatTag());
  ForEachVector(
      n, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA { sum = hn::Add(sum, v.load(x + i)); });
  return Total(sum) / static_cast<float>(n);
}

inline float MeanProduct(int64_t n, const float* x, const float* y) {
  return DotProduct(x, y, n) / static_cast<float>(n);
}

// to = (x - mean) / sqrt(variance + epsilon); returns 1 / sqrt(variance + epsilon).
inline float Normalize(int64_t n, float epsilon, const float* x, float* to) {
  const float mean = Mean(n, x);
  ForEachVector(n, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
    v.store(hn::Sub(v.load(x + i), hn::Set(FloatTag(), mean)), to + i);
  });
  const float inverse = 1 / std::sqrt(MeanProduct(n, to, to) + epsilon);
  ForEachVector(n, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
    v.store(hn::Mul(v.load(to + i), hn::Set(FloatTag(), inverse)), to + i);
  });
  return inverse;
}

// ---- products ----

// to[i, j] = x_i . y_j for i < n, j < count, in rows of kTokens; what follows `count` in a row up
// to a multiple of four is undefined. A sum's order does not depend on n and count.
inline void DotProducts(int64_t n, int64_t count, int64_t width, const float* HWY_RESTRICT x,
                        const float* HWY_RESTRICT y, float* HWY_RESTRICT to) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < n; ++i) {
    const float* left = x + i * width;
    for (int64_t j = 0; j < count; j += 4) {
      const float* right[4];
      for (int64_t c = 0; c < 4; ++c) right[c] = y + std::min(j + c, count - 1) * width;
      auto s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d), s3 = hn::Zero(d);
      int64_t p = 0;
      for (; p + lanes <= width; p += lanes) {
        const auto value = hn::LoadU(d, left + p);
        s0 = hn::MulAdd(value, hn::LoadU(d, right[0] + p), s0);
        s1 = hn::MulAdd(value, hn::LoadU(d, right[1] + p), s1);
        s2 = hn::MulAdd(value, hn::LoadU(d, right[2] + p), s2);
        s3 = hn::MulAdd(value, hn::LoadU(d, right[3] + p), s3);
      }
      if (p < width) {
        const auto rest = static_cast<size_t>(width - p);
        const auto value = LoadPartial(d, rest, left + p);
        s0 = hn::MulAdd(value, LoadPartial(d, rest, right[0] + p), s0);
        s1 = hn::MulAdd(value, LoadPartial(d, rest, right[1] + p), s1);
        s2 = hn::MulAdd(value, LoadPartial(d, rest, right[2] + p), s2);
        s3 = hn::MulAdd(value, LoadPartial(d, rest, right[3] + p), s3);
      }
      SumFour(d, s0, s1, s2, s3, to + i * kTokens + j);
    }
  }
}

// y (+)= W x for the n <= kTokens columns x of a transposed matrix: W [rows, columns], x [columns,
// kTokens], y [rows, kTokens]. Columns from n on are zeros.
inline void TimesColumns(int64_t rows, int64_t columns, const float* w, const float* x, float* y,
                         bool accumulate) {
  SmallMatmul(rows, kTokens, columns, w, columns, 1, x, kTokens, y, kTokens, accumulate);
}

// x_t [columns, kTokens] = the transpose of x [n, columns], with zeros after them.
inline void ToColumns(int64_t n, int64_t columns, const float* x, float* x_t) {
  if (n < kTokens) std::fill_n(x_t, columns * kTokens, 0.0f);
  Transpose(n, columns, x, columns, x_t, kTokens);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_FAST_WEIGHT_MEMORY_MATH_INL_H_
