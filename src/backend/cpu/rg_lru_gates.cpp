// The gates of the RG-LRU, element by element.
#include "backend/cpu/diagonal_scan_tasks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/rg_lru_gates.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.
#include <hwy/highway.h>

#include "backend/cpu/pointwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

using V = FloatVector;

HWY_INLINE V Constant(float value) { return hn::Set(FloatTag(), value); }

// The c of arXiv 2402.19427, section 2.4.
constexpr float kDecayScale = 8;
// The gradient of the square root is at most 1 / kLeastSlope (the reference's choice): it has none
// where the decay is 1.
constexpr float kLeastSlope = 1e-3f;

// 1 - e^z for z <= 0, close to 0 as exact as elsewhere.
HWY_INLINE V OneMinusExp(V z) {
  const FloatTag d;
  const V one = Constant(1.0f), u = Exp(d, z), difference = hn::Sub(one, u);
  // (1 - u) z / ln u with u = e^z rounded (Kahan).
  const V logarithm = Log(d, hn::Max(u, Constant(0.5f)));
  const V corrected = hn::Div(hn::Mul(difference, z), hn::Min(logarithm, Constant(-1e-30f)));
  const V close = hn::IfThenElse(hn::Eq(u, one), hn::Neg(z), corrected);
  return hn::IfThenElse(hn::Gt(z, Constant(-0.5f)), close, difference);
}

// What both passes need of an element.
struct Gates {
  V recurrent, input;  // sigmoids
  V log_a, square;     // log a; 1 - a^2
  V multiplier;        // sqrt(1 - a^2), at position 0 that is 1
  V softplus;          // of the parameter
};

HWY_INLINE Gates GatesOf(V recurrent, V input, V parameter, bool begins) {
  const FloatTag d;
  Gates gates;
  gates.recurrent = Sigmoid(d, recurrent);
  gates.input = Sigmoid(d, input);
  gates.softplus = Softplus(d, parameter);
  gates.log_a = hn::Mul(hn::Mul(gates.recurrent, gates.softplus), Constant(-kDecayScale));
  gates.square = OneMinusExp(hn::Add(gates.log_a, gates.log_a));
  gates.multiplier = begins ? Constant(1.0f) : hn::Sqrt(gates.square);
  return gates;
}

void Forward(const RgLruGates& gates, const Matrix& log_a, const Matrix& x) {
  ForEachRow({gates.rows, gates.channels}, [&](int64_t row) {
    const float *u = gates.u.row(row), *recurrent = gates.recurrent.row(row);
    const float* input = gates.input.row(row);
    float *log_a_row = log_a.row(row), *x_row = x.row(row);
    const bool begins = gates.positions[row] == 0;
    ForEachVector(gates.channels, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      const Gates g =
          GatesOf(v.load(recurrent + i), v.load(input + i), v.load(gates.parameter + i), begins);
      v.store(g.log_a, log_a_row + i);
      v.store(hn::Mul(hn::Mul(v.load(u + i), g.input), g.multiplier), x_row + i);
    });
  });
}

void Backward(const RgLruGates& gates, const ConstMatrix& d_log_a, const ConstMatrix& d_x,
              const RgLruGateGradients& gradients) {
  const auto row_gradients = [&](int64_t row, float* parameter_sum, float*) {
    const FloatTag d;
    const float *u = gates.u.row(row), *recurrent = gates.recurrent.row(row);
    const float* input = gates.input.row(row);
    const float* log_a_row = d_log_a.data ? d_log_a.row(row) : nullptr;
    const float* x_row = d_x.data ? d_x.row(row) : nullptr;
    float* du = gradients.u.data ? gradients.u.row(row) : nullptr;
    float* dr = gradients.recurrent.data ? gradients.recurrent.row(row) : nullptr;
    float* di = gradients.input.data ? gradients.input.row(row) : nullptr;
    const bool begins = gates.positions[row] == 0;
    ForEachVector(gates.channels, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      const V one = Constant(1.0f), parameter = v.load(gates.parameter + i);
      const Gates g = GatesOf(v.load(recurrent + i), v.load(input + i), parameter, begins);
      const V dx = x_row ? v.load(x_row + i) : hn::Zero(d);
      const V scaled = hn::Mul(dx, g.multiplier), from = v.load(u + i);
      if (du) v.store(hn::Mul(scaled, g.input), du + i, gradients.u.accumulate);
      if (di) {
        const V slope = hn::Mul(g.input, hn::Sub(one, g.input));
        v.store(hn::Mul(hn::Mul(scaled, from), slope), di + i, gradients.input.accumulate);
      }
      // d sqrt(1 - a^2) / d log a = -a^2 / sqrt(1 - a^2), the root of which is kept from 0.
      V decay = log_a_row ? v.load(log_a_row + i) : hn::Zero(d);
      if (!begins) {
        const V slope = hn::Max(hn::Add(g.multiplier, g.multiplier), Constant(kLeastSlope));
        const V twice_a_square = hn::Mul(hn::Sub(one, g.square), Constant(2.0f));
        const V gated = hn::Mul(hn::Mul(dx, from), g.input);
        decay = hn::Sub(decay, hn::Div(hn::Mul(gated, twice_a_square), slope));
      }
      const V scale = hn::Mul(decay, Constant(-kDecayScale));
      if (dr) {
        const V slope = hn::Mul(g.recurrent, hn::Sub(one, g.recurrent));
        v.store(hn::Mul(hn::Mul(scale, g.softplus), slope), dr + i, gradients.recurrent.accumulate);
      }
      if (parameter_sum) {
        v.store(hn::Mul(hn::Mul(scale, g.recurrent), Sigmoid(d, parameter)), parameter_sum + i,
                true);
      }
    });
  };
  SumOverRows({gates.rows, gates.channels}, gates.channels, gradients.parameter, {}, row_gradients);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(Forward);
HWY_EXPORT(Backward);

void cpu_diagonal_scan::rg_lru_gates(const RgLruGates& gates, const Matrix& log_a,
                                     const Matrix& x) {
  HWY_DYNAMIC_DISPATCH(Forward)(gates, log_a, x);
}

void cpu_diagonal_scan::rg_lru_gates_backward(const RgLruGates& gates, const ConstMatrix& d_log_a,
                                              const ConstMatrix& d_x,
                                              const RgLruGateGradients& gradients) {
  HWY_DYNAMIC_DISPATCH(Backward)(gates, d_log_a, d_x, gradients);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
