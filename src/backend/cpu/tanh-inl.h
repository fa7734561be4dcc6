// The hyperbolic tangent on vectors. Included once for each instruction set, see simd-inl.h.
#if defined(PRONGHORN_TANH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PRONGHORN_TANH_INL_H_
#undef PRONGHORN_TANH_INL_H_
#else
#define PRONGHORN_TANH_INL_H_
#endif

#include <hwy/highway.h>

#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

// tanh x to about 2 units in the last place also near 0, where Tanh() of simd-inl.h cancels.
// Polynomial: (tanh x - x) / x^3 in x^2, interpolated at Chebyshev nodes (relative error 6e-10).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ExactTanh(D d, V x) {
  const V square = hn::Mul(x, x);
  V p = hn::Set(d, 2.2927447693e-3f);
  p = hn::MulAdd(p, square, hn::Set(d, -8.3439454672e-3f));
  p = hn::MulAdd(p, square, hn::Set(d, 2.1768918633e-2f));
  p = hn::MulAdd(p, square, hn::Set(d, -5.3959259574e-2f));
  p = hn::MulAdd(p, square, hn::Set(d, 1.3333303557e-1f));
  p = hn::MulAdd(p, square, hn::Set(d, -3.3333333172e-1f));
  const V small = hn::MulAdd(hn::Mul(p, square), x, x);
  return hn::IfThenElse(hn::Lt(hn::Abs(x), hn::Set(d, 0.625f)), small, Tanh(d, x));
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#endif  // PRONGHORN_TANH_INL_H_
