#include "ops/compressed_keys.h"

#include <algorithm>
#include <utility>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/attention_operands.h"
#include "ops/attention_units.h"
#include "ops/journal_rows.h"
#include "ops/key_blocks.h"
#include "ops/operands.h"
#include "ops/pointwise.h"
#include "tensor/memory.h"
#include "tensor/sequence_shards.h"

namespace pronghorn {
namespace {

constexpr char kWhere[] = "compressed keys";

BlockRows block_rows_of(const CompressedKeysOptions& options) {
  return {options.block, options.stride, options.width()};
}

int64_t value_dim(const AttentionOptions& options) {
  return options.value_dim > 0 ? options.value_dim : options.head_dim;
}

void check(const CompressedKeysOptions& options) {
  const int64_t select = options.select_block;
  require(options.stride > 0 && options.block > 0 && options.block % options.stride == 0 &&
              select > 0 && select % options.stride == 0 &&
              (select % kAttentionTile == 0 || kAttentionTile % select == 0) &&
              options.select_top >= options.select_first + options.select_last &&
              options.select_first >= 0 && options.select_last > 0,
          kWhere, "blocks of {} every {} rows, {} of {} chosen", options.block, options.stride,
          options.select_top, select);
}

}  // namespace

int64_t CompressedKeysOptions::width() const {
  return attention.kv_heads * (attention.head_dim + value_dim(attention));
}

JournalShape compressed_keys_journal(const CompressedKeysOptions& options) {
  check(options);
  JournalShape shape;
  shape.name = "compressed";
  shape.row_width = options.width();
  shape.history = options.block;
  shape.fold_interval = Journal::kPageRows;
  shape.blocks = block_rows_of(options);
  return shape;
}

struct CompressedKeys::Parts {
  // A segment's place among the new entries, or one node's of a tree.
  struct Place {
    const Segment* segment = nullptr;
    int64_t node = -1;             // -1: the whole segment
    int64_t before = 0;            // rows of the sequence before the segment
    Journal* journal = nullptr;    // null: a fresh segment
    int64_t first = 0, count = 0;  // of the new entries: those that complete rows end
    std::vector<int64_t> on_path;  // those that the nodes of its path end
  };

  Parts(const Context& asked, const Tensor& given, const CompressedKeysOptions& chosen,
        const CheckedBatch& of, JournalSlot at)
      : context(asked),
        x(given),
        options(chosen),
        batch(of),
        slot(at),
        blocks(block_rows_of(chosen)) {}

  void add(const Segment& segment);
  void add_fresh(const Segment& segment);
  void add_held(Place place);
  void add_tree(const Segment& segment, Journal& journal);
  void gather();
  void fill(AttentionUnits& exact, AttentionUnits& tiled) const;
  void fill(const Place& place, AttentionUnits& units) const;

  const Context& context;
  Tensor x;
  CompressedKeysOptions options;
  const CheckedBatch& batch;
  JournalSlot slot;
  BlockRows blocks;
  std::vector<Place> places;
  std::vector<const std::byte*> sources;  // the rows of the new entries' blocks
  std::vector<int32_t> rows;              // of x, the same, with a tape
  std::vector<int32_t> positions;
  Tensor block_rows, entries;
};

void CompressedKeys::Parts::add(const Segment& segment) {
  if (segment.length == 0) return;
  if (segment.state == nullptr) return add_fresh(segment);
  require(context.tape == nullptr, kWhere, "a segment with a state while gradients are recorded");
  Journal& journal = segment.state->journal(slot.layer, slot.index);
  require(journal.shape().row_width == options.width(), kWhere,
          "the journal's rows are {} wide, keys and values {}", journal.shape().row_width,
          options.width());
  append_rows(batch, segment, {&x, 1}, journal);
  const int64_t before = journal.length() - segment.length;
  add_held({.segment = &segment, .node = -1, .before = before, .journal = &journal, .on_path = {}});
  if (!segment.parents.empty()) add_tree(segment, journal);
}

void CompressedKeys::Parts::add_fresh(const Segment& segment) {
  Place place{.segment = &segment, .node = -1, .journal = nullptr, .on_path = {}};
  place.first = std::ssize(positions);
  place.count = blocks.within(segment.length);
  for (int64_t e = 0; e < place.count; ++e) {
    for (int64_t i = e * blocks.stride; i < e * blocks.stride + blocks.length; ++i) {
      rows.push_back(static_cast<int32_t>(segment.first_row + i));
      sources.push_back(reinterpret_cast<const std::byte*>(x.row(segment.first_row + i)));
    }
    positions.push_back(batch.positions()[static_cast<size_t>(rows.back())]);
  }
  places.push_back(std::move(place));
}

// Entries that the journal does not have yet, of committed rows and of a chain.
void CompressedKeys::Parts::add_held(Place place) {
  const Journal& journal = *place.journal;
  const int64_t held = journal.blocks().length();
  place.first = std::ssize(positions);
  place.count = blocks.within(journal.length() - journal.tree_rows()) - held;
  for (int64_t e = held; e < held + place.count; ++e) {
    const int64_t begin = e * blocks.stride, end = begin + blocks.length;
    for (int64_t i = begin; i < end; ++i) sources.push_back(journal.row_data(i));
    positions.push_back(journal.position(end - 1));
  }
  places.push_back(std::move(place));
}

// A place for each node: the path to it may end blocks.
void CompressedKeys::Parts::add_tree(const Segment& segment, Journal& journal) {
  const int64_t before = journal.length() - segment.length;
  const size_t first_place = places.size();
  for (int64_t node = 0; node < segment.length; ++node) {
    const std::vector<int64_t> path = path_to_node(segment, node);
    Place place{
        .segment = &segment, .node = node, .before = before, .journal = &journal, .on_path = {}};
    if (path.size() > 1) {
      place.on_path = places[first_place + static_cast<size_t>(path[path.size() - 2])].on_path;
    }
    const int64_t end = before + std::ssize(path);  // rows of the chain that ends here
    if (end >= blocks.length && (end - blocks.length) % blocks.stride == 0) {
      for (int64_t i = end - blocks.length; i < end; ++i) {
        sources.push_back(
            journal.row_data(i < before ? i : before + path[static_cast<size_t>(i - before)]));
      }
      place.on_path.push_back(std::ssize(positions));
      positions.push_back(batch.positions()[static_cast<size_t>(segment.first_row + node)]);
    }
    places.push_back(std::move(place));
  }
}

void CompressedKeys::Parts::gather() {
  if (sources.empty()) return;
  if (context.tape != nullptr) {
    block_rows = embedding(context, x, rows);
    return;
  }
  block_rows = Tensor::empty({std::ssize(sources), options.width()});
  const size_t bytes = static_cast<size_t>(options.width()) * sizeof(float);
  PooledVector<RowCopy> copies;
  for (size_t i = 0; i < sources.size(); ++i) {
    copies.push_back({sources[i], block_rows.row(static_cast<int64_t>(i)), bytes});
  }
  memory().copy(copies);
}

void CompressedKeys::Parts::fill(AttentionUnits& exact, AttentionUnits& tiled) const {
  for (const Place& place : places) {
    const bool is_tree = !place.segment->parents.empty();
    if (is_tree && place.node < 0) continue;  // its nodes have places of their own
    const bool is_exact = context.tape == nullptr && place.segment->length <= kExactStep;
    fill(place, is_tree || is_exact ? exact : tiled);
  }
}

void CompressedKeys::Parts::fill(const Place& place, AttentionUnits& units) const {
  const Segment& segment = *place.segment;
  std::vector<KeyRange> visible;
  if (place.node >= 0) {
    const int64_t index = index_in_sequence(segment, place.node, place.before);
    visible.push_back({0, blocks.within(index + 1)});
    std::vector<const float*> more;
    for (const int64_t entry : place.on_path) more.push_back(entries.row(entry));
    units.add_entries(segment.first_row + place.node, visible, place.journal->blocks(),
                      place.journal->blocks().length(), more);
    return;
  }
  for (int64_t i = 0; i < segment.length; ++i) {
    visible.push_back({0, blocks.within(place.before + i + 1)});
  }
  if (place.journal != nullptr) {
    units.add_entries(segment.first_row, visible, place.journal->blocks(),
                      place.journal->blocks().length(), {});
  } else {
    units.add_entries(segment.first_row, visible, entries, place.first, place.count);
  }
}

CompressedKeys::CompressedKeys(const Context& context, const Tensor& x,
                               const CompressedKeysOptions& options, const CheckedBatch& batch,
                               JournalSlot slot)
    : parts_(std::make_unique<Parts>(context, x, options, batch, slot)) {
  check(options);
  require_whole(batch, kWhere);
  require(x.rows() == batch.rows() && x.columns() == options.width(), kWhere,
          "{} for {} rows of {}", x.shape(), batch.rows(), options.width());
  for (const Segment& segment : batch.segments()) parts_->add(segment);
  parts_->gather();
}

CompressedKeys::~CompressedKeys() = default;

const Tensor& CompressedKeys::block_rows() const { return parts_->block_rows; }

std::span<const int32_t> CompressedKeys::positions() const { return parts_->positions; }

void CompressedKeys::set(const Tensor& entries) {
  Parts& parts = *parts_;
  const int64_t count = std::ssize(parts.positions);
  require(count == 0 ? !entries.defined()
                     : entries.rows() == count && entries.columns() == parts.options.width(),
          kWhere, "{} entries for {} blocks of {}", entries.defined() ? entries.rows() : 0, count,
          parts.options.width());
  parts.entries = entries;
  PooledVector<RowCopy> copies;
  for (const Parts::Place& place : parts.places) {
    if (place.journal == nullptr || place.node >= 0 || place.count == 0) continue;
    Journal& held = place.journal->blocks();
    const int64_t first = held.append(
        std::span(parts.positions)
            .subspan(static_cast<size_t>(place.first), static_cast<size_t>(place.count)));
    for (int64_t i = 0; i < place.count; ++i) {
      copies.push_back({entries.row(place.first + i), held.mutable_row(first + i),
                        static_cast<size_t>(entries.columns()) * sizeof(float)});
    }
  }
  memory().copy(copies);
  for (const Parts::Place& place : parts.places) {
    if (place.journal != nullptr && place.segment->parents.empty()) place.journal->pass();
  }
}

Tensor CompressedKeys::attend(const Context& context, const Tensor& q) const {
  const AttentionOptions& options = parts_->options.attention;
  const AttentionShape shape = attention_shape(options);
  require(q.rows() == parts_->batch.rows() && q.columns() == shape.heads * shape.key_dim, kWhere,
          "q is {} for {} heads of {}", q.shape(), shape.heads, shape.key_dim);
  AttentionUnits exact(options), tiled(options);
  parts_->fill(exact, tiled);
  const Tensor output = Tensor::empty({q.rows(), shape.heads * shape.value_dim});
  AttentionOperands operands;
  operands.q = input_matrix(q);
  operands.o = output_matrix(output);
  const Tensor& entries = parts_->entries;
  const bool record = entries.defined() && needs_gradient(context, output, q, entries);
  Tensor log_sum_exp;
  if (record) {
    log_sum_exp = Tensor::empty({q.rows(), shape.heads});
    operands.log_sum_exp = log_sum_exp.data();
  }
  AttentionKernels& kernels = backend().attention();
  if (!exact.empty()) kernels.forward_exact(shape, exact.units(), operands);
  if (!tiled.empty()) kernels.forward(shape, tiled.units(), operands);
  if (!record) return output;

  context.tape->record([shape, operands, q, entries, output, log_sum_exp,
                        kept = std::make_shared<AttentionUnits>(std::move(tiled))] {
    if (!output.has_grad()) return;
    AttentionGradients gradients;
    const Tensor grad_output = output.grad();
    const int64_t key_width = shape.kv_heads * shape.key_dim;
    gradients.o = input_matrix(grad_output);
    gradients.q = input_gradient(q);
    gradients.k = input_gradient(entries.column_slice(0, key_width));
    gradients.v = input_gradient(entries.column_slice(key_width, shape.kv_heads * shape.value_dim));
    backend().attention().backward(shape, kept->units(), operands, gradients);
  });
  return output;
}

BlockLists CompressedKeys::choose(const Tensor& q) const {
  const CompressedKeysOptions& options = parts_->options;
  AttentionUnits units(options.attention);
  parts_->fill(units, units);
  BlockChoice choice;
  choice.score = BlockChoice::Score::softmax;
  choice.lists = options.attention.kv_heads;
  choice.top = options.select_top;
  choice.first = options.select_first;
  choice.last = options.select_last;
  choice.entry_cells = options.block / options.stride;
  choice.block_cells = options.select_block / options.stride;
  PooledVector<int32_t> own(static_cast<size_t>(q.rows()));
  for (const Parts::Place& place : parts_->places) {
    if (place.node >= 0) continue;
    const Segment& segment = *place.segment;
    for (int64_t i = 0; i < segment.length; ++i) {
      const int64_t index = index_in_sequence(segment, i, place.before);
      own[static_cast<size_t>(segment.first_row + i)] =
          static_cast<int32_t>(index / options.select_block);
    }
  }
  choice.top = std::min(choice.top, most_blocks(own));
  BlockLists lists;
  lists.lists = choice.lists;
  lists.width = choice.top;
  lists.block = options.select_block;
  lists.blocks.resize(static_cast<size_t>(q.rows() * choice.lists * choice.top));
  backend().attention().choose_blocks(attention_shape(options.attention), choice, units.units(),
                                      input_matrix(q), own.data(), lists.blocks.data());
  return lists;
}

}  // namespace pronghorn
