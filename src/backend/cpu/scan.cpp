// Channels lie in the lanes; the states of one vector of channels stay in registers while a tile of
// tokens passes. All forms (prompt, step, replay, tree, recomputation in the backward pass) update
// the state with the same function, so that they agree to the bit.
#include "backend/scan.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/threads.h"
#include "tensor/storage.h"

#ifndef PRONGHORN_SCAN_TASK_
#define PRONGHORN_SCAN_TASK_
namespace pronghorn {

// Channels of one task: four cache lines of every row, and 4 KB of state for 16 states. A multiple
// of the lanes of any vector.
constexpr int64_t kScanGroup = 64;
// Tokens whose operands are brought into the first-level cache, row by row, before the vectors of
// channels pass over them one at a time.
constexpr int64_t kScanTile = 16;

// What one task of the backward pass works with.
struct BackwardTask {
  const SelectiveScan* scan;
  const ScanSegment* segment;
  ConstMatrix dy;
  const SelectiveScanGradients* gradients;
  int64_t channel, count;
  const float* rate;       // [states][kScanGroup]
  float* scratch;          // BackwardScratch() floats
  float *B_sums, *C_sums;  // [rows, states] of this group
  float* parameter_sums;   // [states + 2][kScanGroup] of this group and segment: A_log, dt_bias, D
};

}  // namespace pronghorn
#endif  // PRONGHORN_SCAN_TASK_

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/scan.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.
#include <hwy/highway.h>

#include "backend/cpu/scan-inl.h"
#include "backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {

// A log2(e) of kScanGroup channels as [states][kScanGroup], from A = -exp(A_log) with `count`
// channels; zeros behind them.
void DecayRates(const ConstMatrix& A_log, int64_t channel, int64_t count, int64_t states,
                float* out) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  if (count < kScanGroup) std::fill_n(out, states * kScanGroup, 0.0f);
  int64_t c = 0;
#if HWY_TARGET != HWY_SCALAR
  // Blocks of 4 x 4 are transposed in registers.
  const hn::Full128<float> d4;
  const hn::RepartitionToWide<decltype(d4)> d2;
  for (; c + 4 <= count; c += 4) {
    const float* from = A_log.row(channel + c);
    const int64_t stride = A_log.stride;
    for (int64_t n = 0; n + 4 <= states; n += 4) {
      const auto r0 = hn::LoadU(d4, from + n), r1 = hn::LoadU(d4, from + stride + n);
      const auto r2 = hn::LoadU(d4, from + 2 * stride + n);
      const auto r3 = hn::LoadU(d4, from + 3 * stride + n);
      const auto low01 = hn::BitCast(d2, hn::InterleaveLower(d4, r0, r1));
      const auto low23 = hn::BitCast(d2, hn::InterleaveLower(d4, r2, r3));
      const auto high01 = hn::BitCast(d2, hn::InterleaveUpper(d4, r0, r1));
      const auto high23 = hn::BitCast(d2, hn::InterleaveUpper(d4, r2, r3));
      float* to = out + n * kScanGroup + c;
      hn::StoreU(hn::BitCast(d4, hn::InterleaveLower(d2, low01, low23)), d4, to);
      hn::StoreU(hn::BitCast(d4, hn::InterleaveUpper(d2, low01, low23)), d4, to + kScanGroup);
      hn::StoreU(hn::BitCast(d4, hn::InterleaveLower(d2, high01, high23)), d4, to + 2 * kScanGroup);
      hn::StoreU(hn::BitCast(d4, hn::InterleaveUpper(d2, high01, high23)), d4, to + 3 * kScanGroup);
    }
    for (int64_t n = states / 4 * 4; n < states; ++n) {
      for (int64_t i = 0; i < 4; ++i) out[n * kScanGroup + c + i] = from[i * stride + n];
    }
  }
#endif
  for (; c < count; ++c) {
    for (int64_t n = 0; n < states; ++n) out[n * kScanGroup + c] = A_log.row(channel + c)[n];
  }
  // e^a log2(e) = 2^(a log2(e) + log2(log2(e))).
  const auto log2_e = hn::Set(d, 1.44269504088896341f);
  const auto shift = hn::Set(d, 0.52876637294489778f);
  const auto low = hn::Set(d, -125.0f), high = hn::Set(d, 127.0f);
  for (int64_t i = 0; i < states * kScanGroup; i += lanes) {
    const auto a = hn::MulAdd(hn::Load(d, out + i), log2_e, shift);
    hn::Store(hn::Neg(Exp2(d, hn::Min(hn::Max(a, low), high))), d, out + i);
  }
}

// exp(dt A), given A log2(e).
HWY_INLINE FloatVector Decay(FloatVector dt, const float* rate) {
  const FloatTag d;
  return Exp2Decay(d, hn::Mul(dt, hn::Load(d, rate)));
}

// The update of one state of a vector of channels; dtx = dt x. Only products feed the fused
// addition, so the compiler has no choice of how to round.
HWY_INLINE FloatVector Advance(FloatVector decay, FloatVector h, FloatVector dtx, float B) {
  return hn::MulAdd(decay, h, hn::Mul(dtx, hn::Set(FloatTag(), B)));
}

// Tokens of a group of channels: [tokens][kScanGroup] each.
struct ScanTokens {
  float *dt, *x, *y;
};

// Brings `tokens` rows from `first` on into a tile: x, and dt = softplus(dt_raw + dt_bias).
// journal_rows: of the first row on, or null.
HWY_NOINLINE void FillTile(const SelectiveScan& scan, int64_t channel, int64_t count, int64_t first,
                           int64_t tokens, float* const* journal_rows, const ScanTokens& tile) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t t = 0; t < tokens; ++t) {
    const float* raw = scan.dt_raw.row(first + t) + channel;
    const float* input = scan.x.row(first + t) + channel;
    for (int64_t c = 0; c < count; c += lanes) {
      const int64_t part = std::min(lanes, count - c);
      const FloatVector bias = LoadPart(d, scan.dt_bias + channel + c, part);
      const FloatVector dt = Softplus(d, hn::Add(LoadPart(d, raw + c, part), bias));
      const FloatVector x = LoadPart(d, input + c, part);
      hn::Store(dt, d, tile.dt + t * kScanGroup + c);
      hn::Store(x, d, tile.x + t * kScanGroup + c);
      if (journal_rows != nullptr) {
        StorePart(d, dt, journal_rows[t] + channel + c, part);
        StorePart(d, x, journal_rows[t] + scan.channels + channel + c, part);
      }
    }
  }
}

// One vector of channels over a tile of the rows from `first` on. rate, state and tile: at that
// vector. kStates: known number of states, whose h stay in registers, or 0.
template <int kStates>
HWY_NOINLINE void ScanTile(const SelectiveScan& scan, int64_t first, int64_t tokens,
                           const float* HWY_RESTRICT rate, float* HWY_RESTRICT state,
                           int64_t state_stride, FloatVector skip, const ScanTokens& tile) {
  const FloatTag d;
  const int64_t states = scan.state_size;
  FloatVector h[kStates > 0 ? kStates : 1];
  if constexpr (kStates > 0) {
    HWY_UNROLL(16)
    for (int n = 0; n < kStates; ++n) h[n] = hn::LoadU(d, state + n * state_stride);
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const float* HWY_RESTRICT B = scan.B.row(first + t);
    const float* HWY_RESTRICT C = scan.C.row(first + t);
    const FloatVector dt = hn::Load(d, tile.dt + t * kScanGroup);
    const FloatVector x = hn::Load(d, tile.x + t * kScanGroup);
    const FloatVector dtx = hn::Mul(dt, x);
    FloatVector sum = hn::Mul(skip, x);
    if constexpr (kStates > 0) {
      HWY_UNROLL(16)
      for (int n = 0; n < kStates; ++n) {
        h[n] = Advance(Decay(dt, rate + n * kScanGroup), h[n], dtx, B[n]);
        sum = hn::MulAdd(hn::Set(d, C[n]), h[n], sum);
      }
    } else {
      for (int64_t n = 0; n < states; ++n) {
        float* to = state + n * state_stride;
        const FloatVector next =
            Advance(Decay(dt, rate + n * kScanGroup), hn::LoadU(d, to), dtx, B[n]);
        hn::StoreU(next, d, to);
        sum = hn::MulAdd(hn::Set(d, C[n]), next, sum);
      }
    }
    hn::Store(sum, d, tile.y + t * kScanGroup);
  }
  if constexpr (kStates > 0) {
    HWY_UNROLL(16)
    for (int n = 0; n < kStates; ++n) hn::StoreU(h[n], d, state + n * state_stride);
  }
}

// At most kScanTile rows of a group of channels.
void ScanRows(const SelectiveScan& scan, int64_t channel, int64_t count, int64_t first,
              int64_t tokens, const float* rate, float* state, int64_t state_stride,
              float* const* journal_rows, float* y, int64_t y_stride) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  HWY_ALIGN float dt[kScanTile * kScanGroup], x[kScanTile * kScanGroup];
  HWY_ALIGN float sums[kScanTile * kScanGroup];
  FillTile(scan, channel, count, first, tokens, journal_rows, {dt, x, sums});
  for (int64_t c = 0; c < count; c += lanes) {
    const FloatVector skip = LoadPart(d, scan.D + channel + c, std::min(lanes, count - c));
    const ScanTokens tile = {dt + c, x + c, sums + c};
    if (scan.state_size == 16) {
      ScanTile<16>(scan, first, tokens, rate + c, state + c, state_stride, skip, tile);
    } else if (scan.state_size == 8) {
      ScanTile<8>(scan, first, tokens, rate + c, state + c, state_stride, skip, tile);
    } else {
      ScanTile<0>(scan, first, tokens, rate + c, state + c, state_stride, skip, tile);
    }
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const float* from = sums + t * kScanGroup;
    std::copy(from, from + count, y + (first + t) * y_stride + channel);
  }
}

// A group's part of a state [states, channels], to and from [states][kScanGroup].
void LoadState(const float* state, int64_t states, int64_t channels, int64_t channel, int64_t count,
               float* group) {
  for (int64_t n = 0; n < states; ++n) {
    float* to = group + n * kScanGroup;
    const int64_t given = state != nullptr ? count : 0;
    if (given > 0) {
      std::memcpy(to, state + n * channels + channel, static_cast<size_t>(given) * sizeof(float));
    }
    std::fill(to + given, to + kScanGroup, 0.0f);
  }
}

void StoreState(const float* group, int64_t group_stride, int64_t states, int64_t channels,
                int64_t channel, int64_t count, float* state) {
  for (int64_t n = 0; n < states; ++n) {
    std::memcpy(state + n * channels + channel, group + n * group_stride,
                static_cast<size_t>(count) * sizeof(float));
  }
}

void ScanTree(const SelectiveScan& scan, const ScanSegment& segment, int64_t channel, int64_t count,
              const float* rate, const float* root, float* y, int64_t y_stride) {
  const int64_t size = scan.state_size * kScanGroup;
  const Storage storage(static_cast<size_t>(segment.length * size) * sizeof(float));
  float* nodes = reinterpret_cast<float*>(storage.data());
  for (int64_t i = 0; i < segment.length; ++i) {
    const int32_t parent = segment.parents[i];
    std::copy_n(parent < 0 ? root : nodes + parent * size, size, nodes + i * size);
    float* const* row = segment.journal_rows != nullptr ? segment.journal_rows + i : nullptr;
    ScanRows(scan, channel, count, segment.first_row + i, 1, rate, nodes + i * size, kScanGroup,
             row, y, y_stride);
  }
}

// One segment of one group of channels. scratch: [states][kScanGroup].
void ScanForward(const SelectiveScan& scan, const ScanSegment& segment, int64_t channel,
                 const float* rate, float* scratch, float* y, int64_t y_stride) {
  const int64_t count = std::min(kScanGroup, scan.channels - channel);
  // A full group is advanced where it lies; others in the scratch, where vectors may overhang.
  const bool in_place = segment.state_out != nullptr && segment.state_out == segment.state_in &&
                        count == kScanGroup && segment.parents == nullptr;
  float* state = in_place ? segment.state_out + channel : scratch;
  const int64_t stride = in_place ? scan.channels : kScanGroup;
  if (!in_place) {
    LoadState(segment.state_in, scan.state_size, scan.channels, channel, count, state);
  }
  if (segment.parents != nullptr) {
    ScanTree(scan, segment, channel, count, rate, state, y, y_stride);
    return;
  }
  auto snapshot = segment.snapshots.begin();
  for (int64_t t = 0;;) {
    for (; snapshot != segment.snapshots.end() && snapshot->tokens == t; ++snapshot) {
      StoreState(state, stride, scan.state_size, scan.channels, channel, count, snapshot->state);
    }
    if (t == segment.length) break;
    int64_t end = std::min(segment.length, t + kScanTile);
    if (snapshot != segment.snapshots.end()) end = std::min(end, snapshot->tokens);
    const bool keeps = segment.journal_rows != nullptr;
    if (keeps && t < segment.journal_from) end = std::min(end, segment.journal_from);
    float* const* rows = keeps && t >= segment.journal_from
                             ? segment.journal_rows + (t - segment.journal_from)
                             : nullptr;
    ScanRows(scan, channel, count, segment.first_row + t, end - t, rate, state, stride, rows, y,
             y_stride);
    t = end;
  }
  if (segment.state_out != nullptr && !in_place) {
    StoreState(state, stride, scan.state_size, scan.channels, channel, count, segment.state_out);
  }
}

// Journal rows over the state of one group of channels, in place.
void ScanReplay(const SelectiveScan& scan, std::span<const float* const> rows, int64_t channel,
                const float* rate, float* state) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t count = std::min(kScanGroup, scan.channels - channel);
  for (int64_t c = 0; c < count; c += lanes) {
    const int64_t part = std::min(lanes, count - c);
    for (const float* row : rows) {
      const FloatVector dt = LoadPart(d, row + channel + c, part);
      const FloatVector dtx = hn::Mul(dt, LoadPart(d, row + scan.channels + channel + c, part));
      const float* B = row + 2 * scan.channels;
      for (int64_t n = 0; n < scan.state_size; ++n) {
        float* h = state + n * kScanGroup + c;
        hn::Store(Advance(Decay(dt, rate + n * kScanGroup + c), hn::Load(d, h), dtx, B[n]), d, h);
      }
    }
  }
}

constexpr int64_t kChunk = ScanKernels::kChunk;

int64_t BackwardScratch(int64_t states) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
  return (4 * kChunk + 1) * states * lanes + 6 * kChunk * kScanGroup + 2 * states * kScanGroup;
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
    for (float** part : {&dt, &x, &dy, &sum_B, &sum_A}) *part = take(kChunk * kScanGroup);
    for (float** part : {&carry, &state}) *part = take(states * kScanGroup);
  }
  // For one vector of channels after the other:
  float* h;      // [kChunk + 1][states][lanes]: states before and after each token
  float* decay;  // [kChunk][states][lanes]
  float *B, *C;  // [kChunk][states][lanes]: gradients, lane by lane, added over the vectors
  // For the group, [kChunk][kScanGroup]:
  float *dt, *x, *dy;
  float *sum_B, *sum_A;  // sums over the states of lambda B and of lambda exp(dt A) h A
  // For the group, [states][kScanGroup]:
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
    hn::Store(hn::Load(d, buffers.state + n * kScanGroup + c), d, buffers.h + n * lanes);
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const FloatVector dt = hn::Load(d, buffers.dt + t * kScanGroup + c);
    const FloatVector dtx = hn::Mul(dt, hn::Load(d, buffers.x + t * kScanGroup + c));
    const float* HWY_RESTRICT B = scan.B.row(first + t);
    const float* HWY_RESTRICT h = buffers.h + t * states * lanes;
    float* HWY_RESTRICT next = buffers.h + (t + 1) * states * lanes;
    float* HWY_RESTRICT decays = buffers.decay + t * states * lanes;
    for (int64_t n = 0; n < states; ++n) {
      const FloatVector decay = Decay(dt, task.rate + n * kScanGroup + c);
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
  float* carries = buffers.carry + n0 * kScanGroup + c;
  float* rate_sums = task.parameter_sums + n0 * kScanGroup + c;
  HWY_UNROLL(8)
  for (int i = 0; i < kBlock; ++i) {
    carry[i] = hn::Load(d, carries + i * kScanGroup);
    rate_sum[i] = hn::Load(d, rate_sums + i * kScanGroup);
  }
  for (int64_t t = tokens - 1; t >= 0; --t) {
    const int64_t token = t * kScanGroup + c;
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
      sum_A = hn::MulAdd(g, hn::Load(d, task.rate + (n0 + i) * kScanGroup + c), sum_A);
      rate_sum[i] = hn::MulAdd(dt, g, rate_sum[i]);
    }
    hn::Store(sum_B, d, buffers.sum_B + token);
    hn::Store(sum_A, d, buffers.sum_A + token);
  }
  HWY_UNROLL(8)
  for (int i = 0; i < kBlock; ++i) {
    hn::Store(carry[i], d, carries + i * kScanGroup);
    hn::Store(rate_sum[i], d, rate_sums + i * kScanGroup);
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
  float* bias_sums = task.parameter_sums + scan.state_size * kScanGroup;
  float* skip_sums = bias_sums + kScanGroup;
  for (int64_t t = tokens - 1; t >= 0; --t) {
    const int64_t row = first + t;
    for (int64_t c = 0; c < task.count; c += lanes) {
      const int64_t part = std::min(lanes, task.count - c);
      const int64_t channel = task.channel + c, token = t * kScanGroup + c;
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
  std::fill_n(buffers.carry, states * kScanGroup, 0.0f);
  std::fill_n(task.parameter_sums, (states + 2) * kScanGroup, 0.0f);
  const int64_t chunks = (segment.length + kChunk - 1) / kChunk;
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    const int64_t start = chunk * kChunk, tokens = std::min(kChunk, segment.length - start);
    const int64_t first = segment.first_row + start;
    const float* saved =
        chunk > 0 ? segment.snapshots[static_cast<size_t>(chunk - 1)].state : nullptr;
    LoadState(saved, states, scan.channels, task.channel, task.count, buffers.state);
    FillTile(scan, task.channel, task.count, first, tokens, nullptr,
             {buffers.dt, buffers.x, nullptr});
    for (int64_t t = 0; t < tokens; ++t) {
      const float* from = task.dy.row(first + t) + task.channel;
      float* to = std::copy(from, from + task.count, buffers.dy + t * kScanGroup);
      std::fill(to, buffers.dy + (t + 1) * kScanGroup, 0.0f);
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
}

}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {
namespace {

HWY_EXPORT(DecayRates);
HWY_EXPORT(ScanForward);
HWY_EXPORT(ScanReplay);
HWY_EXPORT(LoadState);
HWY_EXPORT(StoreState);
HWY_EXPORT(BackwardScratch);
HWY_EXPORT(ScanBackward);

constexpr int64_t kGroup = kScanGroup;
// State elements x tokens worth a task of their own: about as long as a fork and join.
constexpr int64_t kTaskWork = 1 << 13;

float* floats(const Storage& storage) { return reinterpret_cast<float*>(storage.data()); }

Storage scratch_of(int64_t count) {
  return Storage(static_cast<size_t>(std::max<int64_t>(1, count)) * sizeof(float));
}

int64_t group_count(const SelectiveScan& scan) { return (scan.channels + kGroup - 1) / kGroup; }

int64_t grain_of(int64_t work) {
  return std::max<int64_t>(1, kTaskWork / std::max<int64_t>(1, work));
}

// DecayRates of every group, one after another: group_count() * state_size * kGroup floats.
void decay_rates(const SelectiveScan& scan, float* rates) {
  const int64_t size = scan.state_size * kGroup;
  parallel_for(group_count(scan), grain_of(size), [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      HWY_DYNAMIC_DISPATCH(DecayRates)
      (scan.A_log, group * kGroup, std::min(kGroup, scan.channels - group * kGroup),
       scan.state_size, rates + group * size);
    }
  });
}

// Writes or adds rows x columns sums of `parts` matrices that lie part_stride apart, added in
// order.
template <typename At>
void write_sums(const Matrix& to, int64_t rows, int64_t columns, int64_t parts, const At& at) {
  if (to.data == nullptr) return;
  const int64_t grain = grain_of(columns * parts);
  parallel_for(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        float sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += at(part, row, column);
        float& target = to.data[row * to.stride + column];
        target = to.accumulate ? target + sum : sum;
      }
    }
  });
}

class CpuScanKernels final : public ScanKernels {
 public:
  void selective_forward(const SelectiveScan& scan, std::span<const ScanSegment> segments, float* y,
                         int64_t y_stride) override {
    const int64_t groups = group_count(scan), size = scan.state_size * kGroup;
    const Storage rates = scratch_of(groups * size);
    decay_rates(scan, floats(rates));
    const auto count = static_cast<int64_t>(segments.size());
    int64_t rows = 0;
    for (const ScanSegment& segment : segments) rows += segment.length;
    const int64_t grain = grain_of(size * rows / std::max<int64_t>(1, count));
    parallel_for(groups * count, grain, [&](int64_t begin, int64_t end) {
      const Storage state = scratch_of(size);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t group = task % groups;
        HWY_DYNAMIC_DISPATCH(ScanForward)
        (scan, segments[static_cast<size_t>(task / groups)], group * kGroup,
         floats(rates) + group * size, floats(state), y, y_stride);
      }
    });
  }

  void selective_replay(const SelectiveScan& scan, std::span<const float* const> rows, bool fresh,
                        float* state) override {
    const int64_t groups = group_count(scan), size = scan.state_size * kGroup;
    const Storage rates = scratch_of(groups * size);
    decay_rates(scan, floats(rates));
    const int64_t grain = grain_of(size * static_cast<int64_t>(rows.size()));
    parallel_for(groups, grain, [&](int64_t begin, int64_t end) {
      const Storage storage = scratch_of(size);
      float* part = floats(storage);
      for (int64_t group = begin; group < end; ++group) {
        const int64_t channel = group * kGroup, count = std::min(kGroup, scan.channels - channel);
        HWY_DYNAMIC_DISPATCH(LoadState)
        (fresh ? nullptr : state, scan.state_size, scan.channels, channel, count, part);
        HWY_DYNAMIC_DISPATCH(ScanReplay)(scan, rows, channel, floats(rates) + group * size, part);
        HWY_DYNAMIC_DISPATCH(StoreState)
        (part, kGroup, scan.state_size, scan.channels, channel, count, state);
      }
    });
  }

  void selective_backward(const SelectiveScan& scan, std::span<const ScanSegment> segments,
                          const ConstMatrix& dy, const SelectiveScanGradients& gradients) override {
    const int64_t groups = group_count(scan), states = scan.state_size, size = states * kGroup;
    const auto count = static_cast<int64_t>(segments.size());
    int64_t rows = 0;
    for (const ScanSegment& segment : segments) {
      rows = std::max(rows, segment.first_row + segment.length);
    }
    const Storage rates = scratch_of(groups * size);
    decay_rates(scan, floats(rates));
    const Storage B_sums = scratch_of(groups * rows * states);
    const Storage C_sums = scratch_of(groups * rows * states);
    const int64_t parameter_size = (states + 2) * kGroup;
    const Storage parameter_sums = scratch_of(count * groups * parameter_size);
    const int64_t grain = grain_of(4 * size * rows / std::max<int64_t>(1, count));
    parallel_for(groups * count, grain, [&](int64_t begin, int64_t end) {
      const Storage scratch = scratch_of(HWY_DYNAMIC_DISPATCH(BackwardScratch)(states));
      for (int64_t index = begin; index < end; ++index) {
        const int64_t group = index % groups;
        BackwardTask task{};
        task.scan = &scan;
        task.segment = &segments[static_cast<size_t>(index / groups)];
        task.dy = dy;
        task.gradients = &gradients;
        task.channel = group * kGroup;
        task.count = std::min(kGroup, scan.channels - task.channel);
        task.rate = floats(rates) + group * size;
        task.scratch = floats(scratch);
        task.B_sums = floats(B_sums) + group * rows * states;
        task.C_sums = floats(C_sums) + group * rows * states;
        task.parameter_sums = floats(parameter_sums) + index * parameter_size;
        HWY_DYNAMIC_DISPATCH(ScanBackward)(task);
      }
    });
    // Sums over channels and segments in a fixed order, whoever computed the parts.
    for (const auto& [sums, to] :
         {std::pair{&B_sums, &gradients.B}, std::pair{&C_sums, &gradients.C}}) {
      write_sums(*to, rows, states, groups, [&](int64_t group, int64_t row, int64_t n) {
        return floats(*sums)[(group * rows + row) * states + n];
      });
    }
    const auto parameter = [&](int64_t segment, int64_t channel, int64_t n) {
      return floats(parameter_sums)[(segment * groups + channel / kGroup) * parameter_size +
                                    n * kGroup + channel % kGroup];
    };
    write_sums(gradients.A_log, scan.channels, states, count,
               [&](int64_t segment, int64_t channel, int64_t n) {
                 // dA / dA_log = A; the rates are A log2(e).
                 const float rate =
                     floats(rates)[channel / kGroup * size + n * kGroup + channel % kGroup];
                 return parameter(segment, channel, n) * rate * 0.693147180559945309f;
               });
    write_sums(gradients.dt_bias, 1, scan.channels, count,
               [&](int64_t segment, int64_t, int64_t channel) {
                 return parameter(segment, channel, states);
               });
    write_sums(gradients.D, 1, scan.channels, count,
               [&](int64_t segment, int64_t, int64_t channel) {
                 return parameter(segment, channel, states + 1);
               });
  }
};

}  // namespace

std::unique_ptr<ScanKernels> make_cpu_scan_kernels() { return std::make_unique<CpuScanKernels>(); }

}  // namespace pronghorn
#endif  // HWY_ONCE
