#include "ops/selective_scan.h"

#include <memory>
#include <utility>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/operands.h"
#include "ops/replay.h"
#include "ops/scan_segments.h"
#include "ops/sharded_state.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "selective_scan";

struct Operands : SelectiveScanInputs {
  int64_t channels() const { return A_log.rows(); }
  int64_t state_size() const { return A_log.columns(); }
};

int64_t rates_size(const Tensor& A_log) {
  return backend().scan().rates_size(A_log.rows(), A_log.columns());
}

SelectiveScan scan_of(const Operands& in) {
  return {in.channels(),
          in.state_size(),
          input_matrix(in.x),
          input_matrix(in.dt_raw),
          input_matrix(in.B),
          input_matrix(in.C),
          input_matrix(in.A_log),
          in.dt_bias.data(),
          in.D.data(),
          in.rates.defined() ? in.rates.data() : nullptr};
}

void check(const Operands& in, const CheckedBatch& batch) {
  const int64_t channels = in.channels(), states = in.state_size(), rows = batch.rows();
  // Messages are put together only when they are needed: this runs for every decoded token.
  const auto expect = [&](const Tensor& tensor, std::string_view name, int64_t height,
                          int64_t width) {
    if (tensor.rows() == height && tensor.columns() == width) return;
    throw Error(kWhere, fmt::format("{} is {}, not [{}, {}]", name, tensor.shape(), height, width));
  };
  require(channels > 0 && states > 0, kWhere, "A_log is [{}, {}]", channels, states);
  expect(in.x, "x", rows, channels);
  expect(in.dt_raw, "dt_raw", rows, channels);
  expect(in.B, "B", rows, states);
  expect(in.C, "C", rows, states);
  expect(in.dt_bias, "dt_bias", 1, channels);
  expect(in.D, "D", 1, channels);
  if (in.rates.defined()) expect(in.rates, "rates", 1, rates_size(in.A_log));
}

// Everything that the backward pass needs besides the operands.
struct Saved {
  ScanCheckpoints checkpoints;
  PooledVector<ScanSegment> segments;
  ForkedScan forked;
};

std::shared_ptr<Saved> make_saved(const Operands& in, const CheckedBatch& batch) {
  return std::make_shared<Saved>(
      Saved{{batch, ScanKernels::kChunk, in.state_size() * in.channels()}, {}, {}});
}

SelectiveScanGradients gradients_of(const Operands& in) {
  return {input_gradient(in.x), input_gradient(in.dt_raw), input_gradient(in.B),
          input_gradient(in.C), input_gradient(in.A_log),  input_gradient(in.dt_bias),
          input_gradient(in.D)};
}

void record_backward(const Context& context, const Operands& in, const Tensor& y,
                     std::shared_ptr<Saved> saved) {
  context.tape->record([in, y, saved = std::move(saved)] {
    if (!y.has_grad()) return;
    const SelectiveScanGradients gradients = gradients_of(in);
    const Tensor dy = y.grad(), left_grad = saved->forked.take_gradients(saved->segments);
    backend().scan().selective_backward(scan_of(in), saved->segments, input_matrix(dy), gradients);
  });
}

}  // namespace

Tensor selective_scan_rates(const Tensor& A_log) {
  const Tensor rates = Tensor::empty({rates_size(A_log)});
  backend().scan().make_rates(input_matrix(A_log), A_log.rows(), A_log.columns(), rates.data());
  return rates;
}

JournalShape selective_scan_journal(int64_t channels, int64_t state_size) {
  JournalShape shape{
      "selective_scan", 2 * channels + state_size, channels * state_size, 0, kExactStep, true};
  shape.forks = true;
  return shape;
}

Tensor selective_scan(const Context& context, const Tensor& x, const Tensor& dt_raw,
                      const Tensor& dt_bias, const Tensor& A_log, const Tensor& B, const Tensor& C,
                      const Tensor& D, const CheckedBatch& batch, JournalSlot slot,
                      const Tensor& rates) {
  const Operands in{{x, dt_raw, dt_bias, A_log, B, C, D, rates}};
  check(in, batch);
  if (batch.shards() != nullptr) return sharded_selective_scan(context, in, *batch.shards(), slot);
  const SelectiveScan scan = scan_of(in);
  const Tensor y = Tensor::empty({batch.rows(), in.channels()});
  const bool record = needs_gradient(context, y, x, dt_raw, dt_bias, A_log, B, C, D);

  check_recurrence(kWhere, batch, record, true);

  std::shared_ptr<Saved> saved;
  if (record) {
    saved = make_saved(in, batch);
  }
  PooledVector<ScanSegment> segments =
      fresh_scan_segments(batch, record ? &saved->checkpoints : nullptr);
  ForkedScan forked(batch, in.state_size() * in.channels(), segments);
  Replay replay(batch, slot);
  ScanKernels& kernels = backend().scan();
  replay.catch_up_live([&](std::span<const float* const> rows, bool fresh, float* state) {
    kernels.selective_replay(scan, rows, fresh, state);
  });
  // The kernel writes dt and x into the rows, and states into the anchors and the live state.
  const std::span<const ReplayRun> runs = replay.runs();
  add_scan_segments(runs, segments);
  kernels.selective_forward(scan, segments, y.data(), y.row_stride());
  copy_rows(runs, B, 2 * in.channels());
  if (record) {
    saved->segments = std::move(segments);
    saved->forked = std::move(forked);
    record_backward(context, in, y, saved);
  }
  return y;
}

SelectiveScanResult selective_scan_from(const Context& context, const SelectiveScanInputs& inputs,
                                        const Tensor& before, const CheckedBatch& batch) {
  const Operands in{inputs};
  check(in, batch);
  const int64_t size = in.state_size() * in.channels();
  const Tensor y = Tensor::empty({batch.rows(), in.channels()});
  const Tensor state = Tensor::empty({std::ssize(batch.segments()), size});
  const bool record =
      needs_gradient(context, y, in.x, in.dt_raw, in.dt_bias, in.A_log, in.B, in.C, in.D, before);
  check_recurrence(kWhere, batch, record);
  std::shared_ptr<Saved> saved;
  if (record) saved = make_saved(in, batch);
  PooledVector<ScanSegment> segments =
      fresh_scan_segments(batch, record ? &saved->checkpoints : nullptr);
  require(std::ssize(segments) == state.rows() &&
              (!before.defined() || before.shape() == state.shape()),
          kWhere, "{} segments without a state, of {}, that begin with {}", segments.size(),
          state.rows(), before.defined() ? before.rows() : 0);
  for (size_t i = 0; i < segments.size(); ++i) {
    const auto row = static_cast<int64_t>(i);
    if (before.defined()) segments[i].state_in = before.row(row);
    segments[i].state_out = state.row(row);
  }
  backend().scan().selective_forward(scan_of(in), segments, y.data(), y.row_stride());
  if (!record) return {y, state};

  state.set_requires_grad(true);
  saved->segments = std::move(segments);
  context.tape->record([in, before, y, state, saved = std::move(saved)] {
    if (!y.has_grad() && !state.has_grad()) return;
    const Tensor dy = y.has_grad() ? y.grad() : Tensor::zeros(y.shape());
    const Tensor d_state = state.has_grad() ? state.grad() : Tensor();
    const Tensor d_before = before.requires_grad() ? Tensor::zeros(before.shape()) : Tensor();
    for (size_t i = 0; i < saved->segments.size(); ++i) {
      ScanSegment& segment = saved->segments[i];
      if (d_state.defined()) segment.state_out_gradient = d_state.row(static_cast<int64_t>(i));
      if (d_before.defined()) segment.state_in_gradient = d_before.row(static_cast<int64_t>(i));
    }
    backend().scan().selective_backward(scan_of(in), saved->segments, input_matrix(dy),
                                        gradients_of(in));
    if (d_before.defined()) before.give_grad(d_before);
  });
  return {y, state};
}

}  // namespace pronghorn
