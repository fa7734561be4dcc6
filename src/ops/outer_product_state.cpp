#include "ops/outer_product_state.h"

#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/forks.h"
#include "ops/operands.h"
#include "ops/replay.h"
#include "ops/sharded_state.h"
#include "tensor/memory.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "outer_product_state";

// ---- inputs ----

void check_width(const Tensor& tensor, const char* name, int64_t rows, int64_t columns) {
  require(tensor.defined() && tensor.shape().size() == 2 && tensor.rows() == rows &&
              tensor.columns() == columns,
          kWhere, "{} has shape {}, not [{}, {}]", name, tensor.shape(), rows, columns);
}

// Numbers of one row's decays.
int64_t decay_width(const OuterProductStateOptions& options) {
  return options.value_heads * (options.channel_decay ? options.key_dim : 1);
}

// Whether it is one row, which stands for all.
bool is_constant(const Tensor& log_decay) {
  return log_decay.defined() && log_decay.rows() == 1 && !log_decay.requires_grad();
}

OuterProductProblem make_problem(const OuterProductStateInputs& inputs,
                                 const OuterProductStateOptions& options,
                                 const CheckedBatch& batch) {
  require(options.key_heads > 0 && options.value_heads > 0 &&
              options.value_heads % options.key_heads == 0 && options.key_dim > 0 &&
              options.value_dim > 0,
          kWhere, "impossible sizes: {} value heads of {}, {} key heads of {}", options.value_heads,
          options.value_dim, options.key_heads, options.key_dim);
  require(options.updates >= 1 && options.updates <= kMostUpdates &&
              (options.updates == 1 || !options.channel_decay),
          kWhere, "{} updates of a token, at most {}{}", options.updates, kMostUpdates,
          options.channel_decay ? ", and one with a decay per channel" : "");
  const int64_t rows = batch.rows() * options.updates;
  check_width(inputs.q, "q", rows, options.key_heads * options.key_dim);
  check_width(inputs.k, "k", rows, options.key_heads * options.key_dim);
  check_width(inputs.v, "v", rows, options.value_heads * options.value_dim);
  if (inputs.log_decay.defined() || options.channel_decay) {
    const bool constant = is_constant(inputs.log_decay);
    check_width(inputs.log_decay, "log_decay", constant ? 1 : rows, decay_width(options));
  }
  if (inputs.beta.defined()) check_width(inputs.beta, "beta", rows, options.value_heads);
  if (inputs.skip.defined()) {
    require(inputs.skip.size() == options.value_heads && inputs.skip.contiguous(), kWhere,
            "skip has shape {}, not [{}]", inputs.skip.shape(), options.value_heads);
  }
  OuterProductProblem problem;
  problem.value_heads = options.value_heads;
  problem.key_heads = options.key_heads;
  problem.key_dim = options.key_dim;
  problem.value_dim = options.value_dim;
  problem.query_scale = options.query_scale;
  problem.delta_rule = options.delta_rule;
  problem.channel_decay = options.channel_decay;
  problem.q = input_matrix(inputs.q);
  problem.k = input_matrix(inputs.k);
  problem.v = input_matrix(inputs.v);
  problem.log_decay = input_matrix(inputs.log_decay);
  if (is_constant(inputs.log_decay)) problem.log_decay.stride = 0;
  problem.beta = input_matrix(inputs.beta);
  problem.skip = inputs.skip.defined() ? inputs.skip.data() : nullptr;
  problem.rows = rows;
  return problem;
}

// Numbers of one update in a journal row.
int64_t update_width(const OuterProductStateOptions& options) {
  return options.key_heads * options.key_dim + options.value_heads * options.value_dim +
         decay_width(options);
}

// ---- chunks ----

// Numbers the chunks of the segments, in rows of the batch, and makes them those of all updates;
// returns how many chunks there are.
int64_t number_chunks(std::vector<OuterProductSegment>& segments, int64_t updates) {
  int64_t chunks = 0;
  for (OuterProductSegment& segment : segments) {
    segment.first_row *= updates;
    segment.length *= updates;
    segment.first_chunk = chunks;
    chunks += (segment.length + kOuterProductChunk - 1) / kOuterProductChunk;
  }
  return chunks;
}

// What the backward pass needs besides the inputs.
struct Saved {
  std::vector<OuterProductSegment> segments;
  Tensor states, residuals;  // as OuterProductSaved
  StateForks forks;
  Tensor left;  // states that segments go on from
};

void record_backward(Tape& tape, const OuterProductStateInputs& inputs,
                     const OuterProductProblem& problem, const Tensor& out, Saved kept) {
  tape.record([inputs, problem, out, kept = std::move(kept)]() mutable {
    if (!out.has_grad()) return;
    const Tensor out_grad = out.grad();
    const Tensor& residuals = kept.residuals;
    Tensor left_grad;
    if (kept.left.defined()) {
      left_grad = Tensor::zeros(kept.left.shape());
      kept.forks.link_gradients(left_grad, std::span(kept.segments));
    }
    OuterProductSaved saved;
    saved.states = kept.states.data();
    if (residuals.defined()) saved.residuals = residuals.data();
    OuterProductGradients gradients;
    gradients.q = input_gradient(inputs.q);
    gradients.k = input_gradient(inputs.k);
    gradients.v = input_gradient(inputs.v);
    gradients.log_decay = input_gradient(inputs.log_decay);
    gradients.beta = input_gradient(inputs.beta);
    gradients.skip = input_gradient(inputs.skip);
    backend().outer_product_state().backward(problem, kept.segments, input_matrix(out_grad), saved,
                                             gradients);
  });
}

// ---- steps ----

using Sequences = std::span<const std::span<const ReplayStep>>;

// Planned steps in which each update of a token is a token.
class UpdateSteps {
 public:
  UpdateSteps(const OuterProductStateOptions& options, Sequences planned)
      : updates_(options.updates), width_(update_width(options)) {
    if (updates_ == 1) {
      sequences_ = planned;
      return;
    }
    kept_ = std::make_unique<Kept>();
    for (const std::span<const ReplayStep> steps : planned) {
      PooledVector<ReplayStep>& all = kept_->steps.emplace_back();
      for (const ReplayStep& step : steps) {
        all.push_back(
            {{step.fold.anchor, apart(step.fold.rows, nullptr), step.fold.to}, apart(step.tokens)});
      }
    }
    for (const PooledVector<ReplayStep>& steps : kept_->steps) kept_->sequences.emplace_back(steps);
    sequences_ = kept_->sequences;
  }
  UpdateSteps(const UpdateSteps&) = delete;
  UpdateSteps& operator=(const UpdateSteps&) = delete;

  Sequences sequences() const { return sequences_; }

 private:
  // The updates of journal rows, and then those of one more, unless it is null.
  std::span<const float* const> apart(std::span<const float* const> rows, const float* last) {
    PooledVector<const float*>& all = kept_->rows.emplace_back();
    const auto add = [&](const float* row) {
      for (int64_t u = 0; u < updates_; ++u) all.push_back(row + u * width_);
    };
    for (const float* row : rows) add(row);
    if (last != nullptr) add(last);
    return all;
  }

  std::span<const ReplayToken> apart(std::span<const ReplayToken> tokens) {
    PooledVector<ReplayToken>& all = kept_->tokens.emplace_back();
    for (const ReplayToken& token : tokens) {
      const std::span<const float* const> path = apart(token.path, token.row);
      const size_t before = token.path.size() * static_cast<size_t>(updates_);
      for (int64_t u = 0; u < updates_; ++u) {
        all.push_back({token.input_row * updates_ + u, token.depth, token.row + u * width_,
                       path.first(before + static_cast<size_t>(u))});
      }
    }
    return all;
  }

  // Deques: what they hold stays where it is.
  struct Kept {
    std::deque<PooledVector<ReplayStep>> steps;
    std::deque<PooledVector<const float*>> rows;
    std::deque<PooledVector<ReplayToken>> tokens;
    std::vector<std::span<const ReplayStep>> sequences;
  };

  int64_t updates_, width_;
  Sequences sequences_;
  std::unique_ptr<Kept> kept_;  // null with one update: a decoded token takes no memory
};

void catch_up(const OuterProductProblem& problem, const OuterProductStateOptions& options,
              Replay& replay) {
  catch_up_by_steps(replay, [&](Sequences sequences) {
    const UpdateSteps steps(options, sequences);
    backend().outer_product_state().step(problem, steps.sequences(), {});
  });
}

// Tokens of sequences with a state, step by step.
void run_steps(const OuterProductProblem& problem, const OuterProductStateOptions& options,
               Replay& replay, const Matrix& out) {
  if (replay.empty()) return;
  catch_up(problem, options, replay);
  const int64_t keys = problem.key_heads * problem.key_dim;
  const int64_t values = problem.value_heads * problem.value_dim;
  const UpdateSteps planned(options, replay.steps());
  const Sequences sequences = planned.sequences();
  PooledVector<RowCopy> copies;
  const auto add = [&](const float* from, float* to, int64_t count) {
    copies.push_back({from, to, static_cast<size_t>(count) * sizeof(float)});
  };
  for (const std::span<const ReplayStep> steps : sequences) {
    for (const ReplayStep& step : steps) {
      for (const ReplayToken& token : step.tokens) {
        add(problem.k.row(token.input_row), token.row, keys);
        if (problem.channel_decay) continue;  // the kernel writes them
        float* log_decay = token.row + keys + values;
        if (problem.log_decay.data != nullptr) {
          add(problem.log_decay.row(token.input_row), log_decay, problem.value_heads);
        } else {
          memory().fill({log_decay, problem.value_heads}, 1, problem.value_heads, 0);
        }
      }
    }
  }
  memory().copy(copies);
  backend().outer_product_state().step(problem, sequences, out);
}

}  // namespace

JournalShape outer_product_state_journal(const OuterProductStateOptions& options) {
  JournalShape shape;
  shape.name = "state";
  shape.row_width = options.updates * update_width(options);
  shape.anchor_size = options.value_heads * options.key_dim * options.value_dim;
  shape.fold_interval = kExactStep;
  shape.forks = true;
  return shape;
}

Tensor outer_product_state(const Context& context, const OuterProductStateInputs& inputs,
                           const OuterProductStateOptions& options, const CheckedBatch& batch,
                           JournalSlot slot) {
  const OuterProductProblem problem = make_problem(inputs, options, batch);
  if (batch.shards() != nullptr) {
    return sharded_outer_product_state(context, inputs, options, *batch.shards(), slot);
  }
  const Tensor out = Tensor::empty({problem.rows, options.value_heads * options.value_dim});
  const Matrix out_rows = output_matrix(out);
  const bool record = needs_gradient(context, out, inputs.q, inputs.k, inputs.v, inputs.log_decay,
                                     inputs.beta, inputs.skip);

  check_recurrence(kWhere, batch, record, true);

  ReplayCut cut(batch, slot);
  run_steps(problem, options, cut.first, out_rows);
  catch_up(problem, options, cut.bulk);
  std::vector<OuterProductSegment> chunked = chunked_segments<OuterProductSegment>(batch, cut.bulk);
  if (!chunked.empty()) {
    const int64_t chunks = number_chunks(chunked, options.updates);
    const int64_t state_size = options.value_heads * options.key_dim * options.value_dim;
    Saved kept{{}, {}, {}, StateForks(batch), {}};
    if (kept.forks.any()) {
      kept.left = kept.forks.room(state_size);
      kept.forks.link(kept.left, std::span(chunked));
    }
    OuterProductSaved saved;
    if (record) {
      kept.states = Tensor::empty({chunks, state_size});
      saved.states = kept.states.data();
      if (options.delta_rule) {
        kept.residuals = Tensor::empty(out.shape());
        saved.residuals = kept.residuals.data();
      }
    }
    backend().outer_product_state().forward(problem, chunked, out_rows, saved);
    if (record) {
      kept.segments = std::move(chunked);
      record_backward(*context.tape, inputs, problem, out, std::move(kept));
    }
  }
  run_steps(problem, options, cut.rest, out_rows);
  return out;
}

}  // namespace pronghorn
