#include "tensor/sequence_state.h"

#include <xxhash.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "tensor/bytes.h"

namespace pronghorn {
namespace {

constexpr uint64_t kMagic = 0x3253474e4f525000;  // "\0PRONGS2"

// The paper's choice: the first layers attend to much of the text, so that little can be left out.
constexpr int64_t kDenseQuestLayers = 2;

// Committed rows of a journal whose tokens come before position `length`; their positions grow.
// Throws Error if that many rows are no longer known.
int64_t rows_before(const Journal& journal, int64_t length) {
  const int64_t first = journal.first_row();
  int64_t low = first, high = journal.length() - journal.tree_rows();
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (journal.position(middle) < length) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  require(
      low >= journal.judged(), journal.shape().name,
      "rows before {} were weighed, and some evicted, so the state after {} tokens is no longer "
      "held; keep a mark to go back further",
      journal.judged(), length);
  const bool known =
      low > first || low == 0 || journal.last_position(low).value_or(INT32_MAX) < length;
  require(known, journal.shape().name,
          "the state after {} tokens is no longer held; keep a mark to go back further", length);
  return low;
}

void check(const CacheOptions& options) {
  constexpr char kWhere[] = "cache";
  require(std::ranges::find(kRowTypes, options.type) != kRowTypes.end(), kWhere,
          "type {} is none of f32, bf16, f16, q8_0, q4_0", dtype_name(options.type));
  // More rows and pages than any text has: sums with them fit.
  constexpr int64_t kMost = int64_t{1} << 31;
  const auto [least, most] = std::minmax(
      {options.window, options.sinks, options.quest_pages, options.snapkv, options.h2o});
  require(
      least >= 0 && most <= kMost, kWhere,
      "a window of {}, {} sinks, {} pages, {} rows by SnapKV, {} heavy hitters (each is a number "
      "from 0 to {})",
      options.window, options.sinks, options.quest_pages, options.snapkv, options.h2o, kMost);
  const int64_t ways[] = {options.window, options.quest_pages, options.snapkv, options.h2o};
  require(std::ranges::count(ways, 0) >= std::ssize(ways) - 1, kWhere,
          "a window of {}, {} pages, {} rows by SnapKV and {} heavy hitters beside each other "
          "(choose one of them)",
          options.window, options.quest_pages, options.snapkv, options.h2o);
}

void keep_window(JournalShape& shape, const CacheOptions& options, int64_t prefix) {
  if (shape.fold_interval > 0 && shape.history <= options.window) return;
  shape.history = options.window;
  shape.kept = prefix + options.sinks;
  shape.fold_interval = Journal::kPageRows;
  shape.rolls = true;
}

// Of layers that see all rows and read no keys of others.
void drop_by_weight(JournalShape& shape, const CacheOptions& options, int64_t prefix) {
  constexpr int64_t kPage = Journal::kPageRows;
  constexpr int64_t kNeighbours = 7;  // the paper's kernel of its pooling
  Eviction& eviction = shape.eviction;
  eviction.always = prefix;
  if (options.snapkv > 0) {
    eviction.keep = prefix + options.snapkv;
    eviction.recent = kPage;
    eviction.interval = kSnapInterval;
    eviction.observed = kSnapQueries;
    eviction.pool = kNeighbours;
  } else {
    eviction.keep = prefix + options.h2o;
    eviction.recent = (options.h2o + kPage - 1) / kPage * kPage;
    eviction.interval = eviction.observed = kPage;
    eviction.accumulates = true;
  }
}

int64_t bytes_of(const std::vector<Journal>& journals) {
  int64_t total = 0;
  for (const Journal& journal : journals) total += journal.bytes();
  return total;
}

// Of a state from a file: journals must be as long as the sequence or as what reached their span,
// and hold no token that comes after it.
void check_lengths(const SequenceState& state, int64_t rows, const StateLayout& layout,
                   std::string_view where) {
  for (size_t layer = 0; layer < state.layers().size(); ++layer) {
    int64_t span = layout.span_of(layer), most = rows;
    const int64_t length = span < 0 ? most : state.rows(span).value_or(0);
    // All layers directly in a span see the same tokens, which are some of those around it.
    while (span >= 0) {
      span = layout.span_parents[static_cast<size_t>(span)];
      most = span < 0 ? most : std::min(most, state.rows(span).value_or(most));
    }
    for (const Journal& journal : state.layers()[layer]) {
      require(journal.length() == length && length <= most, where,
              "journal '{}' of layer {} has {} rows, in a sequence of {}", journal.shape().name,
              layer, journal.length(), rows);
      const int64_t last = journal.last_position(length).value_or(-1);
      require(last < rows, where, "journal '{}' of layer {} has position {}, in a sequence of {}",
              journal.shape().name, layer, last, rows);
    }
  }
}

}  // namespace

std::shared_ptr<const StateLayout> with_cache(std::shared_ptr<const StateLayout> layout,
                                              const CacheOptions& options) {
  check(options);
  if (options == CacheOptions()) return layout;  // states of f32 that keep everything
  auto result = std::make_shared<StateLayout>(*layout);
  const uint64_t identity[] = {layout->fingerprint,
                               static_cast<uint64_t>(options.type),
                               static_cast<uint64_t>(options.window),
                               static_cast<uint64_t>(options.sinks),
                               static_cast<uint64_t>(options.quest_pages),
                               static_cast<uint64_t>(options.snapkv),
                               static_cast<uint64_t>(options.h2o)};
  const bool plain = options.window == 0 && options.quest_pages == 0;
  const size_t numbers = options.evicts() ? std::size(identity) : plain ? 2 : 5;
  result->fingerprint = XXH3_64bits(identity, numbers * sizeof(uint64_t));
  int64_t dense_layers = kDenseQuestLayers;
  bool evicts = false;
  for (std::vector<JournalShape>& shapes : result->layers) {
    for (JournalShape& shape : shapes) {
      if (!shape.is_cache) continue;
      const int64_t block = dtype_block(options.type);
      require(block == 1 || (shape.head_width > 0 && shape.head_width % block == 0), "cache",
              "{} holds blocks of {} numbers, but heads of layer {} have widths that are multiples "
              "of {} (choose f16)",
              dtype_name(options.type), block, &shapes - result->layers.data(), shape.head_width);
      shape.row_type = options.type;
      if (shape.key_width == 0) continue;
      if (options.window > 0) keep_window(shape, options, layout->prefix);
      if (shape.fold_interval > 0) continue;
      if (options.evicts() && !shape.is_shared && shape.query_width > 0) {
        drop_by_weight(shape, options, layout->prefix);
        evicts = true;
      }
      if (options.quest_pages == 0) continue;
      if (dense_layers-- > 0) continue;
      shape.top_blocks = options.quest_pages;
      shape.blocks = {kQuestPage, kQuestPage, 2 * shape.key_width};
    }
  }
  if (options.evicts() && !evicts) {
    throw Error("cache", "no layer of the model has keys that can be dropped by their weight",
                "leave out SnapKV and H2O: they are for attention to all that came before");
  }
  return result;
}

SequenceState::SequenceState(std::shared_ptr<const StateLayout> layout)
    : layout_(std::move(layout)) {
  for (const auto& shapes : layout_->layers) {
    layers_.emplace_back(shapes.begin(), shapes.end());
  }
  tree_nodes_.resize(layout_->span_parents.size());
}

Journal& SequenceState::journal(int64_t layer, int64_t index) {
  require(layer >= 0 && layer < static_cast<int64_t>(layers_.size()) && index >= 0 &&
              index < static_cast<int64_t>(layers_[static_cast<size_t>(layer)].size()),
          "sequence state", "has no journal {} in layer {}: it belongs to another model", index,
          layer);
  return layers_[static_cast<size_t>(layer)][static_cast<size_t>(index)];
}

void SequenceState::advance(int64_t tokens) {
  rows_ += tokens;
  for (auto& layer : layers_) {
    for (Journal& journal : layer) {
      if (journal.shape().is_shared && journal.shape().fold_interval > 0) journal.pass();
    }
  }
}

void SequenceState::truncate(int64_t length) {
  require(length >= 0 && length <= this->length(), "sequence state",
          "cannot truncate {} tokens to {}", this->length(), length);
  // The prefix stays, once it is there.
  const int64_t end = length + (has_begun() ? prefix() : 0);
  // All journals are asked before the first is changed: an Error leaves the state as it was.
  std::vector<int64_t> rows;
  for (const auto& layer : layers_) {
    for (const Journal& journal : layer) {
      rows.push_back(rows_before(journal, end));
      journal.require_held(rows.back());
    }
  }
  auto next = rows.begin();
  for (auto& layer : layers_) {
    for (Journal& journal : layer) journal.truncate(*next++);
  }
  for (std::vector<int32_t>& nodes : tree_nodes_) nodes.clear();
  rows_ = end;
}

void SequenceState::commit(std::span<const int32_t> path) {
  // The path in the numbers of each span: it lists nodes in ascending order, and so do the spans.
  std::vector<std::vector<int32_t>> paths;
  const std::vector<int32_t> whole(path.begin(), path.end());
  for (size_t span = 0; span < tree_nodes_.size(); ++span) {
    const int64_t parent = layout_->span_parents[span];
    const std::vector<int32_t>& nodes = tree_nodes_[span];
    std::vector<int32_t> inner;
    for (const int32_t node : parent < 0 ? whole : paths[static_cast<size_t>(parent)]) {
      const auto found = std::lower_bound(nodes.begin(), nodes.end(), node);
      if (found != nodes.end() && *found == node) {
        inner.push_back(static_cast<int32_t>(found - nodes.begin()));
      }
    }
    paths.push_back(std::move(inner));
  }
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    const int64_t span = layout_->span_of(layer);
    const std::vector<int32_t>& own = span < 0 ? whole : paths[static_cast<size_t>(span)];
    for (Journal& journal : layers_[layer]) journal.commit_path(own);
  }
  for (std::vector<int32_t>& nodes : tree_nodes_) nodes.clear();
  rows_ += static_cast<int64_t>(path.size());
}

void SequenceState::set_tree_nodes(int64_t span, std::vector<int32_t> nodes) {
  require(span >= 0 && span < static_cast<int64_t>(tree_nodes_.size()), "sequence state",
          "has no subsampled span {}: it belongs to another model", span);
  tree_nodes_[static_cast<size_t>(span)] = std::move(nodes);
}

std::optional<int64_t> SequenceState::rows(int64_t span) const {
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    if (layout_->span_of(layer) != span || layers_[layer].empty()) continue;
    const Journal& journal = layers_[layer].front();
    return journal.length() - journal.tree_rows();
  }
  return {};
}

bool SequenceState::evicts() const {
  return layout_ != nullptr && std::ranges::any_of(layout_->layers, [](const auto& shapes) {
           return std::ranges::any_of(
               shapes, [](const JournalShape& shape) { return shape.eviction.is_on(); });
         });
}

int64_t SequenceState::bytes(int64_t span) const {
  int64_t total = 0;
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    if (layout_->span_of(layer) == span) total += bytes_of(layers_[layer]);
  }
  return total;
}

int64_t SequenceState::bytes() const {
  int64_t total = 0;
  for (const auto& layer : layers_) total += bytes_of(layer);
  return total;
}

std::string SequenceState::save() const {
  std::string out;
  put(out, kMagic);
  put(out, layout_ ? layout_->fingerprint : uint64_t{0});
  put(out, rows_);
  for (const auto& layer : layers_) {
    for (const Journal& journal : layer) journal.save(out);
  }
  put(out, static_cast<uint64_t>(XXH3_64bits(out.data(), out.size())));
  return out;
}

SequenceState SequenceState::load(std::span<const std::byte> bytes,
                                  std::shared_ptr<const StateLayout> layout,
                                  std::string_view where) {
  require(bytes.size() >= 4 * sizeof(uint64_t), where, "{} bytes are too few for a session",
          bytes.size());
  std::span<const std::byte> in = bytes.first(bytes.size() - sizeof(uint64_t));
  std::span<const std::byte> tail = bytes.last(sizeof(uint64_t));
  const uint64_t checksum = XXH3_64bits(in.data(), in.size());
  require(take<uint64_t>(in, where) == kMagic, where, "is not a saved session");
  require(take<uint64_t>(tail, where) == checksum, where, "is damaged: its checksum differs");
  require(take<uint64_t>(in, where) == layout->fingerprint, where,
          "was saved by another model, configuration or cache type, or with other limits to what "
          "attention keeps (name another file, or ask for what it was saved with)");
  SequenceState state(std::move(layout));
  state.rows_ = take<int64_t>(in, where);
  require(state.rows_ >= 0 && state.rows_ <= INT32_MAX, where, "has length {}", state.rows_);
  require(state.rows_ == 0 || state.has_begun(), where,
          "has {} rows, fewer than the model's prefix", state.rows_);
  for (auto& layer : state.layers_) {
    for (Journal& journal : layer) journal.load(in, where);
  }
  check_lengths(state, state.rows_, *state.layout_, where);
  require(in.empty(), where, "has {} bytes too many", in.size());
  return state;
}

}  // namespace pronghorn
