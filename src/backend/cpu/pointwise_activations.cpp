#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/pointwise_activations.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>

#include "backend/cpu/pointwise-inl.h"
#include "backend/cpu/pointwise_kernels.h"
#include "backend/cpu/tanh-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

using V = FloatVector;

HWY_INLINE V Constant(float value) { return hn::Set(FloatTag(), value); }

// y = function(x) element by element.
template <class Function>
HWY_INLINE void Map(Extent extent, ConstMatrix x, Matrix y, const Function& function) {
  ForEachSpan(extent, Contiguous(extent, x, y), [&](int64_t row, int64_t first, int64_t count) {
    const float* from = x.row(row) + first;
    float* to = y.row(row) + first;
    ForEachVector(count, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      v.store(function(v.load(from + i)), to + i, y.accumulate);
    });
  });
}

// y = function(a, b) element by element.
template <class Function>
HWY_INLINE void Map(Extent extent, ConstMatrix a, ConstMatrix b, Matrix y,
                    const Function& function) {
  ForEachSpan(extent, Contiguous(extent, a, b, y), [&](int64_t row, int64_t first, int64_t count) {
    const float *left = a.row(row) + first, *right = b.row(row) + first;
    float* to = y.row(row) + first;
    ForEachVector(count, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      v.store(function(v.load(left + i), v.load(right + i)), to + i, y.accumulate);
    });
  });
}

void SigmoidForward(Extent extent, ConstMatrix x, Matrix y) {
  Map(extent, x, y, [](V value) PRONGHORN_VECTOR_LAMBDA { return Sigmoid(FloatTag(), value); });
}

void SigmoidBackward(Extent extent, ConstMatrix y, ConstMatrix dy, Matrix dx) {
  Map(extent, y, dy, dx, [](V value, V gradient) PRONGHORN_VECTOR_LAMBDA {
    return hn::Mul(gradient, hn::NegMulAdd(value, value, value));
  });
}

// The normal distribution's Phi(x), and e^(-x^2/2), which it needs on the way. Abramowitz and
// Stegun, formula 7.1.26: erf to 1.5e-7.
struct NormalDistribution {
  V phi, exponential;
};
HWY_INLINE NormalDistribution Normal(V x) {
  const FloatTag d;
  const V one = Constant(1.0f);
  const V exponential = Exp(d, hn::Mul(hn::Mul(x, x), Constant(-0.5f)));
  const V t = hn::Div(one, hn::MulAdd(hn::Abs(x), Constant(0.3275911f * 0.707106781f), one));
  V p = hn::MulAdd(t, Constant(1.061405429f), Constant(-1.453152027f));
  p = hn::MulAdd(p, t, Constant(1.421413741f));
  p = hn::MulAdd(p, t, Constant(-0.284496736f));
  p = hn::MulAdd(p, t, Constant(0.254829592f));
  // erfc(|x| / sqrt 2) / 2: the tail beyond |x|.
  const V tail = hn::Mul(hn::Mul(Constant(0.5f), hn::Mul(p, t)), exponential);
  return {hn::IfThenElse(hn::Lt(x, hn::Zero(d)), tail, hn::Sub(one, tail)), exponential};
}

// tanh(sqrt(2/pi) (x + 0.044715 x^3)) as 2 sigmoid(2 ...) - 1: sigmoid(2 ...) is all that is
// needed.
constexpr float kGeluCubic = 0.044715f, kTwiceRootTwoOverPi = 1.5957691216f;
HWY_INLINE V GeluSigmoid(V x) {
  const V cubic = hn::MulAdd(hn::Mul(x, x), Constant(kGeluCubic), Constant(1.0f));
  return Sigmoid(FloatTag(), hn::Mul(hn::Mul(cubic, x), Constant(kTwiceRootTwoOverPi)));
}

HWY_INLINE V Gelu(V x) { return hn::Mul(x, Normal(x).phi); }

HWY_INLINE V GeluSlope(V x) {
  const NormalDistribution normal = Normal(x);
  const V density = hn::Mul(normal.exponential, Constant(0.3989422804f));  // 1 / sqrt(2 pi)
  return hn::MulAdd(x, density, normal.phi);
}

HWY_INLINE V GeluTanh(V x) { return hn::Mul(x, GeluSigmoid(x)); }

HWY_INLINE V GeluTanhSlope(V x) {
  const V s = GeluSigmoid(x);
  const V inner = hn::Mul(hn::MulAdd(hn::Mul(x, x), Constant(3 * kGeluCubic), Constant(1.0f)),
                          Constant(kTwiceRootTwoOverPi));
  // s + x s (1 - s) inner'
  return hn::MulAdd(hn::Mul(x, inner), hn::NegMulAdd(s, s, s), s);
}

HWY_INLINE V Silu(V x) { return hn::Mul(x, Sigmoid(FloatTag(), x)); }

HWY_INLINE V SiluSlope(V x) {
  const V s = Sigmoid(FloatTag(), x);
  return hn::MulAdd(hn::Mul(x, s), hn::Sub(Constant(1.0f), s), s);
}

// A NaN stays one: it is not below 0.
HWY_INLINE V Relu(V x) { return hn::IfThenZeroElse(hn::Lt(x, hn::Zero(FloatTag())), x); }

HWY_INLINE V ReluSlope(V x) {
  return hn::IfThenElseZero(hn::Gt(x, hn::Zero(FloatTag())), Constant(1.0f));
}

// -ln(1 + e^-x) = min(x, 0) - ln(1 + e^-|x|): the logarithm's argument is between 1 and 2.
HWY_INLINE V LogSigmoid(V x) {
  const FloatTag d;
  return hn::Sub(hn::IfThenElseZero(hn::Lt(x, hn::Zero(d)), x), Softplus(d, hn::Neg(hn::Abs(x))));
}

HWY_INLINE V EluPlusOne(V x) {
  const FloatTag d;
  const V zero = hn::Zero(d);
  return hn::IfThenElse(hn::Gt(x, zero), hn::Add(x, Constant(1.0f)), Exp(d, x));
}

struct Swoosh {
  float shift, offset;
};
constexpr Swoosh kSwooshR = {1.0f, 0.313261687f}, kSwooshL = {4.0f, 0.035f};
constexpr float kSwooshSlope = 0.08f;

HWY_INLINE V SwooshOf(V x, const Swoosh& form) {
  const FloatTag d;
  const V curve = Softplus(d, hn::Sub(x, Constant(form.shift)));
  return hn::Sub(hn::NegMulAdd(Constant(kSwooshSlope), x, curve), Constant(form.offset));
}

HWY_INLINE V SwooshSlope(V x, const Swoosh& form) {
  return hn::Sub(Sigmoid(FloatTag(), hn::Sub(x, Constant(form.shift))), Constant(kSwooshSlope));
}

void Activate(Extent extent, ConstMatrix x, Activation activation, Matrix y) {
  switch (activation) {
    case Activation::silu:
      return Map(extent, x, y, [](V v) PRONGHORN_VECTOR_LAMBDA { return Silu(v); });
    case Activation::gelu:
      return Map(extent, x, y, [](V v) PRONGHORN_VECTOR_LAMBDA { return Gelu(v); });
    case Activation::gelu_tanh:
      return Map(extent, x, y, [](V v) PRONGHORN_VECTOR_LAMBDA { return GeluTanh(v); });
    case Activation::relu:
      return Map(extent, x, y, [](V v) PRONGHORN_VECTOR_LAMBDA { return Relu(v); });
    case Activation::relu_squared:
      return Map(extent, x, y, [](V v) PRONGHORN_VECTOR_LAMBDA { return hn::Mul(Relu(v), v); });
    case Activation::exp:
      return Map(extent, x, y, [](V v) PRONGHORN_VECTOR_LAMBDA { return Exp(FloatTag(), v); });
    case Activation::softplus:
      return Map(extent, x, y, [](V v) PRONGHORN_VECTOR_LAMBDA { return Softplus(FloatTag(), v); });
    case Activation::log_sigmoid:
      return Map(extent, x, y, [](V v) PRONGHORN_VECTOR_LAMBDA { return LogSigmoid(v); });
    case Activation::elu_plus_one:
      return Map(extent, x, y, [](V v) PRONGHORN_VECTOR_LAMBDA { return EluPlusOne(v); });
    case Activation::swoosh_r:
      return Map(extent, x, y, [](V v) PRONGHORN_VECTOR_LAMBDA { return SwooshOf(v, kSwooshR); });
    case Activation::swoosh_l:
      return Map(extent, x, y, [](V v) PRONGHORN_VECTOR_LAMBDA { return SwooshOf(v, kSwooshL); });
  }
}

void ActivateBackward(Extent extent, ConstMatrix x, ConstMatrix dy, Activation activation,
                      Matrix dx) {
  switch (activation) {
    case Activation::silu:
      return Map(extent, x, dy, dx, [](V v, V gradient) PRONGHORN_VECTOR_LAMBDA {
        return hn::Mul(gradient, SiluSlope(v));
      });
    case Activation::gelu:
      return Map(extent, x, dy, dx, [](V v, V gradient) PRONGHORN_VECTOR_LAMBDA {
        return hn::Mul(gradient, GeluSlope(v));
      });
    case Activation::gelu_tanh:
      return Map(extent, x, dy, dx, [](V v, V gradient) PRONGHORN_VECTOR_LAMBDA {
        return hn::Mul(gradient, GeluTanhSlope(v));
      });
    case Activation::relu:
      return Map(extent, x, dy, dx, [](V v, V gradient) PRONGHORN_VECTOR_LAMBDA {
        return hn::Mul(gradient, ReluSlope(v));
      });
    case Activation::relu_squared:
      return Map(extent, x, dy, dx, [](V v, V gradient) PRONGHORN_VECTOR_LAMBDA {
        return hn::Mul(gradient, hn::Add(Relu(v), Relu(v)));
      });
    case Activation::exp:
      return Map(extent, x, dy, dx, [](V v, V gradient) PRONGHORN_VECTOR_LAMBDA {
        return hn::Mul(gradient, Exp(FloatTag(), v));
      });
    case Activation::softplus:
      return Map(extent, x, dy, dx, [](V v, V gradient) PRONGHORN_VECTOR_LAMBDA {
        return hn::Mul(gradient, Sigmoid(FloatTag(), v));
      });
    case Activation::log_sigmoid:
      return Map(extent, x, dy, dx, [](V v, V gradient) PRONGHORN_VECTOR_LAMBDA {
        return hn::Mul(gradient, Sigmoid(FloatTag(), hn::Neg(v)));
      });
    case Activation::elu_plus_one:
      return Map(extent, x, dy, dx, [](V v, V gradient) PRONGHORN_VECTOR_LAMBDA {
        const V zero = hn::Zero(FloatTag());
        const V slope = hn::IfThenElse(hn::Gt(v, zero), Constant(1.0f), Exp(FloatTag(), v));
        return hn::Mul(gradient, slope);
      });
    case Activation::swoosh_r:
      return Map(extent, x, dy, dx, [](V v, V gradient) PRONGHORN_VECTOR_LAMBDA {
        return hn::Mul(gradient, SwooshSlope(v, kSwooshR));
      });
    case Activation::swoosh_l:
      return Map(extent, x, dy, dx, [](V v, V gradient) PRONGHORN_VECTOR_LAMBDA {
        return hn::Mul(gradient, SwooshSlope(v, kSwooshL));
      });
  }
}

void SoftCap(Extent extent, ConstMatrix x, float cap, Matrix y) {
  const float inverse = 1 / cap;
  Map(extent, x, y, [=](V v) PRONGHORN_VECTOR_LAMBDA {
    return hn::Mul(Constant(cap), ExactTanh(FloatTag(), hn::Mul(v, Constant(inverse))));
  });
}

void SoftCapBackward(Extent extent, ConstMatrix y, ConstMatrix dy, float cap, Matrix dx) {
  const float inverse = 1 / cap;
  Map(extent, y, dy, dx, [=](V v, V gradient) PRONGHORN_VECTOR_LAMBDA {
    const V t = hn::Mul(v, Constant(inverse));
    return hn::Mul(gradient, hn::NegMulAdd(t, t, Constant(1.0f)));
  });
}

// round(x scale) within [low, high], divided by the scale again.
HWY_INLINE V Rounded(V x, float scale, float low, float high) {
  const V steps = hn::Round(hn::Mul(x, Constant(scale)));
  return hn::Div(hn::Clamp(steps, Constant(low), Constant(high)), Constant(scale));
}

constexpr float kLeastSize = 1e-5f;

void RoundRows(Extent extent, ConstMatrix x, Matrix y) {
  ForEachRow(extent, [&](int64_t row) {
    const float* from = x.row(row);
    float* to = y.row(row);
    V largest = Constant(kLeastSize);
    ForEachVector(extent.columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      largest = hn::Max(largest, hn::Abs(v.load(from + i)));
    });
    const float scale = 127.0f / hn::GetLane(hn::MaxOfLanes(FloatTag(), largest));
    ForEachVector(extent.columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      v.store(Rounded(v.load(from + i), scale, -128.0f, 127.0f), to + i, y.accumulate);
    });
  });
}

void RoundTernary(Extent extent, ConstMatrix x, Matrix y) {
  double sum = 0;
  for (int64_t row = 0; row < extent.rows; ++row) {
    const float* from = x.row(row);
    for (int64_t i = 0; i < extent.columns; ++i) sum += std::abs(static_cast<double>(from[i]));
  }
  const auto count = static_cast<double>(std::max<int64_t>(1, extent.rows * extent.columns));
  const float scale = 1 / std::max(static_cast<float>(sum / count), kLeastSize);
  Map(extent, x, y, [=](V v) PRONGHORN_VECTOR_LAMBDA { return Rounded(v, scale, -1.0f, 1.0f); });
}

void SwigluForward(Extent extent, ConstMatrix gate, ConstMatrix up, Matrix y) {
  Map(extent, gate, up, y, [](V g, V u) PRONGHORN_VECTOR_LAMBDA {
    return hn::Mul(hn::Mul(g, Sigmoid(FloatTag(), g)), u);
  });
}

void SwigluBackward(Extent extent, ConstMatrix gate, ConstMatrix up, ConstMatrix dy, Matrix dgate,
                    Matrix dup) {
  const bool contiguous = Contiguous(extent, gate, up, dy, dgate, dup);
  ForEachSpan(extent, contiguous, [&](int64_t row, int64_t first, int64_t count) {
    const float *g_row = gate.row(row) + first, *u_row = up.row(row) + first;
    const float* dy_row = dy.row(row) + first;
    float* dgate_row = dgate.data ? dgate.row(row) + first : nullptr;
    float* dup_row = dup.data ? dup.row(row) + first : nullptr;
    ForEachVector(count, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      const V g = v.load(g_row + i), gradient = v.load(dy_row + i);
      const V s = Sigmoid(FloatTag(), g);
      const V silu = hn::Mul(g, s);
      if (dgate_row) {
        const V slope = hn::MulAdd(silu, hn::Sub(Constant(1.0f), s), s);
        v.store(hn::Mul(hn::Mul(gradient, v.load(u_row + i)), slope), dgate_row + i,
                dgate.accumulate);
      }
      if (dup_row) v.store(hn::Mul(gradient, silu), dup_row + i, dup.accumulate);
    });
  });
}

// Clamps like std::clamp, but keeps NaN.
HWY_INLINE V Clamp(V x, V low, V high) {
  const V raised = hn::IfThenElse(hn::Lt(x, low), low, x);
  return hn::IfThenElse(hn::Gt(raised, high), high, raised);
}

constexpr float kSigmoidGain = 1.702f;

void ClampedSwigluForward(Extent extent, ConstMatrix gate, ConstMatrix up, float limit, Matrix y) {
  Map(extent, gate, up, y, [=](V gate_value, V u) PRONGHORN_VECTOR_LAMBDA {
    const V high = Constant(limit), one = Constant(1.0f);
    const V g = hn::IfThenElse(hn::Gt(gate_value, high), high, gate_value);
    const V s = Sigmoid(FloatTag(), hn::Mul(g, Constant(kSigmoidGain)));
    return hn::Mul(hn::Mul(g, s), hn::Add(Clamp(u, Constant(-limit), high), one));
  });
}

void ClampedSwigluBackward(Extent extent, ConstMatrix gate, ConstMatrix up, float limit,
                           ConstMatrix dy, Matrix dgate, Matrix dup) {
  const bool contiguous = Contiguous(extent, gate, up, dy, dgate, dup);
  ForEachSpan(extent, contiguous, [&](int64_t row, int64_t first, int64_t count) {
    const float *g_row = gate.row(row) + first, *u_row = up.row(row) + first;
    const float* dy_row = dy.row(row) + first;
    float* dgate_row = dgate.data ? dgate.row(row) + first : nullptr;
    float* dup_row = dup.data ? dup.row(row) + first : nullptr;
    ForEachVector(count, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      const V high = Constant(limit), low = Constant(-limit), one = Constant(1.0f);
      const V raw = v.load(g_row + i), u = v.load(u_row + i), gradient = v.load(dy_row + i);
      const auto above = hn::Gt(raw, high);
      const V g = hn::IfThenElse(above, high, raw);
      const V s = Sigmoid(FloatTag(), hn::Mul(g, Constant(kSigmoidGain)));
      // A clamp passes a gradient where it changes nothing.
      if (dgate_row) {
        const V inner = hn::Mul(hn::Mul(g, Constant(kSigmoidGain)), hn::Sub(one, s));
        const V slope = hn::MulAdd(s, inner, s);
        const V raised = hn::Add(Clamp(u, low, high), one);
        v.store(hn::IfThenZeroElse(above, hn::Mul(hn::Mul(gradient, raised), slope)), dgate_row + i,
                dgate.accumulate);
      }
      if (dup_row) {
        const auto clamped = hn::Or(hn::Lt(u, low), hn::Gt(u, high));
        v.store(hn::IfThenZeroElse(clamped, hn::Mul(gradient, hn::Mul(g, s))), dup_row + i,
                dup.accumulate);
      }
    });
  });
}

void DecayGateForward(const DecayGate& gate, Matrix dt, Matrix log_decay) {
  ForEachRow(gate.extent, [&](int64_t row) {
    const FloatTag d;
    const float* raw = gate.raw.row(row);
    float *dt_row = dt.row(row), *decay_row = log_decay.row(row);
    const V low = Constant(gate.minimum), high = Constant(gate.maximum);
    ForEachVector(gate.extent.columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      const V sum = hn::Add(v.load(raw + i), v.load(gate.dt_bias + i));
      const V step = Clamp(Softplus(d, sum), low, high);
      v.store(step, dt_row + i);
      v.store(hn::Neg(hn::Mul(Exp(d, v.load(gate.A_log + i)), step)), decay_row + i);
    });
  });
}

void DecayGateBackward(const DecayGate& gate, ConstMatrix d_dt, ConstMatrix d_log_decay,
                       Matrix d_raw, GradVector d_dt_bias, GradVector d_A_log) {
  const auto row_gradients = [&](int64_t row, float* bias_sum, float* A_sum) {
    const FloatTag d;
    const float* raw = gate.raw.row(row);
    const float* dt_row = d_dt.data ? d_dt.row(row) : nullptr;
    const float* decay_row = d_log_decay.data ? d_log_decay.row(row) : nullptr;
    float* to = d_raw.data ? d_raw.row(row) : nullptr;
    const V low = Constant(gate.minimum), high = Constant(gate.maximum);
    ForEachVector(gate.extent.columns, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      const V sum = hn::Add(v.load(raw + i), v.load(gate.dt_bias + i));
      const V free = Softplus(d, sum);
      const V minus_A = hn::Neg(Exp(d, v.load(gate.A_log + i)));
      const V decay_gradient = decay_row ? v.load(decay_row + i) : hn::Zero(d);
      const V step_gradient =
          hn::MulAdd(decay_gradient, minus_A, dt_row ? v.load(dt_row + i) : hn::Zero(d));
      // The clamp passes a gradient where it changes nothing.
      const auto clamped = hn::Or(hn::Lt(free, low), hn::Gt(free, high));
      const V gradient = hn::IfThenZeroElse(clamped, hn::Mul(step_gradient, Sigmoid(d, sum)));
      if (to) v.store(gradient, to + i, d_raw.accumulate);
      if (bias_sum) v.store(gradient, bias_sum + i, true);
      if (A_sum) {
        // d log_decay / d A_log = log_decay itself.
        v.store(hn::Mul(decay_gradient, hn::Mul(minus_A, Clamp(free, low, high))), A_sum + i, true);
      }
    });
  };
  SumOverRows(gate.extent, gate.extent.columns, d_dt_bias, d_A_log, row_gradients);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(SigmoidForward);
HWY_EXPORT(SigmoidBackward);
HWY_EXPORT(Activate);
HWY_EXPORT(ActivateBackward);
HWY_EXPORT(SoftCap);
HWY_EXPORT(SoftCapBackward);
HWY_EXPORT(RoundRows);
HWY_EXPORT(RoundTernary);
HWY_EXPORT(SwigluForward);
HWY_EXPORT(SwigluBackward);
HWY_EXPORT(ClampedSwigluForward);
HWY_EXPORT(ClampedSwigluBackward);
HWY_EXPORT(DecayGateForward);
HWY_EXPORT(DecayGateBackward);

void CpuPointwiseKernels::sigmoid(Extent extent, ConstMatrix x, Matrix y) {
  HWY_DYNAMIC_DISPATCH(SigmoidForward)(extent, x, y);
}

void CpuPointwiseKernels::sigmoid_backward(Extent extent, ConstMatrix y, ConstMatrix dy,
                                           Matrix dx) {
  HWY_DYNAMIC_DISPATCH(SigmoidBackward)(extent, y, dy, dx);
}

void CpuPointwiseKernels::activate(Extent extent, ConstMatrix x, Activation activation, Matrix y) {
  HWY_DYNAMIC_DISPATCH(Activate)(extent, x, activation, y);
}

void CpuPointwiseKernels::activate_backward(Extent extent, ConstMatrix x, ConstMatrix dy,
                                            Activation activation, Matrix dx) {
  HWY_DYNAMIC_DISPATCH(ActivateBackward)(extent, x, dy, activation, dx);
}

void CpuPointwiseKernels::soft_cap(Extent extent, ConstMatrix x, float cap, Matrix y) {
  HWY_DYNAMIC_DISPATCH(SoftCap)(extent, x, cap, y);
}

void CpuPointwiseKernels::soft_cap_backward(Extent extent, ConstMatrix y, ConstMatrix dy, float cap,
                                            Matrix dx) {
  HWY_DYNAMIC_DISPATCH(SoftCapBackward)(extent, y, dy, cap, dx);
}

void CpuPointwiseKernels::round_rows(Extent extent, ConstMatrix x, Matrix y) {
  HWY_DYNAMIC_DISPATCH(RoundRows)(extent, x, y);
}

void CpuPointwiseKernels::round_ternary(Extent extent, ConstMatrix x, Matrix y) {
  HWY_DYNAMIC_DISPATCH(RoundTernary)(extent, x, y);
}

void CpuPointwiseKernels::swiglu(Extent extent, ConstMatrix gate, ConstMatrix up, Matrix y) {
  HWY_DYNAMIC_DISPATCH(SwigluForward)(extent, gate, up, y);
}

void CpuPointwiseKernels::swiglu_backward(Extent extent, ConstMatrix gate, ConstMatrix up,
                                          ConstMatrix dy, Matrix dgate, Matrix dup) {
  HWY_DYNAMIC_DISPATCH(SwigluBackward)(extent, gate, up, dy, dgate, dup);
}

void CpuPointwiseKernels::clamped_swiglu(Extent extent, ConstMatrix gate, ConstMatrix up,
                                         float limit, Matrix y) {
  HWY_DYNAMIC_DISPATCH(ClampedSwigluForward)(extent, gate, up, limit, y);
}

void CpuPointwiseKernels::clamped_swiglu_backward(Extent extent, ConstMatrix gate, ConstMatrix up,
                                                  float limit, ConstMatrix dy, Matrix dgate,
                                                  Matrix dup) {
  HWY_DYNAMIC_DISPATCH(ClampedSwigluBackward)(extent, gate, up, limit, dy, dgate, dup);
}

void CpuPointwiseKernels::decay_gate(const DecayGate& gate, Matrix dt, Matrix log_decay) {
  HWY_DYNAMIC_DISPATCH(DecayGateForward)(gate, dt, log_decay);
}

void CpuPointwiseKernels::decay_gate_backward(const DecayGate& gate, ConstMatrix d_dt,
                                              ConstMatrix d_log_decay, Matrix d_raw,
                                              GradVector d_dt_bias, GradVector d_A_log) {
  HWY_DYNAMIC_DISPATCH(DecayGateBackward)(gate, d_dt, d_log_decay, d_raw, d_dt_bias, d_A_log);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
