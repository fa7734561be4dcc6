#include "ops/selective_scan.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/operands.h"

namespace pronghorn {
namespace {

constexpr std::string_view kWhere = "selective_scan";

struct Operands {
  Tensor x, dt_raw, dt_bias, A_log, B, C, D;

  int64_t channels() const { return A_log.rows(); }
  int64_t state_size() const { return A_log.columns(); }
};

SelectiveScan scan_of(const Operands& in) {
  return {in.channels(),           in.state_size(),    input_matrix(in.x),
          input_matrix(in.dt_raw), input_matrix(in.B), input_matrix(in.C),
          input_matrix(in.A_log),  in.dt_bias.data(),  in.D.data()};
}

void check(const Operands& in, const CheckedBatch& batch) {
  const int64_t channels = in.channels(), states = in.state_size(), rows = batch.rows();
  // Messages are put together only when they are needed: this runs for every decoded token.
  const auto expect = [&](const Tensor& tensor, std::string_view name, int64_t height,
                          int64_t width) {
    if (tensor.rows() == height && tensor.columns() == width) return;
    throw Error(kWhere, fmt::format("{} is {}, not [{}, {}]", name, shape_string(tensor.shape()),
                                    height, width));
  };
  require(channels > 0 && states > 0, kWhere, "A_log is [{}, {}]", channels, states);
  expect(in.x, "x", rows, channels);
  expect(in.dt_raw, "dt_raw", rows, channels);
  expect(in.B, "B", rows, states);
  expect(in.C, "C", rows, states);
  expect(in.dt_bias, "dt_bias", 1, channels);
  expect(in.D, "D", 1, channels);
}

// Advances the live state from where it is, or from the anchor, to `row` rows.
void replay(const SelectiveScan& scan, Journal& journal, int64_t row) {
  if (row == 0 || journal.live_row() == row) return;
  const bool ahead = journal.live_row() >= journal.anchor_row() && journal.live_row() < row;
  const int64_t from = ahead ? journal.live_row() : journal.anchor_row();
  float* live = journal.live();
  const bool fresh = !ahead && journal.anchor() == nullptr;
  if (!ahead && !fresh) {
    std::copy_n(journal.anchor(), journal.shape().anchor_size, live);
  }
  std::vector<const float*> rows;
  for (int64_t i = from; i < row; ++i) rows.push_back(journal.row(i));
  backend().scan().selective_replay(scan, rows, fresh, live);
  journal.set_live_row(row);
}

// Makes the live state that of all rows, with at most a fold interval of rows behind the anchor:
// after truncate(), commit_path(), load() and copies.
void catch_up(const SelectiveScan& scan, Journal& journal) {
  const int64_t interval = journal.shape().fold_interval;
  while (journal.length() - journal.anchor_row() > interval) {
    const int64_t fold = (journal.anchor_row() / interval + 1) * interval;
    replay(scan, journal, fold);
    const float* live = journal.live();
    std::copy_n(live, journal.shape().anchor_size, journal.begin_anchor());
    journal.commit_anchor(fold, true);
  }
  replay(scan, journal, journal.length());
}

// What the kernel is told of one segment with state; `rows` and `snapshots` are its addresses.
struct Step {
  std::vector<float*> rows;
  std::vector<ScanSnapshot> snapshots;
};

// Appends the rows of a segment and places the anchors that its tokens need; the kernel then writes
// dt and x into the rows, and the states into the anchors and the live state.
void prepare_chain(const SelectiveScan& scan, const CheckedBatch& batch, const Segment& segment,
                   Journal& journal, Step& step, ScanSegment& to) {
  catch_up(scan, journal);
  const int64_t interval = journal.shape().fold_interval;
  const int64_t start = journal.length(), end = start + segment.length;
  to.state_in = to.state_out = journal.live();
  if (start == 0) to.state_in = nullptr;
  // An anchor comes right before the first token that needs it, so the last token is behind one.
  const int64_t fold = (end - 1) / interval * interval, before = fold - interval;
  const int32_t* positions = batch.positions().data() + segment.first_row;
  int64_t from = start;
  if (before > journal.anchor_row()) {
    // Long: keep the rows since the last anchor but one, which truncate() can go back to.
    journal.skip({positions, static_cast<size_t>(before - start)});
    step.snapshots.push_back({before - start, journal.begin_anchor()});
    journal.commit_anchor(before, false);
    from = before;
  }
  journal.append({positions + (from - start), static_cast<size_t>(end - from)});
  if (fold > journal.anchor_row()) {
    step.snapshots.push_back({fold - start, journal.begin_anchor()});
    journal.commit_anchor(fold, true);
  }
  for (int64_t i = from; i < end; ++i) step.rows.push_back(journal.mutable_row(i));
  to.journal_from = from - start;
  journal.set_live_row(end);
}

void prepare_tree(const SelectiveScan& scan, const CheckedBatch& batch, const Segment& segment,
                  Journal& journal, Step& step, ScanSegment& to) {
  catch_up(scan, journal);
  const int64_t start = journal.length();
  if (start > 0) to.state_in = journal.live();
  journal.append({batch.positions().data() + segment.first_row, segment.parents.size()});
  for (int64_t i = 0; i < segment.length; ++i) {
    step.rows.push_back(journal.mutable_row(start + i));
  }
  journal.set_tree(segment.parents);
}

// The states that the backward pass starts its chunks from: [kChunk boundaries, state_size *
// channels].
std::vector<ScanSnapshot> chunk_snapshots(const Segment& segment, const Tensor& states,
                                          int64_t& next) {
  std::vector<ScanSnapshot> snapshots;
  for (int64_t t = ScanKernels::kChunk; t < segment.length; t += ScanKernels::kChunk) {
    snapshots.push_back({t, states.row(next++)});
  }
  return snapshots;
}

// Everything that the backward pass needs besides the operands.
struct Saved {
  Tensor states;
  std::vector<Step> steps;  // keep the snapshots alive
  std::vector<ScanSegment> segments;
};

void record_backward(const Context& context, const Operands& in, const Tensor& y,
                     std::shared_ptr<const Saved> saved) {
  context.tape->record([in, y, saved = std::move(saved)] {
    if (!y.has_grad()) return;
    const SelectiveScanGradients gradients = {input_gradient(in.x),     input_gradient(in.dt_raw),
                                              input_gradient(in.B),     input_gradient(in.C),
                                              input_gradient(in.A_log), input_gradient(in.dt_bias),
                                              input_gradient(in.D)};
    const Tensor dy = y.grad();
    backend().scan().selective_backward(scan_of(in), saved->segments, input_matrix(dy), gradients);
  });
}

}  // namespace

JournalShape selective_scan_journal(int64_t channels, int64_t state_size) {
  return {"selective_scan", 2 * channels + state_size, channels * state_size, 0, kExactStep, true};
}

Tensor selective_scan(const Context& context, const Tensor& x, const Tensor& dt_raw,
                      const Tensor& dt_bias, const Tensor& A_log, const Tensor& B, const Tensor& C,
                      const Tensor& D, const CheckedBatch& batch, JournalSlot slot) {
  const Operands in{x, dt_raw, dt_bias, A_log, B, C, D};
  check(in, batch);
  const SelectiveScan scan = scan_of(in);
  const Tensor y = Tensor::empty({batch.rows(), in.channels()});
  const bool record = needs_gradient(context, y, x, dt_raw, dt_bias, A_log, B, C, D);

  const auto saved = std::make_shared<Saved>();
  saved->steps.resize(batch.segments().size());
  saved->segments.resize(batch.segments().size());
  if (record) {
    int64_t chunks = 0;
    for (const Segment& segment : batch.segments()) {
      require(segment.state == nullptr, kWhere, "gradients are computed for fresh sequences only");
      chunks += std::max<int64_t>(0, segment.length - 1) / ScanKernels::kChunk;
    }
    saved->states = Tensor::empty({chunks, in.state_size() * in.channels()});
  }
  int64_t next_chunk = 0;
  for (size_t i = 0; i < batch.segments().size(); ++i) {
    const Segment& segment = batch.segments()[i];
    Step& step = saved->steps[i];
    ScanSegment& to = saved->segments[i];
    to.first_row = segment.first_row;
    to.length = segment.length;
    if (segment.length == 0) continue;
    if (!segment.parents.empty()) to.parents = segment.parents.data();
    if (segment.state != nullptr) {
      Journal& journal = segment.state->journal(slot.layer, slot.index);
      const auto prepare = segment.parents.empty() ? prepare_chain : prepare_tree;
      prepare(scan, batch, segment, journal, step, to);
      to.journal_rows = step.rows.data();
    } else if (record) {
      step.snapshots = chunk_snapshots(segment, saved->states, next_chunk);
    }
    to.snapshots = step.snapshots;
  }
  backend().scan().selective_forward(scan, saved->segments, y.data(), y.row_stride());

  for (size_t i = 0; i < batch.segments().size(); ++i) {
    const std::vector<float*>& rows = saved->steps[i].rows;
    const int64_t first = batch.segments()[i].first_row + batch.segments()[i].length -
                          static_cast<int64_t>(rows.size());
    for (size_t j = 0; j < rows.size(); ++j) {
      std::memcpy(rows[j] + 2 * in.channels(), B.row(first + static_cast<int64_t>(j)),
                  static_cast<size_t>(in.state_size()) * sizeof(float));
    }
  }
  if (record) record_backward(context, in, y, saved);
  return y;
}

}  // namespace pronghorn
