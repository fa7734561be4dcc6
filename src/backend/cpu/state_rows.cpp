#include "backend/state_rows.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/state_rows.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// After foreach_target.
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "backend/cpu/row_sums-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

using V = FloatVector;

template <class Vector>
HWY_INLINE V LoadOr1(Vector v, const float* from, int64_t at) {
  return from != nullptr ? v.load(from + at) : hn::Set(FloatTag(), 1.0f);
}

// The sum of q k weight over a head.
HWY_INLINE float KeysTogether(const OwnRead& a, int64_t row, int64_t head) {
  const int64_t first = head * a.key_dim;
  const float *q = a.q.row(row) + first, *k = a.k.row(row) + first;
  V sum = hn::Zero(FloatTag());
  ForEachVector(a.key_dim, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
    sum = hn::MulAdd(hn::Mul(v.load(q + i), v.load(k + i)), LoadOr1(v, a.weight, first + i), sum);
  });
  return Total(sum);
}

HWY_INLINE float Strength(const OwnRead& a, int64_t row, int64_t head) {
  return a.strength.data != nullptr ? a.strength.row(row)[head] : 1.0f;
}

HWY_INLINE float Share(const OwnRead& a, int64_t row, int64_t head, float together) {
  return Strength(a, row, head) * together + (a.skip != nullptr ? a.skip[head] : 0.0f);
}

void Read(const OwnRead& a, const Matrix& out) {
  ForEachRow({a.rows, a.heads * (a.key_dim + a.value_dim)}, [&](int64_t row) {
    for (int64_t head = 0; head < a.heads; ++head) {
      const int64_t first = head * a.value_dim;
      const V share = hn::Set(FloatTag(), Share(a, row, head, KeysTogether(a, row, head)));
      ForEachVector(a.value_dim, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
        const V y = v.load(a.y.row(row) + first + i), own = v.load(a.v.row(row) + first + i);
        v.store(hn::MulAdd(share, own, y), out.row(row) + first + i);
      });
    }
  });
}

HWY_INLINE void AddSums(const GradVector& target, const float* from, int64_t count) {
  if (target.data == nullptr) return;
  for (int64_t i = 0; i < count; ++i) {
    target.data[i] = target.accumulate ? target.data[i] + from[i] : from[i];
  }
}

// With e = dout and g = e . v: dskip = g, dstrength = s g, and the products q k weight have the
// gradient strength g.
HWY_INLINE void ReadBackwardHead(const OwnRead& a, int64_t row, int64_t head,
                                 const ConstMatrix& dout, const OwnReadGradients& to,
                                 float* weight_sums, float* skip_sums) {
  const FloatTag d;
  const int64_t values = head * a.value_dim, keys = head * a.key_dim;
  const float together = KeysTogether(a, row, head);
  const V share = hn::Set(d, Share(a, row, head, together));
  V sum = hn::Zero(d);
  ForEachVector(a.value_dim, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
    const V e = v.load(dout.row(row) + values + i);
    sum = hn::MulAdd(e, v.load(a.v.row(row) + values + i), sum);
    StoreIfWanted(v, e, to.y, row, values + i);
    StoreIfWanted(v, hn::Mul(e, share), to.v, row, values + i);
  });
  const float g = Total(sum);
  const V through = hn::Set(d, g * Strength(a, row, head));
  ForEachVector(a.key_dim, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
    const V q = v.load(a.q.row(row) + keys + i), k = v.load(a.k.row(row) + keys + i);
    const V weighted = hn::Mul(through, LoadOr1(v, a.weight, keys + i));
    StoreIfWanted(v, hn::Mul(weighted, k), to.q, row, keys + i);
    StoreIfWanted(v, hn::Mul(weighted, q), to.k, row, keys + i);
    if (weight_sums == nullptr) return;
    AddTo(v, hn::Mul(through, hn::Mul(q, k)), weight_sums + keys + i);
  });
  if (to.strength.data != nullptr) {
    float& target = to.strength.row(row)[head];
    target = together * g + (to.strength.accumulate ? target : 0.0f);
  }
  if (skip_sums != nullptr) skip_sums[head] += g;
}

void ReadBackward(const OwnRead& a, const ConstMatrix& dout, const OwnReadGradients& to) {
  const int64_t keys = a.heads * a.key_dim, count = keys + a.heads;
  const bool wanted = to.weight.data != nullptr || to.skip.data != nullptr;
  const Storage storage(static_cast<size_t>(wanted ? count : 0) * sizeof(float));
  auto* sums = wanted ? reinterpret_cast<float*>(storage.data()) : nullptr;
  SumOverRows({a.rows, a.heads * (a.key_dim + a.value_dim)}, count, {sums, false}, {},
              [&](int64_t row, float* own, float*) {
                for (int64_t head = 0; head < a.heads; ++head) {
                  ReadBackwardHead(a, row, head, dout, to, own, own != nullptr ? own + keys : own);
                }
              });
  if (!wanted) return;
  AddSums(to.weight, sums, keys);
  AddSums(to.skip, sums + keys, a.heads);
}

void Turn(const TurnedHeads& a, const Matrix& y) {
  ForEachRow({a.rows, 8 * a.heads * a.width}, [&](int64_t row) {
    const float *x = a.x.row(row), *angles = a.angles.row(row);
    float* to = y.row(row);
    for (int64_t head = 0; head < a.heads; ++head) {
      const float* from = x + head / (a.heads / a.groups) * a.width;
      const float* bias = a.bias + head * a.width;
      for (int64_t i = 0; i < a.pairs; ++i) {
        const float c = std::cos(angles[head * a.pairs + i]);
        const float s = std::sin(angles[head * a.pairs + i]);
        const float first = from[2 * i] + bias[2 * i];
        const float second = from[2 * i + 1] + bias[2 * i + 1];
        to[head * a.width + 2 * i] = first * c - second * s;
        to[head * a.width + 2 * i + 1] = first * s + second * c;
      }
      for (int64_t i = 2 * a.pairs; i < a.width; ++i) to[head * a.width + i] = from[i] + bias[i];
    }
  });
}

// The gradient before the turn, [heads width], and that of the angles: y1 dy2 - y2 dy1.
HWY_INLINE void TurnBack(const TurnedHeads& a, int64_t row, const float* HWY_RESTRICT dy,
                         const Matrix& dangles, float* HWY_RESTRICT back) {
  const float *x = a.x.row(row), *angles = a.angles.row(row);
  for (int64_t head = 0; head < a.heads; ++head) {
    const float* from = x + head / (a.heads / a.groups) * a.width;
    const int64_t own = head * a.width;
    for (int64_t i = 0; i < a.pairs; ++i) {
      const int64_t angle = head * a.pairs + i, at = own + 2 * i;
      const float c = std::cos(angles[angle]), s = std::sin(angles[angle]);
      back[at] = dy[at] * c + dy[at + 1] * s;
      back[at + 1] = dy[at + 1] * c - dy[at] * s;
      if (dangles.data == nullptr) continue;
      const float first = from[2 * i] + a.bias[at], second = from[2 * i + 1] + a.bias[at + 1];
      const float turned =
          (first * c - second * s) * dy[at + 1] - (first * s + second * c) * dy[at];
      float& target = dangles.row(row)[angle];
      target = turned + (dangles.accumulate ? target : 0.0f);
    }
    for (int64_t i = 2 * a.pairs; i < a.width; ++i) back[own + i] = dy[own + i];
  }
}

void TurnBackward(const TurnedHeads& a, const ConstMatrix& dy, const TurnedHeadsGradients& to) {
  const int64_t columns = a.heads * a.width, shared = a.heads / a.groups;
  SumOverRows({a.rows, 8 * columns}, columns, to.bias, {}, [&](int64_t row, float* sums, float*) {
    const Storage storage(static_cast<size_t>(columns) * sizeof(float));
    auto* back = reinterpret_cast<float*>(storage.data());
    TurnBack(a, row, dy.row(row), to.angles, back);
    for (int64_t c = 0; sums != nullptr && c < columns; ++c) sums[c] += back[c];
    if (to.x.data == nullptr) return;
    float* target = to.x.row(row);
    for (int64_t group = 0; group < a.groups; ++group) {
      for (int64_t i = 0; i < a.width; ++i) {
        float total = 0;
        for (int64_t h = 0; h < shared; ++h) total += back[(group * shared + h) * a.width + i];
        float& at = target[group * a.width + i];
        at = total + (to.x.accumulate ? at : 0.0f);
      }
    }
  });
}

constexpr float kPi = std::numbers::pi_v<float>;

void Steps(const AngleSteps& a, const Matrix& y) {
  ForEachRow({a.rows, 8 * (a.heads + 1) * a.pairs}, [&](int64_t row) {
    const float *dt = a.dt.row(row), *angles = a.angles.row(row);
    float* to = y.row(row);
    ForEachVector(a.pairs, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      const V turn = hn::Mul(hn::Set(FloatTag(), kPi), Tanh(FloatTag(), v.load(angles + i)));
      for (int64_t head = 0; head < a.heads; ++head) {
        v.store(hn::Mul(hn::Set(FloatTag(), dt[head]), turn), to + head * a.pairs + i);
      }
    });
  });
}

void StepsBackward(const AngleSteps& a, const ConstMatrix& dy, const AngleStepsGradients& to) {
  ForEachRow({a.rows, 8 * (a.heads + 1) * a.pairs}, [&](int64_t row) {
    const FloatTag d;
    const float *dt = a.dt.row(row), *angles = a.angles.row(row), *from = dy.row(row);
    if (to.dt.data != nullptr) {
      for (int64_t head = 0; head < a.heads; ++head) {
        V sum = hn::Zero(d);
        ForEachVector(a.pairs, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
          sum = hn::MulAdd(v.load(from + head * a.pairs + i), Tanh(d, v.load(angles + i)), sum);
        });
        float& target = to.dt.row(row)[head];
        target = kPi * Total(sum) + (to.dt.accumulate ? target : 0.0f);
      }
    }
    if (to.angles.data == nullptr) return;
    ForEachVector(a.pairs, [&](auto v, int64_t i) PRONGHORN_VECTOR_LAMBDA {
      V sum = hn::Zero(d);
      for (int64_t head = 0; head < a.heads; ++head) {
        sum = hn::MulAdd(hn::Set(d, dt[head]), v.load(from + head * a.pairs + i), sum);
      }
      const V turn = Tanh(d, v.load(angles + i));
      const V slope = hn::NegMulAdd(turn, turn, hn::Set(d, 1.0f));
      StoreIfWanted(v, hn::Mul(hn::Set(d, kPi), hn::Mul(slope, sum)), to.angles, row, i);
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

HWY_EXPORT(Read);
HWY_EXPORT(ReadBackward);
HWY_EXPORT(Turn);
HWY_EXPORT(TurnBackward);
HWY_EXPORT(Steps);
HWY_EXPORT(StepsBackward);

class CpuStateRowKernels final : public StateRowKernels {
 public:
  void own_read(const OwnRead& read, const Matrix& out) override {
    HWY_DYNAMIC_DISPATCH(Read)(read, out);
  }
  void own_read_backward(const OwnRead& read, const ConstMatrix& dout,
                         const OwnReadGradients& to) override {
    HWY_DYNAMIC_DISPATCH(ReadBackward)(read, dout, to);
  }
  void turned_heads(const TurnedHeads& turn, const Matrix& y) override {
    HWY_DYNAMIC_DISPATCH(Turn)(turn, y);
  }
  void turned_heads_backward(const TurnedHeads& turn, const ConstMatrix& dy,
                             const TurnedHeadsGradients& to) override {
    HWY_DYNAMIC_DISPATCH(TurnBackward)(turn, dy, to);
  }
  void angle_steps(const AngleSteps& steps, const Matrix& y) override {
    HWY_DYNAMIC_DISPATCH(Steps)(steps, y);
  }
  void angle_steps_backward(const AngleSteps& steps, const ConstMatrix& dy,
                            const AngleStepsGradients& to) override {
    HWY_DYNAMIC_DISPATCH(StepsBackward)(steps, dy, to);
  }
};

}  // namespace

std::unique_ptr<StateRowKernels> make_cpu_state_row_kernels() {
  return std::make_unique<CpuStateRowKernels>();
}

}  // namespace pronghorn
#endif  // HWY_ONCE
