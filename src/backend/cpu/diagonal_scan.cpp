// The real diagonal scan: channels lie in the lanes, the states of up to four vectors of channels
// stay in registers while tokens pass. All forms update the state with one fused multiply-add.
#include <algorithm>

#include "backend/cpu/diagonal_scan_tasks.h"
#include "tensor/storage.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/diagonal_scan.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.
#include <hwy/highway.h>

#include "backend/cpu/scan-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pronghorn {
namespace HWY_NAMESPACE {
namespace {

using cpu_diagonal_scan::Group;

// exp(log_a)
HWY_INLINE FloatVector DecayOf(FloatVector log_a) {
  const FloatTag d;
  return Exp2Decay(d, hn::Mul(log_a, hn::Set(d, 1.44269504088896341f)));
}

// h becomes h + x rounded, and r gets what that lacks.
HWY_INLINE void AddExactly(FloatVector& h, FloatVector x, FloatVector& r) {
  const FloatVector sum = hn::Add(h, x), of_x = hn::Sub(sum, h);
  r = hn::Add(r, hn::Add(hn::Sub(h, hn::Sub(sum, of_x)), hn::Sub(x, of_x)));
  h = sum;
}

// One token of a sum: h + r gets x, and loses whole periods if there is one.
HWY_INLINE void AddToSum(float period, FloatVector x, FloatVector& h, FloatVector& r) {
  const FloatTag d;
  AddExactly(h, x, r);
  if (period > 0) {
    const FloatVector whole = hn::Round(hn::Mul(h, hn::Set(d, 1.0f / period)));
    h = hn::NegMulAdd(whole, hn::Set(d, period), h);
  }
  const FloatVector rest = r;
  r = hn::Zero(d);
  AddExactly(h, rest, r);
}

// Reads and writes whole vectors, or the first `rest` elements of one.
template <bool kPartial>
HWY_INLINE FloatVector LoadSome(const float* from, size_t rest) {
  const FloatTag d;
  return kPartial ? LoadPartial(d, rest, from) : hn::LoadU(d, from);
}

template <bool kPartial>
HWY_INLINE void StoreSome(FloatVector value, float* to, size_t rest) {
  const FloatTag d;
  if constexpr (kPartial) {
    StorePartial(d, rest, value, to);
  } else {
    hn::StoreU(value, d, to);
  }
}

// Of a state, or of its gradient, at some channels; null: zeros.
template <bool kPartial>
HWY_INLINE FloatVector StateOf(const float* state, int64_t channel, size_t rest) {
  return state != nullptr ? LoadSome<kPartial>(state + channel, rest) : hn::Zero(FloatTag());
}

// A constant decay of some channels; 1 of a sum.
template <bool kPartial>
HWY_INLINE FloatVector ConstantOf(const DiagonalScan& scan, int64_t channel, size_t rest) {
  if (scan.sum) return hn::Set(FloatTag(), 1.0f);
  return DecayOf(LoadSome<kPartial>(scan.log_a.data + channel, rest));
}

// Calls body(V, partial, channel, rest) for blocks of V vectors that cover a group.
template <class Body>
HWY_INLINE void ForEachBlock(Group group, const Body& body) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
  using Four = std::integral_constant<int, 4>;
  using One = std::integral_constant<int, 1>;
  int64_t c = 0;
  for (; c + 4 * lanes <= group.count; c += 4 * lanes) {
    body(Four(), std::false_type(), group.channel + c, size_t{0});
  }
  for (; c + lanes <= group.count; c += lanes) {
    body(One(), std::false_type(), group.channel + c, size_t{0});
  }
  if (c < group.count) {
    body(One(), std::true_type(), group.channel + c, static_cast<size_t>(group.count - c));
  }
}

// Rows first ... of V vectors of channels; state: at their first channel.
template <int V, bool kPartial, bool kConstant>
HWY_NOINLINE void ScanRows(const DiagonalScan& scan, int64_t channel, size_t rest, int64_t first,
                           int64_t tokens, float* const* journal_rows, float* HWY_RESTRICT state,
                           const Matrix& out) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  FloatVector h[V], a[V];
  for (int v = 0; v < V; ++v) {
    h[v] = LoadSome<kPartial>(state + v * lanes, rest);
    a[v] = kConstant ? ConstantOf<kPartial>(scan, channel + v * lanes, rest) : hn::Zero(d);
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const float* HWY_RESTRICT x = scan.x.row(first + t) + channel;
    const float* log_a = kConstant ? nullptr : scan.log_a.row(first + t) + channel;
    float* HWY_RESTRICT to = out.row(first + t) + channel;
    for (int v = 0; v < V; ++v) {
      const FloatVector input = LoadSome<kPartial>(x + v * lanes, rest);
      if constexpr (!kConstant) a[v] = DecayOf(LoadSome<kPartial>(log_a + v * lanes, rest));
      h[v] = hn::MulAdd(a[v], h[v], input);
      StoreSome<kPartial>(h[v], to + v * lanes, rest);
      if (journal_rows == nullptr) continue;
      float* row = journal_rows[t] + channel + v * lanes;
      if constexpr (!kConstant) {
        StoreSome<kPartial>(a[v], row, rest);
        row += scan.channels;
      }
      StoreSome<kPartial>(input, row, rest);
    }
  }
  for (int v = 0; v < V; ++v) StoreSome<kPartial>(h[v], state + v * lanes, rest);
}

// The same of a sum; what h lacks is kGroup floats after h.
template <int V, bool kPartial>
HWY_NOINLINE void SumRows(const DiagonalScan& scan, int64_t channel, size_t rest, int64_t first,
                          int64_t tokens, float* const* journal_rows, float* HWY_RESTRICT state,
                          const Matrix& out) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(FloatTag()));
  FloatVector h[V], r[V];
  for (int v = 0; v < V; ++v) {
    h[v] = LoadSome<kPartial>(state + v * lanes, rest);
    r[v] = LoadSome<kPartial>(state + kGroup + v * lanes, rest);
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const float* HWY_RESTRICT x = scan.x.row(first + t) + channel;
    float* HWY_RESTRICT to = out.row(first + t) + channel;
    for (int v = 0; v < V; ++v) {
      const FloatVector input = LoadSome<kPartial>(x + v * lanes, rest);
      AddToSum(scan.period, input, h[v], r[v]);
      StoreSome<kPartial>(h[v], to + v * lanes, rest);
      if (journal_rows == nullptr) continue;
      StoreSome<kPartial>(input, journal_rows[t] + channel + v * lanes, rest);
    }
  }
  for (int v = 0; v < V; ++v) {
    StoreSome<kPartial>(h[v], state + v * lanes, rest);
    StoreSome<kPartial>(r[v], state + kGroup + v * lanes, rest);
  }
}

// The numbers of a state, each of all channels.
int64_t StateParts(const DiagonalScan& scan) { return scan.sum ? 2 : 1; }

// A state of all channels to that of a group, [parts][kGroup], and back.
void LoadGroup(const DiagonalScan& scan, Group group, const float* from, float* state) {
  for (int64_t part = 0; part < StateParts(scan); ++part) {
    std::copy_n(from + part * scan.channels + group.channel, group.count, state + part * kGroup);
  }
}

void StoreGroup(const DiagonalScan& scan, Group group, const float* state, float* to) {
  for (int64_t part = 0; part < StateParts(scan); ++part) {
    std::copy_n(state + part * kGroup, group.count, to + part * scan.channels + group.channel);
  }
}

// Rows of a group; state: of the group.
void ScanGroup(const DiagonalScan& scan, Group group, int64_t first, int64_t tokens,
               float* const* journal_rows, float* state, const Matrix& out) {
  ForEachBlock(group, [&](auto vectors, auto partial, int64_t channel, size_t rest) {
    constexpr int V = decltype(vectors)::value;
    constexpr bool kPartial = decltype(partial)::value;
    const auto rows = scan.sum        ? &SumRows<V, kPartial>
                      : scan.constant ? &ScanRows<V, kPartial, true>
                                      : &ScanRows<V, kPartial, false>;
    rows(scan, channel, rest, first, tokens, journal_rows, state + (channel - group.channel), out);
  });
}

void Forward(const DiagonalScan& scan, const ScanSegment& segment, Group group, const Matrix& out) {
  const int64_t size = StateParts(scan) * kGroup;
  float state[2 * kGroup] = {};
  if (segment.state_in != nullptr) LoadGroup(scan, group, segment.state_in, state);
  if (segment.parents != nullptr) {
    const Storage storage(static_cast<size_t>(segment.length * size) * sizeof(float));
    auto* nodes = reinterpret_cast<float*>(storage.data());
    for (int64_t i = 0; i < segment.length; ++i) {
      const int32_t parent = segment.parents[i];
      std::copy_n(parent < 0 ? state : nodes + parent * size, size, nodes + i * size);
      float* const* row = segment.journal_rows != nullptr ? segment.journal_rows + i : nullptr;
      ScanGroup(scan, group, segment.first_row + i, 1, row, nodes + i * size, out);
    }
    return;
  }
  auto snapshot = segment.snapshots.begin();
  for (int64_t t = 0;;) {
    for (; snapshot != segment.snapshots.end() && snapshot->tokens == t; ++snapshot) {
      StoreGroup(scan, group, state, snapshot->state);
    }
    if (t == segment.length) break;
    int64_t end = segment.length;
    if (snapshot != segment.snapshots.end()) end = std::min(end, snapshot->tokens);
    const bool keeps = segment.journal_rows != nullptr && t >= segment.journal_from;
    if (segment.journal_rows != nullptr && !keeps) end = std::min(end, segment.journal_from);
    float* const* rows = keeps ? segment.journal_rows + (t - segment.journal_from) : nullptr;
    ScanGroup(scan, group, segment.first_row + t, end - t, rows, state, out);
    t = end;
  }
  if (segment.state_out != nullptr) StoreGroup(scan, group, state, segment.state_out);
}

void ReplayRows(const DiagonalScan& scan, std::span<const float* const> rows, Group group,
                bool fresh, float* state) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t c = 0; c < group.count; c += lanes) {
    const int64_t part = std::min(lanes, group.count - c), channel = group.channel + c;
    FloatVector h = fresh ? hn::Zero(d) : LoadPart(d, state + channel, part);
    if (scan.sum) {
      float* rests = state + scan.channels + channel;
      FloatVector r = fresh ? hn::Zero(d) : LoadPart(d, rests, part);
      for (const float* row : rows) {
        AddToSum(scan.period, LoadPart(d, row + channel, part), h, r);
      }
      StorePart(d, h, state + channel, part);
      StorePart(d, r, rests, part);
      continue;
    }
    const FloatVector constant =
        scan.constant ? DecayOf(LoadPart(d, scan.log_a.data + channel, part)) : hn::Zero(d);
    for (const float* row : rows) {
      const FloatVector a = scan.constant ? constant : LoadPart(d, row + channel, part);
      const float* x = row + (scan.constant ? 0 : scan.channels) + channel;
      h = hn::MulAdd(a, h, LoadPart(d, x, part));
    }
    StorePart(d, h, state + channel, part);
  }
}

template <bool kPartial>
HWY_INLINE void WriteGradient(const Matrix& to, int64_t row, int64_t column, FloatVector value,
                              size_t rest) {
  if (to.data == nullptr) return;
  float* at = to.row(row) + column;
  if (to.accumulate) value = hn::Add(value, LoadSome<kPartial>(at, rest));
  StoreSome<kPartial>(value, at, rest);
}

// lambda_t = dh_t + a_{t+1} lambda_{t+1}; dx_t = lambda_t; dlog a_t = lambda_t a_t h_{t-1}.
template <int V, bool kPartial, bool kConstant>
HWY_NOINLINE void ReverseRows(const DiagonalScan& scan, const ScanSegment& segment, int64_t channel,
                              size_t rest, const ConstMatrix& h, const ConstMatrix& dh,
                              const DiagonalScanGradients& gradients, float* log_a_sums) {
  const FloatTag d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  FloatVector carry[V], a[V], sum[V];
  for (int v = 0; v < V; ++v) {
    carry[v] = StateOf<kPartial>(segment.state_out_gradient, channel + v * lanes, rest);
    sum[v] = hn::Zero(d);
    a[v] = kConstant ? ConstantOf<kPartial>(scan, channel + v * lanes, rest) : hn::Zero(d);
  }
  for (int64_t t = segment.length - 1; t >= 0; --t) {
    const int64_t row = segment.first_row + t;
    for (int v = 0; v < V; ++v) {
      const int64_t c = channel + v * lanes;
      if constexpr (!kConstant) a[v] = DecayOf(LoadSome<kPartial>(scan.log_a.row(row) + c, rest));
      const FloatVector lambda = hn::Add(LoadSome<kPartial>(dh.row(row) + c, rest), carry[v]);
      carry[v] = hn::Mul(lambda, a[v]);
      WriteGradient<kPartial>(gradients.x, row, c, lambda, rest);
      const FloatVector before =
          StateOf<kPartial>(t > 0 ? h.row(row - 1) : segment.state_in, c, rest);
      if constexpr (kConstant) {
        sum[v] = hn::MulAdd(carry[v], before, sum[v]);
      } else {
        WriteGradient<kPartial>(gradients.log_a, row, c, hn::Mul(carry[v], before), rest);
      }
    }
  }
  if constexpr (kConstant) {
    for (int v = 0; v < V; ++v) StoreSome<kPartial>(sum[v], log_a_sums + v * lanes, rest);
  }
  if (segment.state_in_gradient == nullptr) return;
  for (int v = 0; v < V; ++v) {
    float* to = segment.state_in_gradient + channel + v * lanes;
    StoreSome<kPartial>(hn::Add(carry[v], LoadSome<kPartial>(to, rest)), to, rest);
  }
}

void Backward(const DiagonalScan& scan, const ScanSegment& segment, Group group,
              const ConstMatrix& h, const ConstMatrix& dh, const DiagonalScanGradients& gradients,
              float* log_a_sums) {
  ForEachBlock(group, [&](auto vectors, auto partial, int64_t channel, size_t rest) {
    constexpr int V = decltype(vectors)::value;
    constexpr bool kPartial = decltype(partial)::value;
    const auto rows =
        scan.constant ? &ReverseRows<V, kPartial, true> : &ReverseRows<V, kPartial, false>;
    rows(scan, segment, channel, rest, h, dh, gradients, log_a_sums + (channel - group.channel));
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pronghorn
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pronghorn {

HWY_EXPORT(Forward);
HWY_EXPORT(ReplayRows);
HWY_EXPORT(Backward);

void cpu_diagonal_scan::forward(const DiagonalScan& scan, const ScanSegment& segment, Group group,
                                const Matrix& h) {
  HWY_DYNAMIC_DISPATCH(Forward)(scan, segment, group, h);
}

void cpu_diagonal_scan::replay(const DiagonalScan& scan, std::span<const float* const> rows,
                               Group group, bool fresh, float* state) {
  HWY_DYNAMIC_DISPATCH(ReplayRows)(scan, rows, group, fresh, state);
}

void cpu_diagonal_scan::backward(const DiagonalScan& scan, const ScanSegment& segment, Group group,
                                 const ConstMatrix& h, const ConstMatrix& dh,
                                 const DiagonalScanGradients& gradients, float* log_a_sums) {
  HWY_DYNAMIC_DISPATCH(Backward)(scan, segment, group, h, dh, gradients, log_a_sums);
}

}  // namespace pronghorn
#endif  // HWY_ONCE
