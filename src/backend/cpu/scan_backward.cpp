// The backward pass: chunks from the last to the first. Each is recomputed from the state before
// it, then scanned in reverse.
#include <algorithm>

#include "backend/cpu/scan_tasks.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/scan_backward.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.
#include <hwy/highway.h>

#include "backend/cpu/scan-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

using cpu_scan::BackwardTask;
constexpr int64_t kChunk = ScanKernels::kChunk;

int64_t BackwardScratch(int64_t states) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
  return (4 * kChunk + 1) * states * lanes + 6 * kChunk * kGroup + 2 * states * kGroup;
}

// The parts of a task's scratch.
struct BackwardBuffers {
  BackwardBuffers(float* scratch, int64_t states) {
    const auto lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
    const auto take = [&](int64_t size) {
      float* part = scratch;
      scratch += size;
      return part;
    };
    const int64_t step = states * lanes;
    h = take((kChunk + 1) * step);
    for (float** part : {&decay, &B, &C}) *part = take(kChunk * step);
    for (float** part : {&dt, &x, &dy, &sum_B, &sum_A}) *part = take(kChunk * kGroup);
    for (float** part : {&carry, &state}) *part = take(states * kGroup);
  }
  // For one vector of channels after the other:
  float* h;      // [kChunk + 1][states][lanes]: states before and after each token
  float* decay;  // [kChunk][states][lanes]
  float *B, *C;  // [kChunk][states][lanes]: gradients, lane by lane, added over the vectors
  // For the group, [kChunk][kGroup]:
  float *dt, *x, *dy;
  float *sum_B, *sum_A;  // sums over the states of lambda B and of lambda exp(dt A) h A
  // For the group, [states][kGroup]:
  float* carry;  // exp(dt A) lambda of the next token
  float* state;  // at the start of the chunk
};

// h and decays of the tokens of a chunk for the vector of channels at `c` of the group.
HWY_NOINLINE void RecomputeChunk(const BackwardTask& task, const BackwardBuffers& buffers,
                                 int64_t c, int64_t first, int64_t tokens) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const SelectiveScan& scan = *task.scan;
  const int64_t states = scan.state_size;
  for (int64_t n = 0; n < states; ++n) {
    hn::Store(hn::Load(d, buffers.state + n * kGroup + c), d, buffers.h + n * lanes);
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const FloatVector dt = hn::Load(d, buffers.dt + t * kGroup + c);
    const FloatVector dtx = hn::Mul(dt, hn::Load(d, buffers.x + t * kGroup + c));
    const float* HWY_RESTRICT B = scan.B.row(first + t);
    const float* HWY_RESTRICT h = buffers.h + t * states * lanes;
    float* HWY_RESTRICT next = buffers.h + (t + 1) * states * lanes;
    float* HWY_RESTRICT decays = buffers.decay + t * states * lanes;
    for (int64_t n = 0; n < states; ++n) {
      const FloatVector decay = Decay(dt, task.rates + n * kGroup + c);
      hn::Store(decay, d, decays + n * lanes);
      hn::Store(Advance(decay, hn::Load(d, h + n * lanes), dtx, B[n]), d, next + n * lanes);
    }
  }
}

// The reverse scan of states [n0, n0 + kBlock) over a chunk; their lambdas stay in registers.
template <int kBlock>
HWY_NOINLINE void ReverseStates(const BackwardTask& task, const BackwardBuffers& buffers, int64_t c,
                                int64_t first, int64_t tokens, int64_t n0) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const SelectiveScan& scan = *task.scan;
  const int64_t step = scan.state_size * lanes;
  const bool first_vector = c == 0, first_block = n0 == 0;
  FloatVector carry[kBlock], rate_sum[kBlock];
  float* carries = buffers.carry + n0 * kGroup + c;
  float* rate_sums = task.parameter_sums + n0 * kGroup + c;
  HWY_UNROLL(8)
  for (int i = 0; i < kBlock; ++i) {
    carry[i] = hn::Load(d, carries + i * kGroup);
    rate_sum[i] = hn::Load(d, rate_sums + i * kGroup);
  }
  for (int64_t t = tokens - 1; t >= 0; --t) {
    const int64_t token = t * kGroup + c;
    const FloatVector dy = hn::Load(d, buffers.dy + token);
    const FloatVector dt = hn::Load(d, buffers.dt + token);
    const FloatVector dtx = hn::Mul(dt, hn::Load(d, buffers.x + token));
    const float* B = scan.B.row(first + t) + n0;
    const float* C = scan.C.row(first + t) + n0;
    const int64_t at = t * step + n0 * lanes;
    FloatVector sum_B = first_block ? hn::Zero(d) : hn::Load(d, buffers.sum_B + token);
    FloatVector sum_A = first_block ? hn::Zero(d) : hn::Load(d, buffers.sum_A + token);
    HWY_UNROLL(8)
    for (int i = 0; i < kBlock; ++i) {
      const int64_t offset = at + i * lanes;
      const FloatVector decay = hn::Load(d, buffers.decay + offset);
      const FloatVector lambda = hn::MulAdd(hn::Set(d, C[i]), dy, carry[i]);
      FloatVector grad_C = hn::Mul(dy, hn::Load(d, buffers.h + offset + step));
      FloatVector grad_B = hn::Mul(lambda, dtx);
      if (!first_vector) {
        grad_C = hn::Add(grad_C, hn::Load(d, buffers.C + offset));
        grad_B = hn::Add(grad_B, hn::Load(d, buffers.B + offset));
      }
      hn::Store(grad_C, d, buffers.C + offset);
      hn::Store(grad_B, d, buffers.B + offset);
      carry[i] = hn::Mul(lambda, decay);
      const FloatVector g = hn::Mul(carry[i], hn::Load(d, buffers.h + offset));
      sum_B = hn::MulAdd(lambda, hn::Set(d, B[i]), sum_B);
      sum_A = hn::MulAdd(g, hn::Load(d, task.rates + (n0 + i) * kGroup + c), sum_A);
      rate_sum[i] = hn::MulAdd(dt, g, rate_sum[i]);
    }
    hn::Store(sum_B, d, buffers.sum_B + token);
    hn::Store(sum_A, d, buffers.sum_A + token);
  }
  HWY_UNROLL(8)
  for (int i = 0; i < kBlock; ++i) {
    hn::Store(carry[i], d, carries + i * kGroup);
    hn::Store(rate_sum[i], d, rate_sums + i * kGroup);
  }
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE void WriteGradient(D d, const Matrix& to, int64_t row, int64_t column, V value,
                              int64_t part) {
  if (to.data == nullptr) return;
  float* at = to.data + row * to.stride + column;
  if (to.accumulate) value = hn::Add(value, LoadPart(d, at, part));
  StorePart(d, value, at, part);
}

// Gradients of x and dt_raw, and the sums for dt_bias and D, once the sums over states are known.
HWY_NOINLINE void FinishRows(const BackwardTask& task, const BackwardBuffers& buffers,
                             int64_t first, int64_t tokens) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const SelectiveScan& scan = *task.scan;
  float* bias_sums = task.parameter_sums + scan.state_size * kGroup;
  float* skip_sums = bias_sums + kGroup;
  for (int64_t t = tokens - 1; t >= 0; --t) {
    const int64_t row = first + t;
    for (int64_t c = 0; c < task.count; c += lanes) {
      const int64_t part = std::min(lanes, task.count - c);
      const int64_t channel = task.channel + c, token = t * kGroup + c;
      const FloatVector dy = hn::Load(d, buffers.dy + token), x = hn::Load(d, buffers.x + token);
      const FloatVector bias = LoadPart(d, scan.dt_bias + channel, part);
      const FloatVector raw = hn::Add(LoadPart(d, scan.dt_raw.row(row) + channel, part), bias);
      const FloatVector sum_B = hn::Load(d, buffers.sum_B + token);
      // The rates are in units of log2(e).
      const FloatVector sum_A =
          hn::Mul(hn::Load(d, buffers.sum_A + token), hn::Set(d, 0.693147180559945309f));
      const FloatVector raw_grad = hn::Mul(hn::MulAdd(x, sum_B, sum_A), Sigmoid(d, raw));
      const FloatVector skip = LoadPart(d, scan.D + channel, part);
      const FloatVector dt = hn::Load(d, buffers.dt + token);
      const FloatVector x_grad = hn::MulAdd(dt, sum_B, hn::Mul(skip, dy));
      WriteGradient(d, task.gradients->x, row, channel, x_grad, part);
      WriteGradient(d, task.gradients->dt_raw, row, channel, raw_grad, part);
      hn::Store(hn::Add(hn::Load(d, bias_sums + c), raw_grad), d, bias_sums + c);
      hn::Store(hn::MulAdd(dy, x, hn::Load(d, skip_sums + c)), d, skip_sums + c);
    }
  }
}

void ScanBackward(const BackwardTask& task) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const SelectiveScan& scan = *task.scan;
  const ScanSegment& segment = *task.segment;
  const int64_t states = scan.state_size;
  const BackwardBuffers buffers(task.scratch, states);
  LoadState(segment.state_out_gradient, states, scan.channels, task.channel, task.count,
            buffers.carry);
  std::fill_n(task.parameter_sums, (states + 2) * kGroup, 0.0f);
  const int64_t chunks = (segment.length + kChunk - 1) / kChunk;
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    const int64_t start = chunk * kChunk, tokens = std::min(kChunk, segment.length - start);
    const int64_t first = segment.first_row + start;
    const float* saved =
        chunk > 0 ? segment.snapshots[static_cast<size_t>(chunk - 1)].state : segment.state_in;
    LoadState(saved, states, scan.channels, task.channel, task.count, buffers.state);
    FillTile(scan, task.channel, task.count, first, tokens, nullptr,
             {buffers.dt, buffers.x, nullptr});
    for (int64_t t = 0; t < tokens; ++t) {
      const float* from = task.dy.row(first + t) + task.channel;
      float* to = std::copy(from, from + task.count, buffers.dy + t * kGroup);
      std::fill(to, buffers.dy + (t + 1) * kGroup, 0.0f);
    }
    for (int64_t c = 0; c < task.count; c += lanes) {
      RecomputeChunk(task, buffers, c, first, tokens);
      int64_t n = 0;
      for (; n + 8 <= states; n += 8) ReverseStates<8>(task, buffers, c, first, tokens, n);
      for (; n < states; ++n) ReverseStates<1>(task, buffers, c, first, tokens, n);
    }
    FinishRows(task, buffers, first, tokens);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t n = 0; n < states; ++n) {
        const int64_t from = (t * states + n) * lanes, to = (first + t) * states + n;
        task.B_sums[to] = hn::GetLane(hn::SumOfLanes(d, hn::Load(d, buffers.B + from)));
        task.C_sums[to] = hn::GetLane(hn::SumOfLanes(d, hn::Load(d, buffers.C + from)));
      }
    }
  }
  for (int64_t n = 0; segment.state_in_gradient != nullptr && n < states; ++n) {
    const float* HWY_RESTRICT from = buffers.carry + n * kGroup;
    float* HWY_RESTRICT to = segment.state_in_gradient + n * scan.channels + task.channel;
    for (int64_t c = 0; c < task.count; ++c) to[c] += from[c];
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(BackwardScratch);
HWY_EXPORT(ScanBackward);

int64_t cpu_scan::backward_scratch(int64_t states) {
  return HWY_DYNAMIC_DISPATCH(BackwardScratch)(states);
}

void cpu_scan::backward(const BackwardTask& task) { HWY_DYNAMIC_DISPATCH(ScanBackward)(task); }

}  // namespace pronghorn
#endif  // HWY_ONCE
