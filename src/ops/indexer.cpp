#include "ops/indexer.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/attention_operands.h"
#include "ops/attention_units.h"
#include "ops/journal_rows.h"
#include "ops/operands.h"
#include "tensor/sequence_shards.h"

namespace pronghorn {
namespace {

constexpr char kWhere[] = "indexer";

// Its keys, as attention sees keys whose values it does not look at.
AttentionOptions key_options(const IndexerOptions& options) {
  AttentionOptions keys;
  keys.heads = options.heads;
  keys.head_dim = options.head_dim;
  keys.value_in_key = true;
  return keys;
}

void check(const IndexerInputs& in, const IndexerOptions& options, const CheckedBatch& batch) {
  require_whole(batch, kWhere);
  const int64_t rows = batch.rows();
  require(options.heads > 0 && options.head_dim > 0 && options.top > 0 && in.q.rows() == rows &&
              in.q.columns() == options.heads * options.head_dim && in.k.rows() == rows &&
              in.k.columns() == options.head_dim && in.weights.rows() == rows &&
              in.weights.columns() == options.heads,
          kWhere, "q {}, k {} and weights {} for {} rows and {} heads of {}, {} keys", in.q.shape(),
          in.k.shape(), in.weights.shape(), rows, options.heads, options.head_dim, options.top);
  for (const Segment& segment : batch.segments()) {
    require(segment.mask == Mask::causal, kWhere,
            "rows that see later ones, where earlier keys are chosen");
  }
}

IndexerOperands operands_of(const IndexerInputs& in, const IndexerOptions& options) {
  return {attention_shape(key_options(options)), input_matrix(in.q), input_matrix(in.weights)};
}

// The longest list that a row of a segment may have.
int64_t most_keys(const CheckedBatch& batch, JournalSlot slot, int64_t top) {
  int64_t most = 1;
  for (const Segment& segment : batch.segments()) {
    most = std::max(most, segment.state == nullptr
                              ? segment.length
                              : segment.state->journal(slot.layer, slot.index).length());
  }
  return std::min(most, top);
}

}  // namespace

JournalShape indexer_journal(const IndexerOptions& options) {
  JournalShape shape;
  shape.name = "indexer";
  shape.row_width = options.head_dim;
  shape.is_cache = true;
  shape.head_width = options.head_dim;
  return shape;
}

BlockLists choose_keys(const IndexerInputs& inputs, const IndexerOptions& options,
                       const CheckedBatch& batch, JournalSlot slot) {
  check(inputs, options, batch);
  AttentionUnits units(key_options(options));
  for (const Segment& segment : batch.segments()) {
    if (segment.length == 0) continue;
    if (segment.state == nullptr) {
      units.add_fresh(batch, segment, inputs.k, {});
      continue;
    }
    Journal& journal = segment.state->journal(slot.layer, slot.index);
    require(journal.shape().row_width == options.head_dim, kWhere,
            "the journal's rows are {} wide, keys {}", journal.shape().row_width, options.head_dim);
    append_rows(batch, segment, {&inputs.k, 1}, journal);
    if (segment.parents.empty()) {
      units.add_chain(batch, segment, journal);
    } else {
      units.add_tree(batch, segment, journal);
    }
  }
  BlockLists lists;
  lists.lists = lists.block = 1;
  lists.width = most_keys(batch, slot, options.top);
  lists.blocks.resize(static_cast<size_t>(batch.rows() * lists.width));
  backend().attention().choose_keys(operands_of(inputs, options), units.units(), lists.width,
                                    lists.blocks.data());
  return lists;
}

Tensor indexer_loss(const Context& context, const IndexerInputs& inputs,
                    const IndexerOptions& options, const IndexerTeacher& teacher,
                    const CheckedBatch& batch) {
  check(inputs, options, batch);
  AttentionUnits units(teacher.options);
  for (const Segment& segment : batch.segments()) {
    require(segment.state == nullptr, kWhere, "a loss of a segment with a state");
    if (segment.length > 0) units.add_fresh(batch, segment, teacher.k, {});
  }
  const std::array<Tensor, 3> learns = {inputs.q, inputs.k, inputs.weights};
  std::array<Tensor, 3> gradients;
  for (size_t i = 0; i < learns.size(); ++i) gradients[i] = Tensor::zeros(learns[i].shape());
  const Tensor losses = Tensor::zeros({batch.rows()});
  IndexerLoss arguments;
  arguments.indexer = operands_of(inputs, options);
  arguments.k = input_matrix(inputs.k);
  arguments.attention = attention_shape(teacher.options);
  arguments.units = units.units();
  arguments.operands.q = input_matrix(teacher.q);
  arguments.operands.log_sum_exp = teacher.log_sum_exp.data();
  if (teacher.lists.lists > 0) {
    arguments.operands.lists = {teacher.lists.blocks.data(), teacher.lists.lists,
                                teacher.lists.width, teacher.lists.block};
  }
  arguments.losses = losses.data();
  arguments.grad_q = output_matrix(gradients[0]);
  arguments.grad_k = output_matrix(gradients[1]);
  arguments.grad_weights = output_matrix(gradients[2]);
  backend().attention().indexer_loss(arguments);

  const auto count = static_cast<double>(std::max<int64_t>(1, batch.rows()));
  const PooledVector<float> each = losses.read();
  const double sum = std::accumulate(each.begin(), each.end(), 0.0);
  const Tensor loss = Tensor::full({1}, static_cast<float>(sum / count));
  if (!needs_gradient(context, loss, inputs.q, inputs.k, inputs.weights)) return loss;
  context.tape->record([learns, gradients, loss, count] {
    if (!loss.has_grad()) return;
    const auto factor = static_cast<float>(double{loss.grad().read()[0]} / count);
    for (size_t i = 0; i < learns.size(); ++i) {
      if (!learns[i].requires_grad()) continue;
      const GradTarget target = learns[i].grad_target();
      PooledVector<float> to = gradient_so_far(target);
      const PooledVector<float> from = gradients[i].read();
      for (size_t j = 0; j < to.size(); ++j) to[j] += factor * from[j];
      target.tensor.write(to);
    }
  });
  return loss;
}

}  // namespace pronghorn
