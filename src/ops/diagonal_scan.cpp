#include "ops/diagonal_scan.h"

#include <memory>
#include <utility>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/operands.h"
#include "ops/scan_segments.h"
#include "ops/sharded_state.h"

namespace pronghorn {
namespace {

constexpr const char* kScan = "diagonal_scan";
constexpr const char* kSsm = "diagonal_ssm";

// Messages are put together only when they are needed: this runs for every decoded token.
void expect(const char* where, const Tensor& tensor, std::string_view name, int64_t rows,
            int64_t columns) {
  if (tensor.rows() == rows && tensor.columns() == columns) return;
  throw Error(where, fmt::format("{} is {}, not [{}, {}]", name, tensor.shape(), rows, columns));
}

struct ScanOperands {
  Tensor log_a, x;
  bool constant = false, sum = false;
  float period = 0;

  DiagonalScan scan() const {
    return {x.columns(), constant, input_matrix(log_a), input_matrix(x), sum, period};
  }
};

struct SsmOperands {
  Tensor u, poles, reads, D;

  int64_t channels() const { return poles.columns(); }
  int64_t modes() const { return poles.rows() / 2; }
  DiagonalSsm scan() const {
    return {channels(),          modes(), input_matrix(u), input_matrix(poles),
            input_matrix(reads), D.data()};
  }
};

// Runs forward(segments) over what `replay` plans and the segments without a state, after the live
// states are up to date.
template <typename Advance, typename Forward>
void run_scan(const CheckedBatch& batch, JournalSlot slot, PooledVector<ScanSegment>& segments,
              const Advance& advance, const Forward& forward) {
  Replay replay(batch, slot);
  replay.catch_up_live(advance);
  add_scan_segments(replay.runs(), segments);
  forward(segments);
}

Tensor scanned(const Context& context, const ScanOperands& in, const CheckedBatch& batch,
               JournalSlot slot) {
  require(in.x.columns() > 0, kScan, "x has no columns");
  expect(kScan, in.x, "x", batch.rows(), in.x.columns());
  const Tensor h = Tensor::empty({batch.rows(), in.x.columns()});
  const bool record = needs_gradient(context, h, in.log_a, in.x);
  check_recurrence(kScan, batch, record, true);
  const DiagonalScan scan = in.scan();
  DiagonalScanKernels& kernels = backend().diagonal_scan();
  PooledVector<ScanSegment> segments = fresh_scan_segments(batch);
  const ForkedScan forked(batch, (in.sum ? 2 : 1) * scan.channels, segments);
  run_scan(
      batch, slot, segments,
      [&](std::span<const float* const> rows, bool fresh, float* state) {
        kernels.replay(scan, rows, fresh, state);
      },
      [&](std::span<const ScanSegment> all) { kernels.forward(scan, all, output_matrix(h)); });
  if (record) {
    context.tape->record([in, h, segments = std::move(segments), forked]() mutable {
      if (!h.has_grad()) return;
      const DiagonalScanGradients gradients = {input_gradient(in.log_a), input_gradient(in.x)};
      const Tensor dh = h.grad(), left_grad = forked.take_gradients(segments);
      backend().diagonal_scan().backward(in.scan(), segments, input_matrix(h), input_matrix(dh),
                                         gradients);
    });
  }
  return h;
}

}  // namespace

JournalShape diagonal_scan_journal(int64_t channels, bool constant_decay) {
  JournalShape shape{kScan, constant_decay ? channels : 2 * channels, channels, 0, kExactStep,
                     true};
  shape.forks = true;
  return shape;
}

Tensor diagonal_scan(const Context& context, const Tensor& log_a, const Tensor& x,
                     const CheckedBatch& batch, JournalSlot slot) {
  const bool constant = log_a.shape().size() == 1;
  expect(kScan, log_a, "log_a", constant ? 1 : batch.rows(), x.columns());
  if (batch.shards() != nullptr) {
    return sharded_diagonal_scan(context, log_a, x, *batch.shards(), slot);
  }
  return scanned(context, {log_a, x, constant, false, 0}, batch, slot);
}

JournalShape running_sum_journal(int64_t channels) {
  JournalShape shape{"running_sum", channels, 2 * channels, 0, kExactStep, true};
  shape.forks = true;
  return shape;
}

Tensor running_sum(const Context& context, const Tensor& x, float period, const CheckedBatch& batch,
                   JournalSlot slot) {
  require(period >= 0, "running_sum", "a period of {}", period);
  if (batch.shards() != nullptr) {
    return sharded_running_sum(context, x, period, *batch.shards(), slot);
  }
  return scanned(context, {{}, x, true, true, period}, batch, slot);
}

JournalShape diagonal_ssm_journal(int64_t channels, int64_t modes) {
  JournalShape shape{kSsm, channels, 2 * modes * channels, 0, kExactStep, true};
  shape.forks = true;
  return shape;
}

Tensor diagonal_ssm(const Context& context, const Tensor& u, const Tensor& poles,
                    const Tensor& reads, const Tensor& D, const CheckedBatch& batch,
                    JournalSlot slot) {
  const SsmOperands in{u, poles, reads, D};
  require(in.channels() > 0 && in.modes() > 0, kSsm, "poles are [{}, {}]", poles.rows(),
          poles.columns());
  expect(kSsm, u, "u", batch.rows(), in.channels());
  expect(kSsm, poles, "poles", 2 * in.modes(), in.channels());
  expect(kSsm, reads, "reads", 2 * in.modes(), in.channels());
  expect(kSsm, D, "D", 1, in.channels());
  const Tensor y = Tensor::empty({batch.rows(), in.channels()});
  const bool record = needs_gradient(context, y, u, poles, reads, D);
  check_recurrence(kSsm, batch, record, true);
  std::shared_ptr<ScanCheckpoints> checkpoints;
  if (record) {
    checkpoints = std::make_shared<ScanCheckpoints>(batch, DiagonalScanKernels::kChunk,
                                                    2 * in.modes() * in.channels());
  }
  const DiagonalSsm scan = in.scan();
  DiagonalScanKernels& kernels = backend().diagonal_scan();
  PooledVector<ScanSegment> segments = fresh_scan_segments(batch, checkpoints.get());
  const ForkedScan forked(batch, 2 * in.modes() * in.channels(), segments);
  run_scan(
      batch, slot, segments,
      [&](std::span<const float* const> rows, bool fresh, float* state) {
        kernels.ssm_replay(scan, rows, fresh, state);
      },
      [&](std::span<const ScanSegment> all) { kernels.ssm_forward(scan, all, output_matrix(y)); });
  if (record) {
    context.tape->record([in, y, checkpoints, segments = std::move(segments), forked]() mutable {
      if (!y.has_grad()) return;
      const DiagonalSsmGradients gradients = {input_gradient(in.u), input_gradient(in.poles),
                                              input_gradient(in.reads), input_gradient(in.D)};
      const Tensor dy = y.grad(), left_grad = forked.take_gradients(segments);
      backend().diagonal_scan().ssm_backward(in.scan(), segments, input_matrix(dy), gradients);
    });
  }
  return y;
}

}  // namespace pronghorn
