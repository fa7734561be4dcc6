#include "ops/attention.h"

#include <algorithm>
#include <memory>
#include <span>

#include "backend/backend.h"
#include "base/error.h"
#include "base/threads.h"
#include "ops/attention_operands.h"
#include "ops/attention_units.h"
#include "ops/operands.h"

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

struct Inputs {
  const Tensor &q, &k, &v, &sinks;
};

// Appends the segment's keys and values to its journal, rounded as that holds them.
void append(const CheckedBatch& batch, const Segment& segment, const Inputs& in, Journal& journal) {
  const JournalShape& shape = journal.shape();
  const int64_t first = journal.append(batch.positions(segment));
  const int64_t value_offset = in.k.columns() * dtype_size(shape.row_type);
  const int64_t end = first + segment.length;
  AttentionKernels& kernels = backend().attention();
  const auto store = [&](const Tensor& from, int64_t row, int64_t count, std::byte* to) {
    kernels.store_rows({from.row(segment.first_row + row - first), from.row_stride()}, count,
                       from.columns(), shape.row_type, to, shape.row_width);
  };
  // A page at a time: its rows lie one after another.
  const int64_t first_page = first / Journal::kPageRows;
  const int64_t pages = segment.length == 0 ? 0 : (end - 1) / Journal::kPageRows - first_page + 1;
  parallel_for(pages, 1, [&](int64_t page_begin, int64_t page_end) {
    for (int64_t page = page_begin; page < page_end; ++page) {
      const int64_t row = std::max(first, (first_page + page) * Journal::kPageRows);
      const int64_t count = std::min(end, (first_page + page + 1) * Journal::kPageRows) - row;
      std::byte* to = journal.mutable_row_data(row);
      store(in.k, row, count, to);
      if (in.v.defined()) store(in.v, row, count, to + value_offset);
    }
  });
  if (!segment.parents.empty()) journal.set_tree(segment.parents);
}

void check_shapes(const Inputs& in, const AttentionOptions& options, const AttentionShape& shape,
                  int64_t rows) {
  require(options.heads > 0 && options.kv_heads > 0 && options.heads % options.kv_heads == 0 &&
              options.head_dim > 0 && options.value_dim >= 0 && options.window >= 0 &&
              options.segment >= 0 && options.prefix >= 0 && options.soft_cap >= 0,
          kWhere, "{} heads of {} and {} over {} key-value heads, window {}, segment {}, cap {}",
          options.heads, options.head_dim, shape.value_dim, options.kv_heads, options.window,
          options.segment, options.soft_cap);
  require(in.q.rows() == rows && in.q.columns() == options.heads * options.head_dim, kWhere,
          "q is {} for {} rows of {} heads of {}", shape_string(in.q.shape()), rows, options.heads,
          options.head_dim);
  require(in.k.rows() == rows && in.k.columns() == key_width(shape), kWhere,
          "k is {} for {} rows of {} heads of {}", shape_string(in.k.shape()), rows,
          options.kv_heads, options.head_dim);
  if (options.value_in_key) {
    require(!in.v.defined() && shape.value_dim <= shape.key_dim, kWhere,
            "values of {} that are in keys of {}, {} v", shape.value_dim, shape.key_dim,
            in.v.defined() ? "with" : "without");
  } else {
    require(in.v.defined() && in.v.rows() == rows && in.v.columns() == value_width(shape), kWhere,
            "v is {} for {} rows of {} heads of {}", shape_string(in.v.shape()), rows,
            options.kv_heads, shape.value_dim);
  }
  require(!in.sinks.defined() || (in.sinks.size() == options.heads && in.sinks.contiguous()),
          kWhere, "sinks are {} for {} heads", shape_string(in.sinks.shape()), options.heads);
}

void check_segments(const Context& context, const AttentionOptions& options,
                    const CheckedBatch& batch) {
  for (const Segment& segment : batch.segments()) {
    require(context.tape == nullptr || segment.state == nullptr, kWhere,
            "a segment with a state while gradients are recorded");
    if (segment.state != nullptr || !is_limited(options)) continue;
    const std::span<const int32_t> positions = batch.positions(segment);
    require(std::is_sorted(positions.begin(), positions.end()), kWhere,
            "positions that decrease within a segment, under a window or in segments");
  }
}

// Throws Error unless the journal ends with the rows of this segment.
void check_borrowed(const CheckedBatch& batch, const Segment& segment, const Journal& journal) {
  const std::span<const int32_t> positions = batch.positions(segment);
  const int64_t first = journal.length() - segment.length;
  require(first >= journal.first_row() && journal.tree_rows() == std::ssize(segment.parents) &&
              journal.position(first) == positions.front() &&
              journal.position(journal.length() - 1) == positions.back(),
          kWhere, "borrowed keys that no earlier layer of this forward has appended");
}

// Appends what segments with a state bring, and lists what each segment looks at.
void list_units(const Context& context, const Inputs& in, const AttentionShape& shape,
                KeyOwner keys, const CheckedBatch& batch, JournalSlot slot, AttentionUnits& exact,
                AttentionUnits& tiled) {
  const int64_t row_width = key_width(shape) + value_width(shape);
  for (const Segment& segment : batch.segments()) {
    if (segment.length == 0) continue;
    AttentionUnits& list = context.tape == nullptr && segment.length <= kExactStep ? exact : tiled;
    if (segment.state == nullptr) {
      list.add_fresh(batch, segment, in.k, in.v);
      continue;
    }
    Journal& journal = segment.state->journal(slot.layer, slot.index);
    require(journal.shape().row_width == row_width, kWhere,
            "the journal's rows are {} wide, keys and values {}", journal.shape().row_width,
            row_width);
    if (keys == KeyOwner::borrowed) {
      check_borrowed(batch, segment, journal);
    } else {
      append(batch, segment, in, journal);
    }
    if (segment.parents.empty()) {
      list.add_chain(batch, segment, journal);
    } else {
      exact.add_tree(batch, segment, journal);
    }
  }
}

// log_sum_exp is filled if it is wanted or gradients are recorded.
AttentionResult run(const Context& context, const Inputs& in, const AttentionOptions& options,
                    const CheckedBatch& batch, JournalSlot slot, bool sums) {
  const AttentionShape shape = attention_shape(options);
  check_shapes(in, options, shape, batch.rows());
  check_segments(context, options, batch);
  const Tensor output = Tensor::empty({in.q.rows(), shape.heads * shape.value_dim});
  const bool record = needs_gradient(context, output, in.q, in.k, in.v, in.sinks);
  require(
      !record || (in.q.data() != in.k.data() && (!in.v.defined() || in.q.data() != in.v.data())),
      kWhere, "q is the same tensor as k or v while gradients are recorded");

  AttentionUnits exact(options), tiled(options);
  list_units(context, in, shape, options.keys, batch, slot, exact, tiled);

  AttentionOperands operands{input_matrix(in.q), output_matrix(output)};
  if (in.sinks.defined()) operands.sinks = in.sinks.data();
  AttentionKernels& kernels = backend().attention();
  Tensor log_sum_exp;
  if (record || sums) {
    log_sum_exp = Tensor::empty({in.q.rows(), options.heads});
    log_sum_exp.set_requires_grad(record && sums);
    operands.log_sum_exp = log_sum_exp.data();
  }
  if (!exact.empty()) kernels.forward_exact(shape, exact.units(), operands);
  if (!tiled.empty()) kernels.forward(shape, tiled.units(), operands);
  for (const Segment& segment : batch.segments()) {
    const bool passes = is_limited(options) && options.keys == KeyOwner::own;
    if (!passes || segment.state == nullptr || !segment.parents.empty()) continue;
    segment.state->journal(slot.layer, slot.index).pass();
  }
  if (!record) return {output, log_sum_exp};

  // The closure holds what the units and operands point to.
  context.tape->record([shape, operands, q = in.q, k = in.k, v = in.v, sinks = in.sinks, output,
                        log_sum_exp, kept = std::make_shared<AttentionUnits>(std::move(tiled))] {
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
  if (options.window == 0) return context;
  return std::min(context,
                  static_cast<double>(options.window) + static_cast<double>(options.prefix));
}

JournalShape attention_journal(const AttentionOptions& options) {
  JournalShape shape;
  shape.name = "key_value";
  shape.row_width = key_width(attention_shape(options)) + value_width(attention_shape(options));
  shape.is_cache = true;
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
                 const Tensor& sinks) {
  return run(context, {q, k, v, sinks}, options, batch, slot, false).output;
}

AttentionResult partial_attention(const Context& context, const Tensor& q, const Tensor& k,
                                  const Tensor& v, const AttentionOptions& options,
                                  const CheckedBatch& batch, JournalSlot slot,
                                  const Tensor& sinks) {
  return run(context, {q, k, v, sinks}, options, batch, slot, true);
}

}  // namespace pronghorn
