#include "ops/attention.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <span>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/attention_operands.h"
#include "ops/attention_units.h"
#include "ops/journal_rows.h"
#include "ops/judged_keys.h"
#include "ops/key_blocks.h"
#include "ops/operands.h"
#include "ops/sharded_attention.h"

namespace pronghorn {
namespace {

constexpr char kWhere[] = "attention";

// Rows before a token that it may see.
int64_t reach(const AttentionOptions& options) {
  if (options.window == 0 || options.segment == 0) return options.window + options.segment;
  return std::min(options.window, options.segment);
}

int64_t key_width(const AttentionShape& shape) { return shape.kv_heads * shape.key_dim; }

// Of v; 0 if there is none.
int64_t value_width(const AttentionShape& shape) {
  return shape.value_in_key ? 0 : shape.kv_heads * shape.value_dim;
}

Tensor gradient_of(const Tensor& tensor) { return tensor.has_grad() ? tensor.grad() : Tensor(); }

using Inputs = AttentionInputs;

// Units by the kernels that they are given to.
struct Works {
  explicit Works(const AttentionOptions& options) : exact(options), tiled(options) {}

  AttentionUnits exact, tiled;
  // Exact, and pages are chosen as the caches of these segments say.
  struct Paged {
    KeyBlockRule rule;
    AttentionUnits units;
    std::vector<const Segment*> segments;
  };
  std::vector<Paged> paged;

  // Those of a cache of this shape.
  Paged& paged_for(const AttentionOptions& options, const JournalShape& shape) {
    for (Paged& one : paged) {
      if (one.rule.choice.top == shape.top_blocks) return one;
    }
    paged.push_back({quest_rule(options, shape), AttentionUnits(options), {}});
    return paged.back();
  }
};

void check_shapes(const Inputs& in, const AttentionOptions& options, const AttentionShape& shape,
                  int64_t rows, int64_t keys) {
  require(options.heads > 0 && options.kv_heads > 0 && options.heads % options.kv_heads == 0 &&
              options.head_dim > 0 && options.value_dim >= 0 && options.window >= 0 &&
              options.segment >= 0 && options.prefix >= 0 && options.soft_cap >= 0 &&
              options.block % kAttentionTile == 0 &&
              (options.block == 0 || (options.top_blocks > 0 && !is_limited(options))),
          kWhere,
          "{} heads of {} and {} over {} key-value heads, window {}, segment {}, cap {}, {} blocks "
          "of {}",
          options.heads, options.head_dim, shape.value_dim, options.kv_heads, options.window,
          options.segment, options.soft_cap, options.top_blocks, options.block);
  require(in.q.rows() == rows && in.q.columns() == options.heads * options.head_dim, kWhere,
          "q is {} for {} rows of {} heads of {}", in.q.shape(), rows, options.heads,
          options.head_dim);
  require(in.k.rows() == keys && in.k.columns() == key_width(shape), kWhere,
          "k is {} for {} rows of {} heads of {}", in.k.shape(), keys, options.kv_heads,
          options.head_dim);
  if (options.value_in_key) {
    require(!in.v.defined() && shape.value_dim <= shape.key_dim, kWhere,
            "values of {} that are in keys of {}, {} v", shape.value_dim, shape.key_dim,
            in.v.defined() ? "with" : "without");
  } else {
    require(in.v.defined() && in.v.rows() == keys && in.v.columns() == value_width(shape), kWhere,
            "v is {} for {} rows of {} heads of {}", in.v.shape(), keys, options.kv_heads,
            shape.value_dim);
  }
  require(!in.sinks.defined() || (in.sinks.size() == options.heads && in.sinks.contiguous()),
          kWhere, "sinks are {} for {} heads", in.sinks.shape(), options.heads);
}

void check_segments(const Context& context, const AttentionOptions& options,
                    const CheckedBatch& batch) {
  for (const Segment& segment : batch.segments()) {
    require(context.tape == nullptr || segment.state == nullptr, kWhere,
            "a segment with a state while gradients are recorded");
    require(segment.mask == Mask::causal || segment.mask == Mask::full || !is_limited(options),
            kWhere, "blocks or replaced rows under a window or in segments");
    require(!options.earlier || (segment.state == nullptr && segment.mask == Mask::causal), kWhere,
            "keys of earlier segments alone, of a sequence with a state or a mask");
    require(segment.mask == Mask::causal || options.block == 0, kWhere,
            "rows that see later ones, where blocks of earlier keys are chosen");
    if (segment.state != nullptr || !is_limited(options)) continue;
    const std::span<const int32_t> positions = batch.positions(segment);
    require(std::is_sorted(positions.begin(), positions.end()), kWhere,
            "positions that decrease within a segment, under a window or in segments");
  }
}

// Throws Error unless the journal ends with the rows of this segment.
void check_borrowed(const CheckedBatch& batch, const Segment& segment, const Journal& journal) {
  const std::span<const int32_t> positions = batch.positions(segment);
  if (segment.mask == Mask::replace) {
    find_rows(journal, positions);
    return;
  }
  const int64_t first = journal.length() - segment.length;
  require(first >= journal.first_row() && journal.tree_rows() == std::ssize(segment.parents) &&
              journal.position(first) == positions.front() &&
              journal.position(journal.length() - 1) == positions.back(),
          kWhere, "borrowed keys that no earlier layer of this forward has appended");
}

// Appends what segments with a state bring, and lists what each segment looks at.
void list_units(const Context& context, const Inputs& in, const AttentionShape& shape,
                const AttentionOptions& options, const CheckedBatch& batch,
                std::span<const Segment> segments, JournalSlot slot, const BlockLists& lists,
                Works& works) {
  const bool single_keys = lists.block == 1;
  const int64_t row_width = key_width(shape) + value_width(shape);
  for (const Segment& segment : segments) {
    if (segment.length == 0) continue;
    const bool is_tree = !segment.parents.empty();
    const bool is_exact =
        is_tree || (context.tape == nullptr && (segment.length <= kExactStep || single_keys));
    if (segment.state == nullptr) {
      (is_exact ? works.exact : works.tiled).add_fresh(batch, segment, in.k, in.v);
      continue;
    }
    Journal& journal = segment.state->journal(slot.layer, slot.index);
    require(journal.shape().row_width == row_width, kWhere,
            "the journal's rows are {} wide, keys and values {}", journal.shape().row_width,
            row_width);
    const int64_t block = dtype_block(journal.shape().row_type);
    require(shape.key_dim % block == 0 && shape.value_dim % block == 0, kWhere,
            "heads of {} and {} are not whole blocks of {}", shape.key_dim, shape.value_dim, block);
    if (options.keys == KeyOwner::borrowed) {
      check_borrowed(batch, segment, journal);
    } else {
      judge_keys(journal, options);
      const Tensor parts[] = {in.k, in.v};
      append_rows(batch, segment, parts, journal);
    }
    AttentionUnits* units = is_exact ? &works.exact : &works.tiled;
    if (journal.shape().top_blocks > 0) {
      if (is_exact && segment.mask == Mask::causal) {
        Works::Paged& paged = works.paged_for(options, journal.shape());
        paged.segments.push_back(&segment);
        units = &paged.units;
      } else {
        complete_key_blocks(journal, options, quest_rule(options, journal.shape()));
      }
    }
    if (is_tree) {
      units->add_tree(batch, segment, journal);
    } else {
      units->add_chain(batch, segment, journal);
    }
  }
}

// Queries as the kept rows of a cache that rolls are met by them: as if nothing lay between those
// and the row's window. Undefined where no row has lost sight of anything.
Tensor rolled_queries(const Context& context, const Tensor& q, const AttentionOptions& options,
                      const CheckedBatch& batch, JournalSlot slot) {
  const auto shape_of = [&](const Segment& segment) -> const JournalShape& {
    return segment.state->journal(slot.layer, slot.index).shape();
  };
  const bool rolls = std::ranges::any_of(batch.segments(), [&](const Segment& segment) {
    return segment.state != nullptr && shape_of(segment).rolls;
  });
  if (options.angles == nullptr || !rolls) return {};
  PooledVector<int32_t> turns(static_cast<size_t>(batch.rows()));
  bool any = false;
  for (const Segment& segment : batch.segments()) {
    if (segment.state == nullptr) continue;
    const JournalShape& shape = shape_of(segment);
    if (!shape.rolls) continue;
    const int64_t held = shape.kept + limits_of(options, shape).window;
    for (int64_t i = segment.first_row; i < segment.first_row + segment.length; ++i) {
      const auto row = static_cast<size_t>(i);
      const int64_t lost = batch.positions()[row] - (held - 1);
      if (lost <= 0) continue;
      turns[row] = static_cast<int32_t>(-lost);
      any = true;
    }
  }
  if (!any) return {};
  auto plain = std::make_shared<RotaryAngles>(*options.angles);
  plain->magnitude = 1;  // q has it already
  if (options.rope_begin == 0) return rope(context, q, turns, options.head_dim, plain);
  const Tensor turned = q.clone();
  const int64_t width = options.head_dim - options.rope_begin;
  for (int64_t head = 0; head < options.heads; ++head) {
    const int64_t begin = head * options.head_dim + options.rope_begin;
    const Tensor part = rope(context, q.column_slice(begin, width), turns, width, plain);
    turned.column_slice(begin, width).copy_from(part);
  }
  return turned;
}

KeyLists key_lists(const BlockLists& lists) {
  return {lists.blocks.data(), lists.lists, lists.width, lists.block};
}

void check_lists(const BlockLists& lists, const AttentionOptions& options, int64_t rows) {
  if (lists.lists == 0) return;
  const bool tiles =
      lists.block > 0 && (lists.block % kAttentionTile == 0 || kAttentionTile % lists.block == 0);
  require(tiles && lists.width > 0 && options.heads % lists.lists == 0 &&
              (lists.lists % options.kv_heads == 0 || options.kv_heads % lists.lists == 0) &&
              std::ssize(lists.blocks) == rows * lists.lists * lists.width,
          kWhere, "{} numbers as {} lists of {} blocks of {} for each of {} rows",
          lists.blocks.size(), lists.lists, lists.width, lists.block, rows);
}

// The lists of all rows, by the options.
BlockLists chosen_lists(const Inputs& in, const AttentionOptions& options,
                        const CheckedBatch& batch, JournalSlot slot) {
  std::vector<const Segment*> all;
  for (const Segment& segment : batch.segments()) all.push_back(&segment);
  return choose_by_keys(batch, all, in.q, in.k, options, moba_rule(options), slot);
}

void run_kernels(const AttentionShape& shape, const AttentionOptions& options, const Inputs& in,
                 const CheckedBatch& batch, JournalSlot slot, const AttentionOperands& operands,
                 Works& works) {
  AttentionKernels& kernels = backend().attention();
  if (!works.exact.empty()) kernels.forward_exact(shape, works.exact.units(), operands);
  if (!works.tiled.empty()) kernels.forward(shape, works.tiled.units(), operands);
  for (Works::Paged& paged : works.paged) {
    const BlockLists pages =
        choose_by_keys(batch, paged.segments, in.q, in.k, options, paged.rule, slot);
    AttentionOperands some = operands;
    some.lists = key_lists(pages);
    kernels.forward_exact(shape, paged.units.units(), some);
  }
}

// log_sum_exp is filled if it is wanted or gradients are recorded.
AttentionResult run(const Context& context, const Inputs& in, const AttentionOptions& options,
                    const CheckedBatch& batch, JournalSlot slot, bool sums,
                    const BlockLists& given = {}) {
  const AttentionShape shape = attention_shape(options);
  check_shapes(in, options, shape, batch.rows(), batch.rows());
  check_segments(context, options, batch);
  const Tensor output = Tensor::empty({in.q.rows(), shape.heads * shape.value_dim});
  const bool record = needs_gradient(context, output, in.q, in.k, in.v, in.sinks);
  require(
      !record || (in.q.data() != in.k.data() && (!in.v.defined() || in.q.data() != in.v.data())),
      kWhere, "q is the same tensor as k or v while gradients are recorded");

  const bool judged = std::ranges::any_of(batch.segments(), [&](const Segment& segment) {
    return segment.state != nullptr &&
           segment.state->journal(slot.layer, slot.index).shape().eviction.is_on();
  });
  std::vector<std::vector<Segment>> rounds;
  if (judged) rounds = judged_rounds(batch, slot);
  Works works(options);
  list_units(context, in, shape, options, batch,
             judged ? std::span<const Segment>(rounds.front()) : batch.segments(), slot, given,
             works);
  check_lists(given, options, batch.rows());
  std::shared_ptr<const BlockLists> lists;
  if (given.lists > 0 || options.block > 0) {
    lists = std::make_shared<const BlockLists>(
        given.lists > 0 ? given : chosen_lists(in, options, batch, slot));
  }

  AttentionOperands operands;
  operands.q = input_matrix(in.q);
  operands.o = output_matrix(output);
  if (lists != nullptr) operands.lists = key_lists(*lists);
  const Tensor rolled = rolled_queries(context, in.q, options, batch, slot);
  operands.prefix_q = input_matrix(rolled);
  if (in.sinks.defined()) operands.sinks = in.sinks.data();
  Tensor log_sum_exp;
  if (record || sums || judged) {
    log_sum_exp = Tensor::empty({in.q.rows(), options.heads});
    log_sum_exp.set_requires_grad(record && sums);
    operands.log_sum_exp = log_sum_exp.data();
  }
  run_kernels(shape, options, in, batch, slot, operands, works);
  for (size_t round = 0; round < rounds.size(); ++round) {
    if (round > 0) {
      Works more(options);
      list_units(context, in, shape, options, batch, rounds[round], slot, given, more);
      run_kernels(shape, options, in, batch, slot, operands, more);
    }
    keep_queries(batch, rounds[round], in.q, log_sum_exp, slot);
  }
  for (const Segment& segment : batch.segments()) {
    if (options.keys != KeyOwner::own || segment.state == nullptr) continue;
    if (segment.length == 0 || !segment.parents.empty()) continue;
    Journal& journal = segment.state->journal(slot.layer, slot.index);
    if (journal.shape().fold_interval > 0) journal.pass();
  }
  if (!record) return {output, log_sum_exp};

  // The closure holds what the units and operands point to.
  context.tape->record([shape, operands, q = in.q, k = in.k, v = in.v, sinks = in.sinks, output,
                        log_sum_exp, lists,
                        kept = std::make_shared<AttentionUnits>(std::move(works.tiled))] {
    if (!output.has_grad()) return;
    AttentionGradients gradients;
    const Tensor grad_output = output.grad(), grad_sums = gradient_of(log_sum_exp);
    gradients.o = input_matrix(grad_output);
    gradients.log_sum_exp = grad_sums.defined() ? grad_sums.data() : nullptr;
    // In this order: q, k and v may be views of one tensor, whose first call makes the gradient
    // that the others add to.
    gradients.q = input_gradient(q);
    gradients.k = input_gradient(k);
    gradients.v = input_gradient(v);
    gradients.sinks = vector_gradient(sinks);
    backend().attention().backward(shape, kept->units(), operands, gradients);
  });
  return {output, log_sum_exp};
}

}  // namespace

double rows_seen(const AttentionOptions& options, double context) {
  if (options.block > 0) {
    return std::min(context, static_cast<double>(options.block * options.top_blocks));
  }
  if (options.window == 0) return context;
  return std::min(context,
                  static_cast<double>(options.window) + static_cast<double>(options.prefix));
}

JournalShape attention_journal(const AttentionOptions& options) {
  JournalShape shape;
  shape.name = "key_value";
  shape.row_width = key_width(attention_shape(options)) + value_width(attention_shape(options));
  shape.is_cache = true;
  const int64_t keys = key_width(attention_shape(options));
  if (options.block > 0) {
    shape.blocks = {options.block, options.block, keys};
  } else if (options.segment == 0) {
    shape.key_width = keys;
  }
  const AttentionShape heads = attention_shape(options);
  shape.head_width = std::gcd(heads.key_dim, heads.value_dim);
  shape.query_width = heads.heads * (heads.key_dim + 1);
  shape.is_shared = options.keys == KeyOwner::lent;
  if (is_limited(options)) {
    shape.history = reach(options);
    shape.kept = options.prefix;
    shape.fold_interval = Journal::kPageRows;
  }
  return shape;
}

Tensor attention(const Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
                 const AttentionOptions& options, const CheckedBatch& batch, JournalSlot slot,
                 const Tensor& sinks, const BlockLists& lists) {
  if (batch.shards() != nullptr) {
    return sharded_attention(context, {q, k, v, sinks}, options, *batch.shards(), slot, lists,
                             false)
        .output;
  }
  return run(context, {q, k, v, sinks}, options, batch, slot, false, lists).output;
}

AttentionResult partial_attention(const Context& context, const Tensor& q, const Tensor& k,
                                  const Tensor& v, const AttentionOptions& options,
                                  const CheckedBatch& batch, JournalSlot slot, const Tensor& sinks,
                                  const BlockLists& lists) {
  if (batch.shards() != nullptr) {
    return sharded_attention(context, {q, k, v, sinks}, options, *batch.shards(), slot, lists,
                             true);
  }
  return run(context, {q, k, v, sinks}, options, batch, slot, true, lists);
}

std::optional<int64_t> rows_before(const Segment& segment, JournalSlot slot) {
  const bool is_long = segment.parents.empty() && segment.length > kExactStep;
  if (segment.state == nullptr || !is_long || segment.mask != Mask::causal) return {};
  const Journal& journal = segment.state->journal(slot.layer, slot.index);
  const JournalShape& shape = journal.shape();
  if (shape.rolls || shape.eviction.is_on() || shape.top_blocks > 0 || journal.first_row() > 0) {
    return {};
  }
  return journal.length();
}

Tensor append_and_read(const CheckedBatch& batch, const Segment& segment, const Tensor& k,
                       JournalSlot slot) {
  Journal& journal = segment.state->journal(slot.layer, slot.index);
  require(k.rows() == batch.rows() && k.columns() == journal.shape().row_width, kWhere,
          "{} for {} rows of a journal whose rows are {} wide", k.shape(), batch.rows(),
          journal.shape().row_width);
  append_rows(batch, segment, {&k, 1}, journal);
  return read_rows(journal);
}

Tensor attention_to_rows(const Tensor& q, const Tensor& k, const Tensor& v,
                         const AttentionOptions& options) {
  const AttentionShape shape = attention_shape(options);
  const int64_t length = q.rows(), before = k.rows() - length;
  require(before >= 0 && !is_limited(options) && options.block == 0 && !options.value_in_key,
          kWhere, "{} rows over {} keys of their own, window {}, segment {}, blocks of {}", length,
          k.rows(), options.window, options.segment, options.block);
  const Tensor no_sinks;
  check_shapes({q, k, v, no_sinks}, options, shape, length, k.rows());
  PooledVector<KeyRange> visible;
  for (int64_t i = 0; i < length; ++i) visible.push_back({0, before + i + 1});
  AttentionUnits units(options);
  units.add_given(visible, k, v);
  const Tensor output = Tensor::empty({length, shape.heads * shape.value_dim});
  AttentionOperands operands;
  operands.q = input_matrix(q);
  operands.o = output_matrix(output);
  backend().attention().forward(shape, units.units(), operands);
  return output;
}

}  // namespace pronghorn
