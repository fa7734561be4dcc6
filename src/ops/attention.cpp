#include "ops/attention.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "base/threads.h"
#include "ops/attention_operands.h"

namespace pronghorn {
namespace {

constexpr char kWhere[] = "attention";
static_assert(kAttentionTile == Journal::kPageRows, "a tile of keys is a page of the journal");

// Units for the kernels and the memory that they point to.
class UnitList {
 public:
  // Adds a unit of visible.size() rows over `keys` keys.
  void add(int64_t first_row, int64_t keys, std::vector<const float*> key_tiles, int64_t key_stride,
           std::vector<const float*> value_tiles, int64_t value_stride,
           std::vector<KeyRange> visible) {
    auto memory = std::make_unique<Memory>();
    memory->key_tiles = std::move(key_tiles);
    memory->value_tiles = std::move(value_tiles);
    memory->visible = std::move(visible);
    units_.push_back({first_row, static_cast<int64_t>(memory->visible.size()), keys,
                      memory->key_tiles.data(), memory->value_tiles.data(), key_stride,
                      value_stride, memory->visible.data()});
    memory_.push_back(std::move(memory));
  }

  // `count` floats that live as long as the list.
  float* buffer(int64_t count) {
    buffers_.push_back(std::make_unique<Storage>(static_cast<size_t>(count) * sizeof(float)));
    return reinterpret_cast<float*>(buffers_.back()->data());
  }

  std::span<const AttentionUnit> units() const { return units_; }

 private:
  struct Memory {
    std::vector<const float*> key_tiles, value_tiles;
    std::vector<KeyRange> visible;
  };
  std::vector<AttentionUnit> units_;
  std::vector<std::unique_ptr<Memory>> memory_;
  std::vector<std::unique_ptr<Storage>> buffers_;
};

bool limited(const AttentionOptions& options) { return options.window > 0 || options.segment > 0; }

// Rows before a token that it may see.
int64_t reach(const AttentionOptions& options) {
  if (options.window == 0 || options.segment == 0) return options.window + options.segment;
  return std::min(options.window, options.segment);
}

// The first of keys first ... count - 1, whose positions do not decrease, inside the window and the
// segment of a row at `position`.
template <typename PositionOf>
int64_t window_begin(const AttentionOptions& options, int32_t position, int64_t first,
                     int64_t count, PositionOf&& position_of) {
  if (!limited(options)) return 0;
  int64_t before = -1;  // the last position that the row does not see
  if (options.window > 0) before = std::max(before, position - options.window);
  if (options.segment > 0) {
    before = std::max(before, position / options.segment * options.segment - 1);
  }
  int64_t low = first, high = count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (position_of(middle) > before) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// What each row of a chain sees, when `before` keys precede the segment, those from `first` on
// held.
template <typename PositionOf>
std::vector<KeyRange> chain_ranges(const AttentionOptions& options, const CheckedBatch& batch,
                                   const Segment& segment, int64_t first, int64_t before,
                                   PositionOf&& position_of) {
  std::vector<KeyRange> visible(static_cast<size_t>(segment.length));
  for (int64_t i = 0; i < segment.length; ++i) {
    const int64_t end = before + (segment.mask == Mask::full ? segment.length : i + 1);
    const int32_t position = batch.positions()[static_cast<size_t>(segment.first_row + i)];
    visible[static_cast<size_t>(i)] = {window_begin(options, position, first, end, position_of),
                                       end};
  }
  return visible;
}

void add_fresh(const AttentionOptions& options, const CheckedBatch& batch, const Segment& segment,
               const Tensor& k, const Tensor& v, UnitList& list) {
  std::vector<const float*> keys, values;
  for (int64_t row = 0; row < segment.length; row += kAttentionTile) {
    keys.push_back(k.row(segment.first_row + row));
    values.push_back(v.row(segment.first_row + row));
  }
  list.add(segment.first_row, segment.length, std::move(keys), k.row_stride(), std::move(values),
           v.row_stride(), chain_ranges(options, batch, segment, 0, 0, [&](int64_t key) {
             return batch.positions()[static_cast<size_t>(segment.first_row + key)];
           }));
}

// Pages of the journal that hold its first `count` rows; null: no longer held.
std::vector<const float*> journal_tiles(const Journal& journal, int64_t count) {
  std::vector<const float*> tiles;
  for (int64_t row = 0; row < count; row += kAttentionTile) {
    const bool held = row + kAttentionTile > journal.first_row();
    tiles.push_back(held ? journal.row(row) : nullptr);
  }
  return tiles;
}

std::vector<const float*> shifted(std::vector<const float*> tiles, int64_t offset) {
  for (const float*& tile : tiles) {
    if (tile != nullptr) tile += offset;
  }
  return tiles;
}

void add_chain(const AttentionOptions& options, const CheckedBatch& batch, const Segment& segment,
               const Journal& journal, UnitList& list) {
  const int64_t width = options.kv_heads * options.head_dim;
  const int64_t keys = journal.length();
  std::vector<const float*> tiles = journal_tiles(journal, keys);
  std::vector<const float*> values = shifted(tiles, width);
  list.add(segment.first_row, keys, std::move(tiles), 2 * width, std::move(values), 2 * width,
           chain_ranges(options, batch, segment, journal.first_row(), keys - segment.length,
                        [&](int64_t key) { return journal.position(key); }));
}

// A unit for each node of a tree. The sequence's last, partly filled page and the node's ancestors
// are copied together, so that every key has the index that it would have in a chain.
void add_tree(const AttentionOptions& options, const CheckedBatch& batch, const Segment& segment,
              const Journal& journal, UnitList& list) {
  const int64_t width = options.kv_heads * options.head_dim, row_width = 2 * width;
  const int64_t committed = journal.length() - segment.length;
  const int64_t whole = committed / kAttentionTile * kAttentionTile;
  const std::vector<const float*> pages = journal_tiles(journal, whole);
  for (int64_t node = 0; node < segment.length; ++node) {
    std::vector<int64_t> rows;  // of the journal: what follows the whole pages
    for (int64_t i = node; i >= 0; i = segment.parents[static_cast<size_t>(i)]) {
      rows.push_back(committed + i);
    }
    for (int64_t i = committed - 1; i >= whole; --i) rows.push_back(i);
    std::reverse(rows.begin(), rows.end());
    const auto tail = static_cast<int64_t>(rows.size());
    float* buffer = list.buffer(tail * row_width);
    for (int64_t i = 0; i < tail; ++i) {
      std::memcpy(buffer + i * row_width, journal.row(rows[static_cast<size_t>(i)]),
                  static_cast<size_t>(row_width) * sizeof(float));
    }
    std::vector<const float*> tiles = pages;
    for (int64_t i = 0; i < tail; i += kAttentionTile) tiles.push_back(buffer + i * row_width);
    std::vector<const float*> values = shifted(tiles, width);
    const int64_t keys = whole + tail;
    const int32_t position = batch.positions()[static_cast<size_t>(segment.first_row + node)];
    const int64_t begin =
        window_begin(options, position, journal.first_row(), keys, [&](int64_t key) {
          return journal.position(key < whole ? key : rows[static_cast<size_t>(key - whole)]);
        });
    list.add(segment.first_row + node, keys, std::move(tiles), row_width, std::move(values),
             row_width, {{begin, keys}});
  }
}

// Appends the segment's keys and values to its journal.
void append(const CheckedBatch& batch, const Segment& segment, const Tensor& k, const Tensor& v,
            Journal& journal) {
  const int64_t width = k.columns();
  const int64_t first = journal.append(batch.positions(segment));
  parallel_for(segment.length, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = journal.mutable_row(first + i);
      std::copy_n(k.row(segment.first_row + i), width, row);
      std::copy_n(v.row(segment.first_row + i), width, row + width);
    }
  });
  if (!segment.parents.empty()) journal.set_tree(segment.parents);
}

void check(const Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
           const AttentionOptions& options, const CheckedBatch& batch) {
  require(options.heads > 0 && options.kv_heads > 0 && options.heads % options.kv_heads == 0 &&
              options.head_dim > 0 && options.window >= 0 && options.segment >= 0,
          kWhere, "{} heads of {} over {} key-value heads, window {}, segment {}", options.heads,
          options.head_dim, options.kv_heads, options.window, options.segment);
  const int64_t rows = batch.rows(), kv_width = options.kv_heads * options.head_dim;
  require(q.rows() == rows && q.columns() == options.heads * options.head_dim, kWhere,
          "q is {} for {} rows of {} heads of {}", shape_string(q.shape()), rows, options.heads,
          options.head_dim);
  require(
      k.rows() == rows && k.columns() == kv_width && v.rows() == rows && v.columns() == kv_width,
      kWhere, "k is {} and v is {} for {} rows of {} heads of {}", shape_string(k.shape()),
      shape_string(v.shape()), rows, options.kv_heads, options.head_dim);
  for (const Segment& segment : batch.segments()) {
    require(context.tape == nullptr || segment.state == nullptr, kWhere,
            "a segment with a state while gradients are recorded");
    if (segment.state != nullptr || !limited(options)) continue;
    const std::span<const int32_t> positions = batch.positions(segment);
    require(std::is_sorted(positions.begin(), positions.end()), kWhere,
            "positions that decrease within a segment, under a window or in segments");
  }
}

// log_sum_exp is filled if it is wanted or gradients are recorded.
AttentionResult run(const Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
                    const AttentionOptions& options, const CheckedBatch& batch, JournalSlot slot,
                    bool sums) {
  check(context, q, k, v, options, batch);
  const AttentionShape shape = attention_shape(options);
  const Tensor output = Tensor::empty({q.rows(), q.columns()});
  const bool record = needs_gradient(context, output, q, k, v);
  require(!record || (q.data() != k.data() && q.data() != v.data()), kWhere,
          "q is the same tensor as k or v while gradients are recorded");

  auto tiled = std::make_shared<UnitList>();
  UnitList exact;
  for (const Segment& segment : batch.segments()) {
    if (segment.length == 0) continue;
    UnitList& list = context.tape == nullptr && segment.length <= kExactStep ? exact : *tiled;
    if (segment.state == nullptr) {
      add_fresh(options, batch, segment, k, v, list);
      continue;
    }
    Journal& journal = segment.state->journal(slot.layer, slot.index);
    require(journal.shape().row_width == 2 * k.columns(), kWhere,
            "the journal's rows are {} wide, keys and values {}", journal.shape().row_width,
            2 * k.columns());
    append(batch, segment, k, v, journal);
    if (segment.parents.empty()) {
      add_chain(options, batch, segment, journal, list);
    } else {
      add_tree(options, batch, segment, journal, exact);
    }
  }

  AttentionOperands operands{q.data(), q.row_stride(), output.data(), output.row_stride(), nullptr};
  AttentionKernels& kernels = backend().attention();
  Tensor log_sum_exp;
  if (record || sums) {
    log_sum_exp = Tensor::empty({q.rows(), options.heads});
    log_sum_exp.set_requires_grad(record && sums);
    operands.log_sum_exp = log_sum_exp.data();
  }
  if (!exact.units().empty()) kernels.forward_exact(shape, exact.units(), operands);
  if (!tiled->units().empty()) kernels.forward(shape, tiled->units(), operands);
  for (const Segment& segment : batch.segments()) {
    if (!limited(options) || segment.state == nullptr || !segment.parents.empty()) continue;
    segment.state->journal(slot.layer, slot.index).pass();
  }
  if (!record) return {output, log_sum_exp};

  // The closure holds what the units and operands point to.
  context.tape->record([shape, operands, tiled, q, k, v, output, log_sum_exp] {
    if (!output.has_grad()) return;
    const Tensor grad_o = output.grad();
    const float* grad_sums = log_sum_exp.has_grad() ? log_sum_exp.grad().data() : nullptr;
    // In this order: q, k and v may be views of one tensor, whose first call makes the gradient
    // that the others add to.
    const Matrix grad_q = input_gradient(q), grad_k = input_gradient(k), grad_v = input_gradient(v);
    backend().attention().backward(shape, tiled->units(), operands, grad_o.data(),
                                   grad_o.row_stride(), grad_sums, grad_q, grad_k, grad_v);
  });
  return {output, log_sum_exp};
}

}  // namespace

JournalShape attention_journal(const AttentionOptions& options) {
  JournalShape shape;
  shape.name = "key_value";
  shape.row_width = 2 * options.kv_heads * options.head_dim;
  if (limited(options)) {
    shape.history = reach(options);
    shape.fold_interval = Journal::kPageRows;
  }
  return shape;
}

Tensor attention(const Context& context, const Tensor& q, const Tensor& k, const Tensor& v,
                 const AttentionOptions& options, const CheckedBatch& batch, JournalSlot slot) {
  return run(context, q, k, v, options, batch, slot, false).output;
}

AttentionResult partial_attention(const Context& context, const Tensor& q, const Tensor& k,
                                  const Tensor& v, const AttentionOptions& options,
                                  const CheckedBatch& batch, JournalSlot slot) {
  return run(context, q, k, v, options, batch, slot, true);
}

}  // namespace pronghorn
