#include "ops/sharded_state.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/error.h"
#include "ops/diagonal_scan.h"
#include "ops/exchange.h"
#include "ops/kept_states.h"
#include "ops/pointwise.h"
#include "tensor/batch.h"

namespace pronghorn {
namespace {

// Runs run(batch, slot) on whole sequences with some heads or channels of each rank. Where states
// are kept it has them in states of its own, each [height, columns of this rank], of which the
// first rank gets those of all ranks.
template <typename Run>
Tensor run_whole(const SequenceShards& shards, JournalSlot slot, const JournalShape& shape,
                 int64_t height, std::span<const Columns> of_rank, const Run& run) {
  if (!shards.keeps()) return run(shards.whole(), slot);
  OwnStates states(shards.whole(), shape);
  const Tensor out = run(states.batch(), OwnStates::kSlot);
  const Tensor mine = states.after();
  const int64_t sequences = mine.rows();
  Tensor all =
      columns_at_root(shards, mine.reshape({sequences * height, mine.columns() / height}), of_rank);
  if (all.defined()) all = all.reshape({sequences, all.size() / sequences});
  keep_states(shards, slot, all);
  return out;
}

// ---- outer-product states, heads across ranks ----

Tensor outer_product_by_heads(const Context& context, const OuterProductStateInputs& inputs,
                              const OuterProductStateOptions& options, const SequenceShards& shards,
                              JournalSlot slot) {
  const HeadShares shares(shards, options.value_heads, options.key_heads, "outer_product_state");
  const int64_t decays = options.channel_decay ? options.key_dim : 1;
  // One row of decays stands for all.
  const bool constant = inputs.log_decay.defined() && inputs.log_decay.rows() == 1 &&
                        !inputs.log_decay.requires_grad();
  const SharedColumns parts[] = {{inputs.q, shares.of_shared(options.key_dim)},
                                 {inputs.k, shares.of_shared(options.key_dim)},
                                 {inputs.v, shares.of_heads(options.value_dim)},
                                 {constant ? Tensor() : inputs.log_decay, shares.of_heads(decays)},
                                 {inputs.beta, shares.of_heads(1)}};
  const std::vector<Tensor> whole = to_heads(context, shards, parts);
  OuterProductStateInputs own{whole[0], whole[1], whole[2], whole[3], whole[4], {}};
  if (constant) own.log_decay = shares.own(inputs.log_decay, decays);
  own.skip = shares.own(inputs.skip);
  OuterProductStateOptions few = options;
  few.value_heads = shares.heads();
  few.key_heads = shares.shared_heads();
  const Tensor out = run_whole(shards, slot, outer_product_state_journal(few), 1,
                               shares.of_heads(options.key_dim * options.value_dim),
                               [&](const CheckedBatch& batch, JournalSlot at) {
                                 return outer_product_state(context, own, few, batch, at);
                               });
  return to_rows(context, shards, out, shares.of_heads(options.value_dim));
}

// ---- outer-product states, from piece to piece ----
//
// Rows can write any state and read it. With a unit vector e_j as key, the value S[j] and no decay,
// key_dim rows leave S, with and without the delta rule; with e_j as query and nothing to write,
// row j reads S[j]. So a state that a piece begins with, and the one that it leaves, are rows
// before and after its own, and have their gradients.

// [key_dim, heads key_dim]: row j is e_j for each head, times a factor.
Tensor unit_rows(int64_t heads, int64_t key_dim, float factor) {
  std::vector<float> values(static_cast<size_t>(key_dim * heads * key_dim), 0.0f);
  for (int64_t j = 0; j < key_dim; ++j) {
    for (int64_t head = 0; head < heads; ++head) {
      values[static_cast<size_t>((j * heads + head) * key_dim + j)] = factor;
    }
  }
  return Tensor::from(values, {key_dim, heads * key_dim});
}

// Sequences one below the other, each with rows that write its state before it and rows that read
// it after it.
class FramedRows {
 public:
  // lengths: of the sequences. writes, reads: whether there are such rows.
  FramedRows(const Context& context, const OuterProductStateOptions& options,
             std::vector<int64_t> lengths, bool writes, bool reads)
      : context_(context),
        options_(options),
        lengths_(std::move(lengths)),
        before_(writes ? options.key_dim : 0),
        after_(reads ? options.key_dim : 0) {}

  // before: the states, [sequences key_dim, value_heads value_dim].
  Tensor run(const OuterProductStateInputs& inputs, const Tensor& before) const {
    const int64_t heads = options_.key_heads, dim = options_.key_dim;
    const int64_t values = options_.value_heads * options_.value_dim;
    const int64_t decays = options_.value_heads * (options_.channel_decay ? dim : 1);
    const Tensor no_key = Tensor::zeros({dim, heads * dim});
    const Tensor no_value = Tensor::zeros({dim, values});
    const Tensor no_decay = Tensor::zeros({dim, decays});
    OuterProductStateInputs framed;
    framed.q = framed_rows(inputs.q, no_key, unit_rows(heads, dim, 1 / options_.query_scale));
    framed.k = framed_rows(inputs.k, unit_rows(heads, dim, 1), no_key);
    framed.v = framed_rows(inputs.v, before, no_value);
    if (inputs.log_decay.defined()) {
      framed.log_decay = framed_rows(inputs.log_decay, no_decay, no_decay);
    }
    if (inputs.beta.defined()) {
      framed.beta = framed_rows(inputs.beta, Tensor::full({dim, options_.value_heads}, 1),
                                Tensor::zeros({dim, options_.value_heads}));
    }
    framed.skip = inputs.skip;
    Batch batch;
    for (const int64_t length : lengths_) {
      Segment& segment = batch.segments.emplace_back();
      segment.first_row = batch.rows();
      segment.length = before_ + length + after_;
      batch.positions.resize(static_cast<size_t>(segment.first_row + segment.length), 0);
    }
    return outer_product_state(context_, framed, options_, std::move(batch), {});
  }

  // Of what run() gave: the rows of the sequences themselves, or those that read their states.
  Tensor own(const Tensor& out) const { return parts_of(out, false); }
  Tensor states(const Tensor& out) const { return parts_of(out, true); }

 private:
  // The rows of `first` and `last` are the same for all sequences, or those of each one below the
  // other.
  Tensor framed_rows(const Tensor& own, const Tensor& first, const Tensor& last) const {
    std::vector<Tensor> parts;
    int64_t row = 0;
    const int64_t dim = options_.key_dim;
    for (size_t i = 0; i < lengths_.size(); ++i) {
      if (before_ > 0) {
        const bool shared = first.rows() == dim;
        parts.push_back(shared ? first : first.row_slice(static_cast<int64_t>(i) * dim, dim));
      }
      parts.push_back(own.row_slice(row, lengths_[i]));
      if (after_ > 0) parts.push_back(last);
      row += lengths_[i];
    }
    return concatenate_rows(context_, parts);
  }

  Tensor parts_of(const Tensor& out, bool states) const {
    std::vector<Tensor> parts;
    int64_t row = 0;
    for (const int64_t length : lengths_) {
      row += before_;
      parts.push_back(states ? out.row_slice(row + length, after_) : out.row_slice(row, length));
      row += length + after_;
    }
    return stacked(context_, parts);
  }

  const Context& context_;
  const OuterProductStateOptions& options_;
  std::vector<int64_t> lengths_;
  int64_t before_, after_;
};

// transition [sequences key_dim, value_heads key_dim] times states [sequences key_dim, value_heads
// value_dim], head by head: queries that read what was written.
Tensor times_states(const Context& context, const Tensor& transition, const Tensor& states,
                    const OuterProductStateOptions& options) {
  OuterProductStateOptions plain;
  plain.value_heads = plain.key_heads = options.value_heads;
  plain.key_dim = options.key_dim;
  plain.value_dim = options.value_dim;
  const auto sequences = static_cast<size_t>(transition.rows() / options.key_dim);
  const FramedRows rows(context, plain, std::vector<int64_t>(sequences, options.key_dim), true,
                        false);
  OuterProductStateInputs inputs;
  inputs.q = transition;
  inputs.k = Tensor::zeros(transition.shape());
  inputs.v = Tensor::zeros(states.shape());
  return rows.own(rows.run(inputs, states));
}

// States [sequences key_dim, value_heads value_dim] as journals have them: [sequences, value_heads
// key_dim value_dim].
Tensor anchors_of(const Tensor& states, const OuterProductStateOptions& options) {
  const int64_t heads = options.value_heads, keys = options.key_dim, values = options.value_dim;
  const int64_t size = heads * keys * values, sequences = states.size() / size;
  const PooledVector<float> from = states.read();
  PooledVector<float> to(from.size());
  for (int64_t sequence = 0; sequence < sequences; ++sequence) {
    for (int64_t key = 0; key < keys; ++key) {
      for (int64_t head = 0; head < heads; ++head) {
        std::copy_n(from.begin() + ((sequence * keys + key) * heads + head) * values, values,
                    to.begin() + ((sequence * heads + head) * keys + key) * values);
      }
    }
  }
  return Tensor::from(to, {sequences, size});
}

// Of what there is of each piece of the first rank, `height` rows: that of the last pieces of the
// sequences.
Tensor of_last_pieces(const Context& context, const SequenceShards& shards, const Tensor& x,
                      int64_t height) {
  std::vector<Tensor> parts;
  for (int64_t sequence = 0; sequence < shards.sequences(); ++sequence) {
    parts.push_back(x.row_slice((2 * sequence + 1) * height, height));
  }
  return stacked(context, parts);
}

Tensor outer_product_by_pieces(const Context& context, const OuterProductStateInputs& given,
                               const OuterProductStateOptions& options,
                               const SequenceShards& shards, JournalSlot slot) {
  const int64_t rows = shards.local().rows(), dim = options.key_dim, heads = options.value_heads;
  std::vector<int64_t> lengths;
  for (const Segment& segment : shards.local().segments()) lengths.push_back(segment.length);
  OuterProductStateInputs inputs = given;
  if (given.log_decay.defined() && given.log_decay.rows() == 1) {
    // One row stands for all; but not for those that write and read states.
    const std::vector<int32_t> same(static_cast<size_t>(rows), 0);
    inputs.log_decay = embedding(context, given.log_decay, same);
  }
  OuterProductStateInputs silent = inputs;
  silent.skip = {};
  const FramedRows left(context, options, lengths, false, true);
  const Tensor states = left.states(left.run(silent, {}));

  // What becomes of the unit vectors, when nothing else is written.
  OuterProductStateOptions square = options;
  square.value_dim = dim;
  silent.v = Tensor::zeros({rows, heads * dim});
  const FramedRows moved(context, square, lengths, true, true);
  const Tensor transitions = moved.states(moved.run(silent, unit_rows(heads, dim, 1)));

  const Tensor before = states_before(context, shards, states, transitions, dim,
                                      [&](const Tensor& transition, const Tensor& state) {
                                        return times_states(context, transition, state, options);
                                      });
  if (shards.keeps()) {
    Tensor after;
    if (shards.ranks().is_root()) {
      const auto last = [&](const Tensor& x) { return of_last_pieces(context, shards, x, dim); };
      const Tensor moved_on = times_states(context, last(transitions), last(before), options);
      after = anchors_of(add(context, moved_on, last(states)), options);
    }
    keep_states(shards, slot, after);
  }
  const FramedRows whole(context, options, lengths, true, false);
  return whole.own(whole.run(inputs, before));
}

// ---- diagonal states ----

Tensor selective_by_channels(const Context& context, const SelectiveScanInputs& in,
                             const SequenceShards& shards, JournalSlot slot) {
  const int64_t channels = in.A_log.rows(), states = in.A_log.columns();
  const std::vector<Columns> own = even_columns(shards, channels, "selective_scan");
  const SharedColumns parts[] = {{in.x, own},
                                 {in.dt_raw, own},
                                 {in.B, all_columns(shards, states)},
                                 {in.C, all_columns(shards, states)}};
  const std::vector<Tensor> whole = to_heads(context, shards, parts);
  const Columns part = own[static_cast<size_t>(shards.ranks().rank())];
  const Tensor y =
      run_whole(shards, slot, selective_scan_journal(part.count, states), states, own,
                [&](const CheckedBatch& batch, JournalSlot at) {
                  return selective_scan(
                      context, whole[0], whole[1], in.dt_bias.column_slice(part.begin, part.count),
                      in.A_log.row_slice(part.begin, part.count), whole[2], whole[3],
                      in.D.column_slice(part.begin, part.count), batch, at);
                });
  return to_rows(context, shards, y, own);
}

Tensor selective_by_pieces(const Context& context, const SelectiveScanInputs& in,
                           const SequenceShards& shards, JournalSlot slot) {
  Batch pieces_alone = shards.local_batch({});
  pieces_alone.shards = nullptr;
  const CheckedBatch batch(std::move(pieces_alone));
  const int64_t width = in.A_log.size(), pieces = std::ssize(batch.segments());
  const Tensor left = selective_scan_from(context, in, {}, batch).state;
  // What becomes of ones, when there is no input.
  SelectiveScanInputs silent = in;
  silent.x = Tensor::zeros(in.x.shape());
  const Tensor transitions =
      selective_scan_from(context, silent, Tensor::full({pieces, width}, 1), batch).state;
  const Tensor before = states_before(context, shards, left, transitions, 1,
                                      [&](const Tensor& transition, const Tensor& state) {
                                        return multiply(context, transition, state);
                                      });
  const SelectiveScanResult result = selective_scan_from(context, in, before, batch);
  if (shards.keeps()) {
    const bool root = shards.ranks().is_root();
    keep_states(shards, slot, root ? of_last_pieces(context, shards, result.state, 1) : Tensor());
  }
  return result.y;
}

// The channels of rank r of a scan that only ulysses runs over ranks.
std::vector<Columns> channels_of(const SequenceShards& shards, int64_t channels,
                                 const char* where) {
  if (shards.kind() != SequenceParallel::ulysses) require_whole(shards.local(), where, true);
  return even_columns(shards, channels, where);
}

}  // namespace

Tensor sharded_outer_product_state(const Context& context, const OuterProductStateInputs& inputs,
                                   const OuterProductStateOptions& options,
                                   const SequenceShards& shards, JournalSlot slot) {
  if (options.updates != 1) {
    throw Error("outer_product_state",
                "several updates of a token in a sequence that lies on several ranks",
                "leave out --sequence-parallel");
  }
  return shards.kind() == SequenceParallel::ulysses
             ? outer_product_by_heads(context, inputs, options, shards, slot)
             : outer_product_by_pieces(context, inputs, options, shards, slot);
}

Tensor sharded_selective_scan(const Context& context, const SelectiveScanInputs& inputs,
                              const SequenceShards& shards, JournalSlot slot) {
  return shards.kind() == SequenceParallel::ulysses
             ? selective_by_channels(context, inputs, shards, slot)
             : selective_by_pieces(context, inputs, shards, slot);
}

Tensor sharded_diagonal_scan(const Context& context, const Tensor& log_a, const Tensor& x,
                             const SequenceShards& shards, JournalSlot slot) {
  const std::vector<Columns> own = channels_of(shards, x.columns(), "diagonal_scan");
  const auto [begin, count] = own[static_cast<size_t>(shards.ranks().rank())];
  const bool constant = log_a.shape().size() == 1;
  const SharedColumns parts[] = {{x, own}, {constant ? Tensor() : log_a, own}};
  const std::vector<Tensor> whole = to_heads(context, shards, parts);
  const Tensor decays = constant ? log_a.column_slice(begin, count).reshape({count}) : whole[1];
  const Tensor h = run_whole(shards, slot, diagonal_scan_journal(count, constant), 1, own,
                             [&](const CheckedBatch& batch, JournalSlot at) {
                               return diagonal_scan(context, decays, whole[0], batch, at);
                             });
  return to_rows(context, shards, h, own);
}

Tensor sharded_running_sum(const Context& context, const Tensor& x, float period,
                           const SequenceShards& shards, JournalSlot slot) {
  const std::vector<Columns> own = channels_of(shards, x.columns(), "running_sum");
  const SharedColumns part{x, own};
  const Tensor whole = to_heads(context, shards, {&part, 1}).front();
  const int64_t count = own[static_cast<size_t>(shards.ranks().rank())].count;
  const Tensor sums = run_whole(shards, slot, running_sum_journal(count), 2, own,
                                [&](const CheckedBatch& batch, JournalSlot at) {
                                  return running_sum(context, whole, period, batch, at);
                                });
  return to_rows(context, shards, sums, own);
}

}  // namespace pronghorn
