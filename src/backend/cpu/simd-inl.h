// SIMD helpers shared by the CPU kernels: functions of a vector, a small matrix product that keeps
// its tile of results in registers, and transposing. Included once for each
// instruction set by Highway's foreach_target mechanism, so there is no ordinary include guard.
#if defined(PRONGHORN_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_SIMD_INL_H_
#undef PRONGHORN_SIMD_INL_H_
#else
#define PRONGHORN_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using FloatTag = hn::ScalableTag<float>;
using FloatVector = hn::Vec<FloatTag>;

// The first `count` < Lanes(d) elements at `from`, zeros after them. Touches no others: Highway's
// MaskedLoad reads a whole vector on the targets that have no masked loads.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LoadPartial(D d, size_t count, const float* HWY_RESTRICT from) {
#if HWY_TARGET <= HWY_AVX2 && HWY_ARCH_X86
  return hn::MaskedLoad(hn::FirstN(d, count), d, from);
#else
  HWY_ALIGN float buffer[hn::MaxLanes(d)] = {};
  for (size_t i = 0; i < count; ++i) buffer[i] = from[i];
  return hn::Load(d, buffer);
#endif
}

// Stores the first `count` < Lanes(d) elements and touches no others.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void StorePartial(D d, size_t count, V value, float* HWY_RESTRICT to) {
#if HWY_TARGET <= HWY_AVX2 && HWY_ARCH_X86
  hn::BlendedStore(value, hn::FirstN(d, count), d, to);
#else
  HWY_ALIGN float buffer[hn::MaxLanes(d)];
  hn::Store(value, d, buffer);
  for (size_t i = 0; i < count; ++i) to[i] = buffer[i];
#endif
}

// The same for any count: a whole vector if there are as many elements.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LoadPart(D d, const float* from, int64_t count) {
  if (HWY_LIKELY(count >= static_cast<int64_t>(hn::Lanes(d)))) return hn::LoadU(d, from);
  return LoadPartial(d, static_cast<size_t>(count), from);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE void StorePart(D d, V value, float* to, int64_t count) {
  if (HWY_LIKELY(count >= static_cast<int64_t>(hn::Lanes(d)))) {
    hn::StoreU(value, d, to);
  } else {
    StorePartial(d, static_cast<size_t>(count), value, to);
  }
}

// e^x to about 2 units in the last place: 2^n times a polynomial on [-ln2/2, ln2/2]. Below -87.3
// the result is 0, above 88.37 it is clamped to the largest power that stays finite. NaN stays NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V clamped = hn::Min(hn::Max(x, hn::Set(d, -104.0f)), hn::Set(d, 88.37f));
  const V n = hn::Round(hn::Mul(clamped, hn::Set(d, 1.44269504088896341f)));
  // ln 2 in two parts (Cody and Waite), so that the reduced argument is exact.
  V r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), clamped);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  // Coefficients of expf in Cephes (S. L. Moshier): minimax on the reduced interval, relative error
  // below 3e-8.
  V p = hn::Set(d, 1.9875691500e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1f));
  p = hn::MulAdd(hn::Mul(p, r), r, hn::Add(r, hn::Set(d, 1.0f)));
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127)));
  const V result = hn::Mul(p, hn::BitCast(d, exponent));
  const V finite = hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.3f)), result);
  return hn::IfThenElse(hn::IsNaN(x), x, finite);  // Min and Max may drop a NaN
}

// 1 / (1 + e^-x)
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Sigmoid(D d, V x) {
  const V one = hn::Set(d, 1.0f);
  return hn::Div(one, hn::Add(one, Exp(d, hn::Neg(x))));
}

// ln x for normal positive x, to about 2 units in the last place.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Log(D d, V x) {
  const hn::RebindToSigned<D> di;
  // x = 2^e m with m in [sqrt(1/2), sqrt(2)).
  const auto bits = hn::BitCast(di, x);
  const auto shifted = hn::Sub(bits, hn::Set(di, 0x3f3504f3));
  const auto e = hn::ShiftRight<23>(shifted);
  const V m = hn::BitCast(d, hn::Sub(bits, hn::ShiftLeft<23>(e)));
  const V f = hn::Sub(m, hn::Set(d, 1.0f));
  // Coefficients of logf in Cephes: minimax for (ln(1+f) - f + f^2/2) / f^3.
  V p = hn::Set(d, 7.0376836292e-2f);
  p = hn::MulAdd(p, f, hn::Set(d, -1.1514610310e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.1676998740e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, -1.2420140846e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.4249322787e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, -1.6668057665e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 2.0000714765e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, -2.4999993993e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 3.3333331174e-1f));
  const V square = hn::Mul(f, f);
  const V n = hn::ConvertTo(d, e);
  V result = hn::Mul(hn::Mul(p, f), square);
  result = hn::MulAdd(n, hn::Set(d, -2.12194440e-4f), result);
  result = hn::NegMulAdd(hn::Set(d, 0.5f), square, result);
  return hn::MulAdd(n, hn::Set(d, 0.693359375f), hn::Add(f, result));
}

// ln(1 + e^x), which is x itself above 20 (as PyTorch's softplus).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Softplus(D d, V x) {
  const V one = hn::Set(d, 1.0f);
  const V small = hn::Min(x, hn::Set(d, 20.0f));
  const V t = Exp(d, small);
  // ln(1+t) = ln(u) t / (u - 1) with u = 1 + t rounded keeps precision for small t (Kahan).
  const V u = hn::Add(one, t);
  const V corrected = hn::Div(hn::Mul(Log(d, u), t), hn::Max(hn::Sub(u, one), hn::Set(d, 1e-30f)));
  const V value = hn::IfThenElse(hn::Eq(u, one), t, corrected);
  return hn::IfThenElse(hn::Le(x, hn::Set(d, 20.0f)), value, x);  // NaN stays NaN
}

// tanh x = 1 - 2 / (e^2x + 1)
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Tanh(D d, V x) {
  const V one = hn::Set(d, 1.0f), two = hn::Set(d, 2.0f);
  return hn::Sub(one, hn::Div(two, hn::Add(Exp(d, hn::Mul(two, x)), one)));
}

// Registers of a tile of results: rows x vectors. 24 accumulators on 32 registers, 12 on 16.
#if HWY_TARGET <= HWY_AVX3
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 6;
#endif
constexpr int kTileVectors = 2;

// One register tile: c[R x (V vectors)] (+)= a[R x k] b[k x ...]. `a` is read as a[i * a_stride +
// p], or transposed as a[p * a_stride + i]. With kPartial the last vector has last_lanes <
// Lanes(d).
template <int R, int V, bool kTransposed, bool kPartial, class D>
HWY_INLINE void MatmulTile(D d, int64_t k, const float* HWY_RESTRICT a, int64_t a_stride,
                           const float* HWY_RESTRICT b, int64_t b_row, float* HWY_RESTRICT c,
                           int64_t c_row, bool accumulate, size_t last_lanes) {
  using Vec = hn::Vec<D>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto load = [&](int j, const float* from) HWY_ATTR {
    return kPartial && j == V - 1 ? LoadPartial(d, last_lanes, from) : hn::LoadU(d, from);
  };
  Vec acc[R][V];
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < V; ++j) acc[i][j] = hn::Zero(d);
  }
  for (int64_t p = 0; p < k; ++p) {
    Vec right[V];
    for (int j = 0; j < V; ++j) right[j] = load(j, b + j * lanes);
    for (int i = 0; i < R; ++i) {
      const Vec left = hn::Set(d, a[kTransposed ? i : i * a_stride]);
      for (int j = 0; j < V; ++j) acc[i][j] = hn::MulAdd(left, right[j], acc[i][j]);
    }
    a += kTransposed ? a_stride : 1;
    b += b_row;
  }
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < V; ++j) {
      float* to = c + i * c_row + j * lanes;
      Vec value = acc[i][j];
      if (accumulate) value = hn::Add(value, load(j, to));
      if (kPartial && j == V - 1) {
        StorePartial(d, last_lanes, value, to);
      } else {
        hn::StoreU(value, d, to);
      }
    }
  }
}

template <int R, bool kTransposed, class D>
HWY_INLINE void MatmulRows(D d, int64_t n, int64_t k, const float* a, int64_t a_stride,
                           const float* b, int64_t b_row, float* c, int64_t c_row,
                           bool accumulate) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t wide = kTileVectors * lanes;
  int64_t j = 0;
  for (; j + wide <= n; j += wide) {
    MatmulTile<R, kTileVectors, kTransposed, false>(d, k, a, a_stride, b + j, b_row, c + j, c_row,
                                                    accumulate, 0);
  }
  const int64_t rest = n - j;
  const auto last = static_cast<size_t>(rest % lanes);
  if (rest > lanes) {
    MatmulTile<R, 2, kTransposed, true>(d, k, a, a_stride, b + j, b_row, c + j, c_row, accumulate,
                                        last);
  } else if (rest == lanes) {
    MatmulTile<R, 1, kTransposed, false>(d, k, a, a_stride, b + j, b_row, c + j, c_row, accumulate,
                                         last);
  } else if (rest > 0) {
    MatmulTile<R, 1, kTransposed, true>(d, k, a, a_stride, b + j, b_row, c + j, c_row, accumulate,
                                        last);
  }
}

template <bool kTransposed>
HWY_INLINE void MatmulAllRows(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_stride,
                              const float* b, int64_t b_row, float* c, int64_t c_row,
                              bool accumulate) {
  const FloatTag d;
  const int64_t next = kTransposed ? 1 : a_stride;
  int64_t i = 0;
  for (; i + kTileRows <= m; i += kTileRows) {
    MatmulRows<kTileRows, kTransposed>(d, n, k, a + i * next, a_stride, b, b_row, c + i * c_row,
                                       c_row, accumulate);
  }
  for (; i + 4 <= m; i += 4) {
    MatmulRows<4, kTransposed>(d, n, k, a + i * next, a_stride, b, b_row, c + i * c_row, c_row,
                               accumulate);
  }
  for (; i < m; ++i) {
    MatmulRows<1, kTransposed>(d, n, k, a + i * next, a_stride, b, b_row, c + i * c_row, c_row,
                               accumulate);
  }
}

// c[m x n] (+)= a[m x k] b[k x n] in f32, single thread, for operands that fit the caches (tiles of
// attention and of chunked recurrences). a is read as a[i * a_row + p * a_column], where one of the
// two strides is 1; b and c have adjacent columns. Each element of c is one sum over p in
// increasing order whatever m and n are, so a row's result does not depend on the rows computed
// with it. Not inlined: kernels call it dozens of times, and each copy is hundreds of instructions.
inline HWY_NOINLINE void SmallMatmul(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_row,
                                     int64_t a_column, const float* b, int64_t b_row, float* c,
                                     int64_t c_row, bool accumulate) {
  if (a_column == 1) {
    MatmulAllRows<false>(m, n, k, a, a_row, b, b_row, c, c_row, accumulate);
  } else {
    MatmulAllRows<true>(m, n, k, a, a_column, b, b_row, c, c_row, accumulate);
  }
}

// to[j, i] = from[i, j]
inline HWY_NOINLINE void Transpose(int64_t rows, int64_t columns, const float* HWY_RESTRICT from,
                                   int64_t from_row, float* HWY_RESTRICT to, int64_t to_row) {
  int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<float, 4> d;
  for (; i + 4 <= rows; i += 4) {
    const float* source = from + i * from_row;
    int64_t j = 0;
    for (; j + 4 <= columns; j += 4) {
      const auto a = hn::LoadU(d, source + j), b = hn::LoadU(d, source + from_row + j);
      const auto c = hn::LoadU(d, source + 2 * from_row + j);
      const auto e = hn::LoadU(d, source + 3 * from_row + j);
      const auto ac = hn::InterleaveLower(d, a, c), be = hn::InterleaveLower(d, b, e);
      const auto ac_high = hn::InterleaveUpper(d, a, c), be_high = hn::InterleaveUpper(d, b, e);
      float* target = to + j * to_row + i;
      hn::StoreU(hn::InterleaveLower(d, ac, be), d, target);
      hn::StoreU(hn::InterleaveUpper(d, ac, be), d, target + to_row);
      hn::StoreU(hn::InterleaveLower(d, ac_high, be_high), d, target + 2 * to_row);
      hn::StoreU(hn::InterleaveUpper(d, ac_high, be_high), d, target + 3 * to_row);
    }
    for (; j < columns; ++j) {
      for (int64_t r = 0; r < 4; ++r) to[j * to_row + i + r] = source[r * from_row + j];
    }
  }
#endif
  for (; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) to[j * to_row + i] = from[i * from_row + j];
  }
}

#if HWY_TARGET != HWY_SCALAR && !HWY_HAVE_SCALABLE
// Stores the sum over a vector's blocks of four lanes.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void StoreSumOfBlocks(D d, V v, float* HWY_RESTRICT to) {
  if constexpr (hn::MaxLanes(d) > 4) {
    const hn::Half<D> half;
    StoreSumOfBlocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), to);
  } else {
    hn::StoreU(v, d, to);
  }
}

#endif

// to[i] = the sum of the lanes of the i-th of four vectors; its order does not depend on the
// others.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void SumFour(D d, V v0, V v1, V v2, V v3, float* HWY_RESTRICT to) {
#if HWY_TARGET == HWY_SCALAR || HWY_HAVE_SCALABLE
  to[0] = hn::GetLane(hn::SumOfLanes(d, v0));
  to[1] = hn::GetLane(hn::SumOfLanes(d, v1));
  to[2] = hn::GetLane(hn::SumOfLanes(d, v2));
  to[3] = hn::GetLane(hn::SumOfLanes(d, v3));
#else
  // Transposing by blocks, adding as soon as two lanes of a sum meet.
  const hn::RepartitionToWide<D> wide;
  const V v01 = hn::Add(hn::InterleaveLower(d, v0, v1), hn::InterleaveUpper(d, v0, v1));
  const V v23 = hn::Add(hn::InterleaveLower(d, v2, v3), hn::InterleaveUpper(d, v2, v3));
  const auto low = hn::InterleaveLower(wide, hn::BitCast(wide, v01), hn::BitCast(wide, v23));
  const auto high = hn::InterleaveUpper(wide, hn::BitCast(wide, v01), hn::BitCast(wide, v23));
  StoreSumOfBlocks(d, hn::Add(hn::BitCast(d, low), hn::BitCast(d, high)), to);
#endif
}

// to += factor from
HWY_INLINE void AddScaled(int64_t n, float factor, const float* HWY_RESTRICT from,
                          float* HWY_RESTRICT to) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto scale = hn::Set(d, factor);
  for (int64_t i = 0; i < n; i += lanes) {
    StorePart(d, hn::MulAdd(scale, LoadPart(d, from + i, n - i), LoadPart(d, to + i, n - i)),
              to + i, n - i);
  }
}

// The sum of x[i] y[i].
HWY_INLINE float DotProduct(const float* HWY_RESTRICT x, const float* HWY_RESTRICT y, int64_t n) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    sum = hn::MulAdd(hn::LoadU(d, x + i), hn::LoadU(d, y + i), sum);
  }
  if (i < n) {
    const auto rest = static_cast<size_t>(n - i);
    sum = hn::MulAdd(LoadPartial(d, rest, x + i), LoadPartial(d, rest, y + i), sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_SIMD_INL_H_
