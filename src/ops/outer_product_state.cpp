#include "ops/outer_product_state.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/operands.h"

namespace pronghorn {
namespace {

constexpr const char* kWhere = "outer_product_state";

// ---- inputs ----

void check_width(const Tensor& tensor, const char* name, int64_t rows, int64_t columns) {
  require(tensor.defined() && tensor.shape().size() == 2 && tensor.rows() == rows &&
              tensor.columns() == columns,
          kWhere, "{} has shape {}, not [{}, {}]", name, shape_string(tensor.shape()), rows,
          columns);
}

OuterProductProblem make_problem(const OuterProductStateInputs& inputs,
                                 const OuterProductStateOptions& options,
                                 const CheckedBatch& batch) {
  require(options.key_heads > 0 && options.value_heads > 0 &&
              options.value_heads % options.key_heads == 0 && options.key_dim > 0 &&
              options.value_dim > 0,
          kWhere, "impossible sizes: {} value heads of {}, {} key heads of {}", options.value_heads,
          options.value_dim, options.key_heads, options.key_dim);
  const int64_t rows = batch.rows();
  check_width(inputs.q, "q", rows, options.key_heads * options.key_dim);
  check_width(inputs.k, "k", rows, options.key_heads * options.key_dim);
  check_width(inputs.v, "v", rows, options.value_heads * options.value_dim);
  if (inputs.log_decay.defined()) {
    check_width(inputs.log_decay, "log_decay", rows, options.value_heads);
  }
  if (inputs.beta.defined()) check_width(inputs.beta, "beta", rows, options.value_heads);
  if (inputs.skip.defined()) {
    require(inputs.skip.size() == options.value_heads && inputs.skip.contiguous(), kWhere,
            "skip has shape {}, not [{}]", shape_string(inputs.skip.shape()), options.value_heads);
  }
  OuterProductProblem problem;
  problem.value_heads = options.value_heads;
  problem.key_heads = options.key_heads;
  problem.key_dim = options.key_dim;
  problem.value_dim = options.value_dim;
  problem.query_scale = options.query_scale;
  problem.delta_rule = options.delta_rule;
  problem.q = input_matrix(inputs.q);
  problem.k = input_matrix(inputs.k);
  problem.v = input_matrix(inputs.v);
  problem.log_decay = input_matrix(inputs.log_decay);
  problem.beta = input_matrix(inputs.beta);
  problem.skip = inputs.skip.defined() ? inputs.skip.data() : nullptr;
  problem.rows = rows;
  return problem;
}

// ---- chunks ----

// Numbers the chunks of the segments; returns how many there are.
int64_t number_chunks(std::vector<OuterProductSegment>& segments) {
  int64_t chunks = 0;
  for (OuterProductSegment& segment : segments) {
    segment.first_chunk = chunks;
    chunks += (segment.length + kOuterProductChunk - 1) / kOuterProductChunk;
  }
  return chunks;
}

void record_backward(Tape& tape, const OuterProductStateInputs& inputs,
                     const OuterProductProblem& problem, std::vector<OuterProductSegment> segments,
                     const Tensor& out, Tensor states, Tensor residuals) {
  tape.record([inputs, problem, segments = std::move(segments), out, states = std::move(states),
               residuals = std::move(residuals)] {
    if (!out.has_grad()) return;
    const Tensor out_grad = out.grad();
    OuterProductSaved saved;
    saved.states = states.data();
    if (residuals.defined()) saved.residuals = residuals.data();
    OuterProductGradients gradients;
    gradients.q = input_gradient(inputs.q);
    gradients.k = input_gradient(inputs.k);
    gradients.v = input_gradient(inputs.v);
    gradients.log_decay = input_gradient(inputs.log_decay);
    gradients.beta = input_gradient(inputs.beta);
    gradients.skip = input_gradient(inputs.skip);
    backend().outer_product_state().backward(problem, segments, input_matrix(out_grad), saved,
                                             gradients);
  });
}

// ---- steps ----

// Tokens of one sequence that are computed step by step, and what the kernel needs of them. Filled
// in two passes, because spans into the vectors are taken only once those no longer grow.
class StepPlan {
 public:
  // Rows first_row ... first_row + length - 1 of the batch. The journal holds an anchor at the last
  // multiple of kExactStep. Appends journal rows for them.
  StepPlan(Journal& journal, const OuterProductProblem& problem, const CheckedBatch& batch,
           int64_t first_row, int64_t length, std::span<const int32_t> parents)
      : journal_(journal), problem_(problem), base_(journal.length()), first_row_(first_row) {
    journal.append(
        batch.positions().subspan(static_cast<size_t>(first_row), static_cast<size_t>(length)));
    tree_ = !parents.empty();
    for (int64_t i = 0; i < length; ++i) {
      const int64_t parent = tree_ ? parents[static_cast<size_t>(i)] : i - 1;
      add_token(i, parent);
    }
    finish();
  }

  std::span<const OuterProductStep> steps() const { return steps_; }

  // Once the kernel has run: keeps the anchor of a chain that crossed a multiple of kExactStep.
  void commit(std::span<const int32_t> parents) {
    if (new_anchor_row_ >= 0) journal_.commit_anchor(new_anchor_row_, true);
    if (tree_) journal_.set_tree({parents.begin(), parents.end()});
  }

 private:
  // Tokens that share an anchor. `last`: the token whose path the anchor was folded from, -1 for
  // the journal's own.
  struct Group {
    int64_t last = -1;
    std::vector<const float*> fold;
    const float* anchor = nullptr;
    float* fold_to = nullptr;
    std::vector<OuterProductToken> tokens;
  };
  struct Node {
    int64_t index;  // in its sequence
    size_t group;
    const float* row;
    std::vector<const float*> path;  // rows since the anchor of its group
  };

  void add_token(int64_t i, int64_t parent) {
    Node node;
    node.index = parent < 0 ? base_ : nodes_[static_cast<size_t>(parent)].index + 1;
    float* row = journal_.mutable_row(base_ + i);
    write_row(first_row_ + i, row);
    node.row = row;
    if (parent < 0) {
      if (groups_.empty()) {
        groups_.emplace_back();
        groups_.back().anchor = journal_.anchor();
        for (int64_t r = journal_.anchor_row(); r < base_; ++r) {
          committed_.push_back(journal_.row(r));
        }
      }
      node.group = 0;
      node.path = committed_;
    } else {
      const Node& above = nodes_[static_cast<size_t>(parent)];
      node.path = above.path;
      node.path.push_back(above.row);
      node.group = above.group;
      if (node.index % kExactStep == 0) {
        node.group = group_after(parent, node.path);
        node.path.clear();
      }
    }
    nodes_.push_back(std::move(node));
  }

  // The group of tokens after `last`, whose index is the last before a multiple of kExactStep.
  size_t group_after(int64_t last, const std::vector<const float*>& path) {
    for (size_t g = 0; g < groups_.size(); ++g) {
      if (groups_[g].last == last) return g;
    }
    Group group;
    group.last = last;
    group.fold = path;
    const Node& node = nodes_[static_cast<size_t>(last)];
    const Group& before = groups_[node.group];
    group.anchor = before.fold_to != nullptr ? before.fold_to : before.anchor;
    if (tree_ || new_anchor_row_ >= 0) {
      temporary_.push_back(std::make_unique<Storage>(
          static_cast<size_t>(journal_.shape().anchor_size) * sizeof(float)));
      group.fold_to = reinterpret_cast<float*>(temporary_.back()->data());
    } else {
      group.fold_to = journal_.begin_anchor();
      new_anchor_row_ = node.index + 1;
    }
    groups_.push_back(std::move(group));
    return groups_.size() - 1;
  }

  // k and log_decay of a batch row into its journal row.
  void write_row(int64_t input_row, float* row) const {
    const int64_t keys = problem_.key_heads * problem_.key_dim;
    std::memcpy(row, problem_.k.row(input_row), static_cast<size_t>(keys) * sizeof(float));
    float* log_decay = row + keys + problem_.value_heads * problem_.value_dim;
    for (int64_t h = 0; h < problem_.value_heads; ++h) {
      log_decay[h] =
          problem_.log_decay.data != nullptr ? problem_.log_decay.row(input_row)[h] : 0.0f;
    }
  }

  void finish() {
    for (size_t i = 0; i < nodes_.size(); ++i) {
      OuterProductToken token;
      token.input_row = first_row_ + static_cast<int64_t>(i);
      token.row = journal_.mutable_row(base_ + static_cast<int64_t>(i));
      token.path = nodes_[i].path;
      groups_[nodes_[i].group].tokens.push_back(token);
    }
    for (const Group& group : groups_) {
      steps_.push_back({group.anchor, group.fold_to, group.fold, group.tokens});
    }
  }

  Journal& journal_;
  const OuterProductProblem& problem_;
  int64_t base_, first_row_;
  bool tree_ = false;
  int64_t new_anchor_row_ = -1;
  std::vector<const float*> committed_;
  std::vector<Node> nodes_;
  std::vector<Group> groups_;
  std::vector<std::unique_ptr<Storage>> temporary_;
  std::vector<OuterProductStep> steps_;
};

// Rows first_row ... of the batch that continue one sequence.
struct Piece {
  Journal* journal;
  int64_t first_row, length;
  std::span<const int32_t> parents;
};

// Folds until every journal's anchor is at the last multiple of kExactStep not after its length.
void catch_up(const OuterProductProblem& problem, std::span<const Piece> pieces) {
  for (;;) {
    std::vector<Journal*> late;
    std::vector<std::vector<const float*>> folds;
    std::vector<OuterProductStep> steps;
    for (const Piece& piece : pieces) {
      Journal& journal = *piece.journal;
      if (piece.length == 0 || journal.length() - journal.anchor_row() < kExactStep) continue;
      std::vector<const float*>& rows = folds.emplace_back();
      for (int64_t i = 0; i < kExactStep; ++i)
        rows.push_back(journal.row(journal.anchor_row() + i));
      steps.push_back({journal.anchor(), journal.begin_anchor(), rows, {}});
      late.push_back(&journal);
    }
    if (late.empty()) return;
    std::vector<std::span<const OuterProductStep>> sequences;
    for (const OuterProductStep& step : steps) sequences.emplace_back(&step, 1);
    backend().outer_product_state().step(problem, sequences, {});
    for (Journal* journal : late) journal->commit_anchor(journal->anchor_row() + kExactStep, true);
  }
}

void run_steps(const OuterProductProblem& problem, const CheckedBatch& batch,
               std::span<const Piece> pieces, const Matrix& out) {
  catch_up(problem, pieces);
  std::vector<StepPlan> plans;
  plans.reserve(pieces.size());
  std::vector<std::span<const OuterProductStep>> sequences;
  std::vector<std::span<const int32_t>> parents;
  for (const Piece& piece : pieces) {
    if (piece.length == 0) continue;
    plans.emplace_back(*piece.journal, problem, batch, piece.first_row, piece.length,
                       piece.parents);
    sequences.push_back(plans.back().steps());
    parents.push_back(piece.parents);
  }
  if (plans.empty()) return;
  backend().outer_product_state().step(problem, sequences, out);
  for (size_t i = 0; i < plans.size(); ++i) plans[i].commit(parents[i]);
}

}  // namespace

JournalShape outer_product_state_journal(const OuterProductStateOptions& options) {
  JournalShape shape;
  shape.name = "state";
  shape.row_width = options.key_heads * options.key_dim + options.value_heads * options.value_dim +
                    options.value_heads;
  shape.anchor_size = options.value_heads * options.key_dim * options.value_dim;
  shape.fold_interval = kExactStep;
  return shape;
}

Tensor outer_product_state(const Context& context, const OuterProductStateInputs& inputs,
                           const OuterProductStateOptions& options, const CheckedBatch& batch,
                           JournalSlot slot) {
  const OuterProductProblem problem = make_problem(inputs, options, batch);
  const Tensor out = Tensor::empty({batch.rows(), options.value_heads * options.value_dim});
  const Matrix out_rows = output_matrix(out);
  const bool record = needs_gradient(context, out, inputs.q, inputs.k, inputs.v, inputs.log_decay,
                                     inputs.beta, inputs.skip);

  // A long segment with state is cut at multiples of kExactStep: steps, chunks, steps.
  std::vector<OuterProductSegment> chunked;
  std::vector<Piece> leading, bulk, trailing;
  for (const Segment& segment : batch.segments()) {
    require(segment.mask == Mask::causal, kWhere, "a recurrence cannot see rows after its own");
    if (segment.state == nullptr) {
      if (segment.length > 0) {
        chunked.push_back({segment.first_row, segment.length, nullptr, nullptr, 0});
      }
      continue;
    }
    require(!record, kWhere, "segments with a state cannot be differentiated");
    Journal& journal = segment.state->journal(slot.layer, slot.index);
    int64_t lead = segment.length, middle = 0;
    if (segment.parents.empty() && segment.length > kExactStep) {
      lead = (kExactStep - journal.length() % kExactStep) % kExactStep;
      middle = (segment.length - lead) / kExactStep * kExactStep;
    }
    const int64_t rest = segment.length - lead - middle;
    leading.push_back({&journal, segment.first_row, lead, segment.parents});
    if (middle > 0) bulk.push_back({&journal, segment.first_row + lead, middle, {}});
    if (rest > 0) trailing.push_back({&journal, segment.first_row + lead + middle, rest, {}});
  }

  run_steps(problem, batch, leading, out_rows);
  catch_up(problem, bulk);
  for (const Piece& piece : bulk) {
    Journal& journal = *piece.journal;
    const float* initial = journal.anchor();
    chunked.push_back({piece.first_row, piece.length, initial, journal.begin_anchor(), 0});
  }
  if (!chunked.empty()) {
    const int64_t chunks = number_chunks(chunked);
    Tensor states, residuals;
    OuterProductSaved saved;
    if (record) {
      const JournalShape shape = outer_product_state_journal(options);
      states = Tensor::empty({chunks, shape.anchor_size});
      saved.states = states.data();
      if (options.delta_rule) {
        residuals = Tensor::empty(out.shape());
        saved.residuals = residuals.data();
      }
    }
    backend().outer_product_state().forward(problem, chunked, out_rows, saved);
    for (const Piece& piece : bulk) {
      piece.journal->skip(
          {batch.positions().data() + piece.first_row, static_cast<size_t>(piece.length)});
      piece.journal->commit_anchor(piece.journal->length(), false);
    }
    if (record) {
      record_backward(*context.tape, inputs, problem, std::move(chunked), out, std::move(states),
                      std::move(residuals));
    }
  }
  run_steps(problem, batch, trailing, out_rows);
  return out;
}

}  // namespace pronghorn
