#include "ops/diagonal_plus_rank_one.h"

#include <utility>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/forks.h"
#include "ops/operands.h"
#include "ops/replay.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "diagonal_plus_rank_one";

void check_width(const Tensor& tensor, const char* name, int64_t rows, int64_t columns) {
  require(tensor.defined() && tensor.shape().size() == 2 && tensor.rows() == rows &&
              tensor.columns() == columns,
          kWhere, "{} has shape {}, not [{}, {}]", name, tensor.shape(), rows, columns);
}

RankOneProblem make_problem(const DiagonalPlusRankOneInputs& inputs,
                            const DiagonalPlusRankOneOptions& options, const CheckedBatch& batch) {
  require(options.heads > 0 && options.key_dim > 0 && options.value_dim > 0, kWhere,
          "impossible sizes: {} heads of {} x {}", options.heads, options.key_dim,
          options.value_dim);
  const int64_t rows = batch.rows(), keys = options.heads * options.key_dim;
  check_width(inputs.q, "q", rows, keys);
  check_width(inputs.log_decay, "log_decay", rows, keys);
  check_width(inputs.k, "k", rows, keys);
  check_width(inputs.v, "v", rows, options.heads * options.value_dim);
  check_width(inputs.a, "a", rows, keys);
  check_width(inputs.b, "b", rows, keys);
  RankOneProblem problem;
  problem.heads = options.heads;
  problem.key_dim = options.key_dim;
  problem.value_dim = options.value_dim;
  problem.query_scale = options.query_scale;
  problem.q = input_matrix(inputs.q);
  problem.log_decay = input_matrix(inputs.log_decay);
  problem.k = input_matrix(inputs.k);
  problem.v = input_matrix(inputs.v);
  problem.a = input_matrix(inputs.a);
  problem.b = input_matrix(inputs.b);
  return problem;
}

// Numbers the spans of the segments; returns how many there are.
int64_t number_spans(std::vector<RankOneSegment>& segments) {
  int64_t spans = 0;
  for (RankOneSegment& segment : segments) {
    segment.first_span = spans;
    spans += (segment.length + kRankOneSpan - 1) / kRankOneSpan;
  }
  return spans;
}

// What the backward pass needs besides the inputs.
struct Saved {
  std::vector<RankOneSegment> segments;
  Tensor states, z;  // as RankOneSaved
  StateForks forks;
  Tensor left;  // states that segments go on from
};

void record_backward(Tape& tape, const DiagonalPlusRankOneInputs& inputs,
                     const RankOneProblem& problem, const Tensor& out, Saved kept) {
  tape.record([inputs, problem, out, kept = std::move(kept)]() mutable {
    if (!out.has_grad()) return;
    const Tensor out_grad = out.grad();
    Tensor left_grad;
    if (kept.left.defined()) {
      left_grad = Tensor::zeros(kept.left.shape());
      kept.forks.link_gradients(left_grad, std::span(kept.segments));
    }
    RankOneGradients gradients;
    gradients.v = input_gradient(inputs.v);
    gradients.q = input_gradient(inputs.q);
    gradients.log_decay = input_gradient(inputs.log_decay);
    gradients.k = input_gradient(inputs.k);
    gradients.a = input_gradient(inputs.a);
    gradients.b = input_gradient(inputs.b);
    backend().diagonal_plus_rank_one().backward(problem, kept.segments, input_matrix(out_grad),
                                                {kept.states.data(), kept.z.data()}, gradients);
  });
}

void catch_up(const RankOneProblem& problem, Replay& replay) {
  catch_up_by_steps(replay, [&](std::span<const std::span<const ReplayStep>> sequences) {
    backend().diagonal_plus_rank_one().step(problem, sequences, {});
  });
}

// Tokens of sequences with a state, step by step.
void run_steps(const RankOneProblem& problem, Replay& replay, const Matrix& out) {
  if (replay.empty()) return;
  catch_up(problem, replay);
  backend().diagonal_plus_rank_one().step(problem, replay.steps(), out);
}

}  // namespace

JournalShape diagonal_plus_rank_one_journal(const DiagonalPlusRankOneOptions& options) {
  JournalShape shape;
  shape.name = "state";
  shape.row_width = options.heads * (3 * options.key_dim + 2 * options.value_dim);
  shape.anchor_size = options.heads * options.key_dim * options.value_dim;
  shape.fold_interval = kExactStep;
  shape.forks = true;
  return shape;
}

Tensor diagonal_plus_rank_one(const Context& context, const DiagonalPlusRankOneInputs& inputs,
                              const DiagonalPlusRankOneOptions& options, const CheckedBatch& batch,
                              JournalSlot slot) {
  const RankOneProblem problem = make_problem(inputs, options, batch);
  const Tensor out = Tensor::empty({batch.rows(), options.heads * options.value_dim});
  const Matrix out_rows = output_matrix(out);
  const bool record = needs_gradient(context, out, inputs.q, inputs.log_decay, inputs.k, inputs.v,
                                     inputs.a, inputs.b);
  check_recurrence(kWhere, batch, record, true);

  ReplayCut cut(batch, slot);
  run_steps(problem, cut.first, out_rows);
  catch_up(problem, cut.bulk);
  std::vector<RankOneSegment> chunked = chunked_segments<RankOneSegment>(batch, cut.bulk);
  if (!chunked.empty()) {
    const int64_t spans = number_spans(chunked);
    const int64_t state_size = options.heads * options.key_dim * options.value_dim;
    Saved kept{{}, {}, {}, StateForks(batch), {}};
    if (kept.forks.any()) {
      kept.left = kept.forks.room(state_size);
      kept.forks.link(kept.left, std::span(chunked));
    }
    if (record) {
      kept.states = Tensor::empty({spans, state_size});
      kept.z = Tensor::empty(out.shape());
    }
    backend().diagonal_plus_rank_one().forward(
        problem, chunked, out_rows,
        record ? RankOneSaved{kept.states.data(), kept.z.data()} : RankOneSaved{});
    if (record) {
      kept.segments = std::move(chunked);
      record_backward(*context.tape, inputs, problem, out, std::move(kept));
    }
  }
  run_steps(problem, cut.rest, out_rows);
  return out;
}

}  // namespace pronghorn
