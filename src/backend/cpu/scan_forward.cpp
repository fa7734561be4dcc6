// Channels lie in the lanes; the states of one vector of channels stay in registers while a tile of
// tokens passes. All forms (prompt, step, replay, tree, recomputation in the backward pass) update
// the state with the same function, so that they agree bit for bit.
#include <algorithm>
#include <cstring>

#include "backend/cpu/scan_tasks.h"
#include "tensor/storage.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/scan_forward.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.
#include <hwy/highway.h>

#include "backend/cpu/scan-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

using cpu_scan::kTile;

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
    const FloatVector dt = hn::Load(d, tile.dt + t * kGroup);
    const FloatVector x = hn::Load(d, tile.x + t * kGroup);
    const FloatVector dtx = hn::Mul(dt, x);
    FloatVector sum = hn::Mul(skip, x);
    if constexpr (kStates > 0) {
      HWY_UNROLL(16)
      for (int n = 0; n < kStates; ++n) {
        h[n] = Advance(Decay(dt, rate + n * kGroup), h[n], dtx, B[n]);
        sum = hn::MulAdd(hn::Set(d, C[n]), h[n], sum);
      }
    } else {
      for (int64_t n = 0; n < states; ++n) {
        float* to = state + n * state_stride;
        const FloatVector next = Advance(Decay(dt, rate + n * kGroup), hn::LoadU(d, to), dtx, B[n]);
        hn::StoreU(next, d, to);
        sum = hn::MulAdd(hn::Set(d, C[n]), next, sum);
      }
    }
    hn::Store(sum, d, tile.y + t * kGroup);
  }
  if constexpr (kStates > 0) {
    HWY_UNROLL(16)
    for (int n = 0; n < kStates; ++n) hn::StoreU(h[n], d, state + n * state_stride);
  }
}

// At most kTile rows of a group of channels.
void ScanRows(const SelectiveScan& scan, int64_t channel, int64_t count, int64_t first,
              int64_t tokens, const float* rate, float* state, int64_t state_stride,
              float* const* journal_rows, float* y, int64_t y_stride) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  HWY_ALIGN float dt[kTile * kGroup], x[kTile * kGroup];
  HWY_ALIGN float sums[kTile * kGroup];
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
    const float* from = sums + t * kGroup;
    std::copy(from, from + count, y + (first + t) * y_stride + channel);
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
  const int64_t size = scan.state_size * kGroup;
  const Storage storage(static_cast<size_t>(segment.length * size) * sizeof(float));
  float* nodes = reinterpret_cast<float*>(storage.data());
  for (int64_t i = 0; i < segment.length; ++i) {
    const int32_t parent = segment.parents[i];
    std::copy_n(parent < 0 ? root : nodes + parent * size, size, nodes + i * size);
    float* const* row = segment.journal_rows != nullptr ? segment.journal_rows + i : nullptr;
    ScanRows(scan, channel, count, segment.first_row + i, 1, rate, nodes + i * size, kGroup, row, y,
             y_stride);
  }
}

void ScanForward(const SelectiveScan& scan, const ScanSegment& segment, int64_t channel,
                 const float* rate, float* scratch, float* y, int64_t y_stride) {
  const int64_t count = std::min(kGroup, scan.channels - channel);
  // A full group is advanced where it lies; others in the scratch, where vectors may overhang.
  const bool in_place = segment.state_out != nullptr && segment.state_out == segment.state_in &&
                        count == kGroup && segment.parents == nullptr;
  float* state = in_place ? segment.state_out + channel : scratch;
  const int64_t stride = in_place ? scan.channels : kGroup;
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
    int64_t end = std::min(segment.length, t + kTile);
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

void ScanReplay(const SelectiveScan& scan, std::span<const float* const> rows, int64_t channel,
                const float* rate, bool fresh, float* group, float* state) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t count = std::min(kGroup, scan.channels - channel);
  LoadState(fresh ? nullptr : state, scan.state_size, scan.channels, channel, count, group);
  for (int64_t c = 0; c < count; c += lanes) {
    const int64_t part = std::min(lanes, count - c);
    for (const float* row : rows) {
      const FloatVector dt = LoadPart(d, row + channel + c, part);
      const FloatVector dtx = hn::Mul(dt, LoadPart(d, row + scan.channels + channel + c, part));
      const float* B = row + 2 * scan.channels;
      for (int64_t n = 0; n < scan.state_size; ++n) {
        float* h = group + n * kGroup + c;
        hn::Store(Advance(Decay(dt, rate + n * kGroup + c), hn::Load(d, h), dtx, B[n]), d, h);
      }
    }
  }
  StoreState(group, kGroup, scan.state_size, scan.channels, channel, count, state);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(ScanForward);
HWY_EXPORT(ScanReplay);

void cpu_scan::forward(const SelectiveScan& scan, const ScanSegment& segment, int64_t channel,
                       const float* rates, float* scratch, float* y, int64_t y_stride) {
  HWY_DYNAMIC_DISPATCH(ScanForward)(scan, segment, channel, rates, scratch, y, y_stride);
}

void cpu_scan::replay(const SelectiveScan& scan, std::span<const float* const> rows,
                      int64_t channel, const float* rates, bool fresh, float* scratch,
                      float* state) {
  HWY_DYNAMIC_DISPATCH(ScanReplay)(scan, rows, channel, rates, fresh, scratch, state);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
