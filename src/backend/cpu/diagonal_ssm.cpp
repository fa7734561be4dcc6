// The diagonal state space model with fixed coefficients: channels lie in the lanes, and some modes
// of a vector of channels stay in registers while a tile of tokens passes. A token adds its modes
// up in their order whatever the tile.
#include <algorithm>

#include "backend/cpu/diagonal_scan_tasks.h"
#include "tensor/storage.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/diagonal_ssm.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.
#include <hwy/highway.h>

#include "backend/cpu/scan-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

using cpu_diagonal_scan::Group;
using cpu_scan::kTile;
constexpr int64_t kChunk = DiagonalScanKernels::kChunk;

// Modes that pass over a tile together: as many as keep the units for products busy.
constexpr int kModes = 4;

struct Complex {
  FloatVector re, im;
};

// Of mode n at a channel: rows 2 n and 2 n + 1.
HWY_INLINE Complex LoadMode(const ConstMatrix& from, int64_t n, int64_t channel, int64_t part) {
  const FloatTag d;
  return {LoadPart(d, from.row(2 * n) + channel, part),
          LoadPart(d, from.row(2 * n + 1) + channel, part)};
}

// p h + u
HWY_INLINE Complex Advance(Complex p, Complex h, FloatVector u) {
  return {hn::MulAdd(p.re, h.re, hn::NegMulAdd(p.im, h.im, u)),
          hn::MulAdd(p.re, h.im, hn::Mul(p.im, h.re))};
}

// Modes [n, n + M) over a tile. u and sums, [tokens][kGroup], and state are at the vector of
// channels that begins at `channel`; sums: null where only the state is wanted.
template <int M>
HWY_NOINLINE void ModesTile(const DiagonalSsm& scan, int64_t n, int64_t channel, int64_t part,
                            int64_t tokens, const float* HWY_RESTRICT u, float* HWY_RESTRICT sums,
                            float* HWY_RESTRICT state, int64_t stride) {
  const FloatTag d;
  Complex p[M], c[M], h[M];
  for (int i = 0; i < M; ++i) {
    p[i] = LoadMode(scan.poles, n + i, channel, part);
    c[i] = p[i];
    if (sums != nullptr) c[i] = LoadMode(scan.reads, n + i, channel, part);
    h[i] = {hn::LoadU(d, state + 2 * i * stride), hn::LoadU(d, state + (2 * i + 1) * stride)};
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const FloatVector input = hn::Load(d, u + t * kGroup);
    for (int i = 0; i < M; ++i) h[i] = Advance(p[i], h[i], input);
    if (sums == nullptr) continue;
    FloatVector sum = hn::Load(d, sums + t * kGroup);
    for (int i = 0; i < M; ++i) {
      sum = hn::NegMulAdd(c[i].im, h[i].im, hn::MulAdd(c[i].re, h[i].re, sum));
    }
    hn::Store(sum, d, sums + t * kGroup);
  }
  for (int i = 0; i < M; ++i) {
    hn::StoreU(h[i].re, d, state + 2 * i * stride);
    hn::StoreU(h[i].im, d, state + (2 * i + 1) * stride);
  }
}

// All modes of a group. state: at the group, rows `stride` apart. sums may be null.
void GroupTile(const DiagonalSsm& scan, Group group, int64_t tokens, const float* u, float* sums,
               float* state, int64_t stride) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
  for (int64_t c = 0; c < group.count; c += lanes) {
    const int64_t part = std::min(lanes, group.count - c), channel = group.channel + c;
    float* to = sums != nullptr ? sums + c : nullptr;
    int64_t n = 0;
    for (; n + kModes <= scan.modes; n += kModes) {
      ModesTile<kModes>(scan, n, channel, part, tokens, u + c, to, state + 2 * n * stride + c,
                        stride);
    }
    for (; n < scan.modes; ++n) {
      ModesTile<1>(scan, n, channel, part, tokens, u + c, to, state + 2 * n * stride + c, stride);
    }
  }
}

// A row of a group, zeros after its channels.
HWY_INLINE void CopyRow(const float* from, Group group, float* to) {
  std::copy_n(from + group.channel, static_cast<size_t>(group.count), to);
  std::fill(to + group.count, to + kGroup, 0.0f);
}

// At most kTile rows of a group.
void SsmRows(const DiagonalSsm& scan, Group group, int64_t first, int64_t tokens, float* state,
             int64_t stride, float* const* journal_rows, const Matrix& y) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto count = static_cast<size_t>(group.count);
  HWY_ALIGN float u[kTile * kGroup], sums[kTile * kGroup];
  for (int64_t t = 0; t < tokens; ++t) {
    const float* from = scan.u.row(first + t);
    CopyRow(from, group, u + t * kGroup);
    if (journal_rows != nullptr) {
      std::copy_n(from + group.channel, count, journal_rows[t] + group.channel);
    }
  }
  std::fill_n(sums, tokens * kGroup, 0.0f);
  GroupTile(scan, group, tokens, u, sums, state, stride);
  for (int64_t c = 0; c < group.count; c += lanes) {
    const int64_t part = std::min(lanes, group.count - c), channel = group.channel + c;
    const FloatVector skip = LoadPart(d, scan.D + channel, part);
    for (int64_t t = 0; t < tokens; ++t) {
      const FloatVector sum = hn::Load(d, sums + t * kGroup + c);
      // Twice the sum is exact, so the rounding is that of the fused addition.
      const FloatVector value =
          hn::MulAdd(skip, hn::Load(d, u + t * kGroup + c), hn::Add(sum, sum));
      StorePart(d, value, y.row(first + t) + channel, part);
    }
  }
}

void LoadGroup(const float* state, const DiagonalSsm& scan, Group group, float* to) {
  for (int64_t n = 0; n < scan.state_rows(); ++n) {
    if (state != nullptr) {
      CopyRow(state + n * scan.channels, group, to + n * kGroup);
    } else {
      std::fill_n(to + n * kGroup, kGroup, 0.0f);
    }
  }
}

void StoreGroup(const float* from, int64_t stride, const DiagonalSsm& scan, Group group,
                float* state) {
  for (int64_t n = 0; n < scan.state_rows(); ++n) {
    std::copy_n(from + n * stride, static_cast<size_t>(group.count),
                state + n * scan.channels + group.channel);
  }
}

void SsmTree(const DiagonalSsm& scan, const ScanSegment& segment, Group group, const float* root,
             const Matrix& y) {
  const int64_t size = scan.state_rows() * kGroup;
  const Storage storage(static_cast<size_t>(segment.length * size) * sizeof(float));
  auto* nodes = reinterpret_cast<float*>(storage.data());
  for (int64_t i = 0; i < segment.length; ++i) {
    const int32_t parent = segment.parents[i];
    std::copy_n(parent < 0 ? root : nodes + parent * size, size, nodes + i * size);
    float* const* row = segment.journal_rows != nullptr ? segment.journal_rows + i : nullptr;
    SsmRows(scan, group, segment.first_row + i, 1, nodes + i * size, kGroup, row, y);
  }
}

void SsmForward(const DiagonalSsm& scan, const ScanSegment& segment, Group group, float* scratch,
                const Matrix& y) {
  // A full group is advanced where it lies; others in the scratch, where vectors may overhang.
  const bool in_place = segment.state_out != nullptr && segment.state_out == segment.state_in &&
                        group.count == kGroup && segment.parents == nullptr;
  float* state = in_place ? segment.state_out + group.channel : scratch;
  const int64_t stride = in_place ? scan.channels : kGroup;
  if (!in_place) LoadGroup(segment.state_in, scan, group, state);
  if (segment.parents != nullptr) return SsmTree(scan, segment, group, state, y);
  auto snapshot = segment.snapshots.begin();
  for (int64_t t = 0;;) {
    for (; snapshot != segment.snapshots.end() && snapshot->tokens == t; ++snapshot) {
      StoreGroup(state, stride, scan, group, snapshot->state);
    }
    if (t == segment.length) break;
    int64_t end = std::min(segment.length, t + kTile);
    if (snapshot != segment.snapshots.end()) end = std::min(end, snapshot->tokens);
    const bool keeps = segment.journal_rows != nullptr && t >= segment.journal_from;
    if (segment.journal_rows != nullptr && !keeps) end = std::min(end, segment.journal_from);
    float* const* rows = keeps ? segment.journal_rows + (t - segment.journal_from) : nullptr;
    SsmRows(scan, group, segment.first_row + t, end - t, state, stride, rows, y);
    t = end;
  }
  if (segment.state_out != nullptr && !in_place) {
    StoreGroup(state, stride, scan, group, segment.state_out);
  }
}

void SsmReplay(const DiagonalSsm& scan, std::span<const float* const> rows, Group group, bool fresh,
               float* scratch, float* state) {
  HWY_ALIGN float u[kTile * kGroup];
  LoadGroup(fresh ? nullptr : state, scan, group, scratch);
  const auto count = static_cast<int64_t>(rows.size());
  for (int64_t first = 0; first < count; first += kTile) {
    const int64_t tokens = std::min(kTile, count - first);
    for (int64_t t = 0; t < tokens; ++t) {
      CopyRow(rows[static_cast<size_t>(first + t)], group, u + t * kGroup);
    }
    GroupTile(scan, group, tokens, u, nullptr, scratch, kGroup);
  }
  StoreGroup(scratch, kGroup, scan, group, state);
}

// What the backward pass has of a chunk, at a vector of channels.
struct ChunkOperands {
  const float *u, *dy;  // [tokens][kGroup]
  float* du;            // likewise: half the gradient without D's part
};

// Modes [n, n + M) of a chunk: their states from the one before the chunk, then the reverse scan.
//   g_t = conj(c) dy_t + conj(p) g_{t+1}, half the gradient of h_t;  du_t += Re g_t
//   dp += g_t conj(h_{t-1}), dc += dy_t conj(h_t), likewise half of theirs
// state: before the chunk; carry: conj(p) g of the next token; sums: of the poles. All have rows
// kGroup apart, and the sums of the reads are `reads` after those of the poles.
template <int M>
HWY_NOINLINE void ReverseModes(const DiagonalSsm& scan, int64_t n, int64_t channel, int64_t part,
                               int64_t tokens, const ChunkOperands& chunk,
                               const float* HWY_RESTRICT state, float* HWY_RESTRICT carry,
                               float* HWY_RESTRICT sums, int64_t reads) {
  const FloatTag d;
  constexpr int64_t kLanes = hn::MaxLanes(FloatTag());
  HWY_ALIGN float states[(kChunk + 1) * 2 * M * kLanes];
  Complex p[M], h[M], g[M], dp[M], dc[M];
  for (int i = 0; i < M; ++i) {
    const int64_t at = 2 * i * kGroup;
    p[i] = LoadMode(scan.poles, n + i, channel, part);
    h[i] = {hn::Load(d, state + at), hn::Load(d, state + at + kGroup)};
    g[i] = {hn::Load(d, carry + at), hn::Load(d, carry + at + kGroup)};
    dp[i] = {hn::Load(d, sums + at), hn::Load(d, sums + at + kGroup)};
    dc[i] = {hn::Load(d, sums + reads + at), hn::Load(d, sums + reads + at + kGroup)};
  }
  const auto store = [&](int64_t t) HWY_ATTR {
    float* to = states + t * 2 * M * kLanes;
    for (int i = 0; i < M; ++i) {
      hn::Store(h[i].re, d, to + 2 * i * kLanes);
      hn::Store(h[i].im, d, to + (2 * i + 1) * kLanes);
    }
  };
  store(0);
  for (int64_t t = 0; t < tokens; ++t) {
    const FloatVector input = hn::Load(d, chunk.u + t * kGroup);
    for (int i = 0; i < M; ++i) h[i] = Advance(p[i], h[i], input);
    store(t + 1);
  }
  for (int64_t t = tokens - 1; t >= 0; --t) {
    const FloatVector dy = hn::Load(d, chunk.dy + t * kGroup);
    FloatVector du = hn::Load(d, chunk.du + t * kGroup);
    const float* before = states + t * 2 * M * kLanes;
    for (int i = 0; i < M; ++i) {
      const Complex c = LoadMode(scan.reads, n + i, channel, part);
      const FloatVector re = hn::Load(d, before + 2 * i * kLanes);
      const FloatVector im = hn::Load(d, before + (2 * i + 1) * kLanes);
      g[i] = {hn::MulAdd(c.re, dy, g[i].re), hn::NegMulAdd(c.im, dy, g[i].im)};
      du = hn::Add(du, g[i].re);
      dp[i].re = hn::MulAdd(g[i].re, re, hn::MulAdd(g[i].im, im, dp[i].re));
      dp[i].im = hn::NegMulAdd(g[i].re, im, hn::MulAdd(g[i].im, re, dp[i].im));
      dc[i].re = hn::MulAdd(dy, h[i].re, dc[i].re);
      dc[i].im = hn::NegMulAdd(dy, h[i].im, dc[i].im);
      h[i] = {re, im};
      g[i] = {hn::MulAdd(p[i].re, g[i].re, hn::Mul(p[i].im, g[i].im)),
              hn::NegMulAdd(p[i].im, g[i].re, hn::Mul(p[i].re, g[i].im))};
    }
    hn::Store(du, d, chunk.du + t * kGroup);
  }
  for (int i = 0; i < M; ++i) {
    const int64_t at = 2 * i * kGroup;
    hn::Store(g[i].re, d, carry + at);
    hn::Store(g[i].im, d, carry + at + kGroup);
    hn::Store(dp[i].re, d, sums + at);
    hn::Store(dp[i].im, d, sums + at + kGroup);
    hn::Store(dc[i].re, d, sums + reads + at);
    hn::Store(dc[i].im, d, sums + reads + at + kGroup);
  }
}

// du = 2 (the sum over modes) + D dy; skip_sums += dy u.
void FinishChunk(const DiagonalSsm& scan, Group group, int64_t first, int64_t tokens,
                 const ChunkOperands& chunk, const Matrix& du, float* skip_sums) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t c = 0; c < group.count; c += lanes) {
    const int64_t part = std::min(lanes, group.count - c), channel = group.channel + c;
    const FloatVector skip = LoadPart(d, scan.D + channel, part);
    FloatVector sum = hn::Load(d, skip_sums + c);
    for (int64_t t = tokens - 1; t >= 0; --t) {
      const FloatVector dy = hn::Load(d, chunk.dy + t * kGroup + c);
      sum = hn::MulAdd(dy, hn::Load(d, chunk.u + t * kGroup + c), sum);
      if (du.data == nullptr) continue;
      const FloatVector half = hn::Load(d, chunk.du + t * kGroup + c);
      FloatVector value = hn::MulAdd(skip, dy, hn::Add(half, half));
      float* to = du.row(first + t) + channel;
      if (du.accumulate) value = hn::Add(value, LoadPart(d, to, part));
      StorePart(d, value, to, part);
    }
    hn::Store(sum, d, skip_sums + c);
  }
}

void SsmBackward(const DiagonalSsm& scan, const ScanSegment& segment, Group group,
                 const ConstMatrix& dy, const Matrix& du, float* scratch, float* sums) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t size = scan.state_rows() * kGroup;
  HWY_ALIGN float u_tile[kChunk * kGroup], dy_tile[kChunk * kGroup], du_tile[kChunk * kGroup];
  const ChunkOperands chunk = {u_tile, dy_tile, du_tile};
  float *state = scratch, *carry = scratch + size;
  LoadGroup(segment.state_out_gradient, scan, group, carry);
  for (int64_t i = 0; i < size; ++i) carry[i] *= 0.5f;
  std::fill_n(sums, 2 * size + kGroup, 0.0f);
  const int64_t chunks = (segment.length + kChunk - 1) / kChunk;
  for (int64_t index = chunks - 1; index >= 0; --index) {
    const int64_t start = index * kChunk, tokens = std::min(kChunk, segment.length - start);
    const int64_t first = segment.first_row + start;
    LoadGroup(
        index > 0 ? segment.snapshots[static_cast<size_t>(index - 1)].state : segment.state_in,
        scan, group, state);
    for (int64_t t = 0; t < tokens; ++t) {
      CopyRow(scan.u.row(first + t), group, u_tile + t * kGroup);
      CopyRow(dy.row(first + t), group, dy_tile + t * kGroup);
    }
    std::fill_n(du_tile, tokens * kGroup, 0.0f);
    for (int64_t c = 0; c < group.count; c += lanes) {
      const int64_t part = std::min(lanes, group.count - c), channel = group.channel + c;
      const ChunkOperands at = {u_tile + c, dy_tile + c, du_tile + c};
      const auto modes = [&](auto reverse, int64_t n) {
        const int64_t row = 2 * n * kGroup + c;
        reverse(scan, n, channel, part, tokens, at, state + row, carry + row, sums + row, size);
      };
      int64_t n = 0;
      for (; n + kModes <= scan.modes; n += kModes) modes(&ReverseModes<kModes>, n);
      for (; n < scan.modes; ++n) modes(&ReverseModes<1>, n);
    }
    FinishChunk(scan, group, first, tokens, chunk, du, sums + 2 * size);
  }
  // Twice, as y is.
  for (int64_t i = 0; i < 2 * size; ++i) sums[i] *= 2;
  for (int64_t n = 0; segment.state_in_gradient != nullptr && n < scan.state_rows(); ++n) {
    const float* HWY_RESTRICT from = carry + n * kGroup;
    float* HWY_RESTRICT to = segment.state_in_gradient + n * scan.channels + group.channel;
    for (int64_t c = 0; c < group.count; ++c) to[c] += 2 * from[c];
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(SsmForward);
HWY_EXPORT(SsmReplay);
HWY_EXPORT(SsmBackward);

void cpu_diagonal_scan::ssm_forward(const DiagonalSsm& scan, const ScanSegment& segment,
                                    Group group, float* scratch, const Matrix& y) {
  HWY_DYNAMIC_DISPATCH(SsmForward)(scan, segment, group, scratch, y);
}

void cpu_diagonal_scan::ssm_replay(const DiagonalSsm& scan, std::span<const float* const> rows,
                                   Group group, bool fresh, float* scratch, float* state) {
  HWY_DYNAMIC_DISPATCH(SsmReplay)(scan, rows, group, fresh, scratch, state);
}

void cpu_diagonal_scan::ssm_backward(const DiagonalSsm& scan, const ScanSegment& segment,
                                     Group group, const ConstMatrix& dy, const Matrix& du,
                                     float* scratch, float* sums) {
  HWY_DYNAMIC_DISPATCH(SsmBackward)(scan, segment, group, dy, du, scratch, sums);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
