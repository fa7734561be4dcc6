// SequenceState: everything one sequence carries through a model: the journals of every layer.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tensor/journal.h"

namespace pronghorn {

// The journals of each layer of a model, in order; shared by all its states. `fingerprint` tells
// models apart, so that a state saved by one is not loaded into another.
struct StateLayout {
  std::vector<std::vector<JournalShape>> layers;
  uint64_t fingerprint = 0;
  // Rows that the model puts before the first token of every sequence.
  int64_t prefix = 0;
  // Subsampled spans: the span that each layer belongs to directly, and the span around each span
  // (a smaller number); -1 for none. layer_spans empty: there are no spans.
  std::vector<int64_t> layer_spans = {}, span_parents = {};

  int64_t span_of(size_t layer) const { return layer_spans.empty() ? -1 : layer_spans[layer]; }
};

// How attention's keys and values are kept of a sequence, whatever the model.
struct CacheOptions {
  DType type = DType::f32;  // one of kRowTypes
  // A row sees the first `sinks` rows of the sequence and the last `window`, its own included, as
  // if nothing had been between them, and no others are kept (StreamingLLM, arXiv 2309.17453).
  // Layers with a shorter window of their own and those that choose blocks stay. window 0: all
  // rows.
  int64_t window = 0, sinks = 4;
  // In decoding, steps of up to kExactStep tokens and trees, heads look at so many pages of
  // kQuestPage rows, those whose keys may score highest, the last one among them (Quest, arXiv
  // 2406.10774). The first two layers that could, those with a window and those that choose blocks
  // stay. 0: all pages.
  int64_t quest_pages = 0;
  // Rows are dropped that are little looked at, for good; at most one of the two, and neither a
  // window nor pages. Layers that are as they are in Quest, but for the first two, and those whose
  // keys later layers read keep all. 0: no rows are dropped.
  // SnapKV (arXiv 2404.14469): after every kSnapInterval rows the last kSnapQueries of them choose
  // the `snapkv` rows that stay of those before the last page.
  int64_t snapkv = 0;
  // Heavy hitters (H2O, arXiv 2306.14048): after every page of rows the `h2o` rows stay that all
  // queries so far have given most to, and as many of the last ones, rounded up to pages.
  int64_t h2o = 0;

  bool evicts() const { return snapkv > 0 || h2o > 0; }

  CacheOptions() = default;
  CacheOptions(DType chosen) : type(chosen) {}  // NOLINT(google-explicit-constructor)
  bool operator==(const CacheOptions&) const = default;
};
constexpr int64_t kQuestPage = 16;
constexpr int64_t kSnapInterval = 256, kSnapQueries = 32;

// The layout of a model's states with these options. Its fingerprint is that of `layout` for the
// defaults only. Throws Error for another type, heads that are not whole blocks of it, negative
// numbers, several ways beside each other, and rows to be dropped where no layer can.
std::shared_ptr<const StateLayout> with_cache(std::shared_ptr<const StateLayout> layout,
                                              const CacheOptions& options);

// A value: a copy is a fork or a mark to roll back to, and shares memory until either is changed.
//
//   SequenceState mark = state;   // remember
//   model.forward(...)            // append anything
//   state = mark;                 // roll back: bit-identical, as if never appended
class SequenceState {
 public:
  SequenceState() = default;
  explicit SequenceState(std::shared_ptr<const StateLayout> layout);

  // Tokens consumed so far (committed ones: the nodes of an uncommitted tree do not count). The
  // model's prefix is none of them.
  int64_t length() const { return has_begun() ? rows_ - prefix() : 0; }
  // Whether the prefix has been read, if there is one. The first forward does that.
  bool has_begun() const { return rows_ >= prefix(); }
  // Counts tokens, at the end of a forward that has appended them to all journals.
  void advance(int64_t tokens);

  Journal& journal(int64_t layer, int64_t index);
  const std::vector<std::vector<Journal>>& layers() const { return layers_; }

  // Forgets the tokens from `length` on. Attention to everything always can; a window or a
  // recurrence holds what is needed to go back kExactStep tokens, and a cache that drops rows by
  // weight goes back to where it last did (Journal::judged). Further back throws Error: keep a copy
  // instead.
  void truncate(int64_t length);

  // After a step over a token tree: keeps the nodes of `path` (root first), forgets the others.
  void commit(std::span<const int32_t> path);

  // Of a tree that waits for commit(): which nodes, as numbered in the span around it, entered a
  // subsampled span.
  void set_tree_nodes(int64_t span, std::vector<int32_t> nodes);

  // Tokens that reached the layers directly in `span`, -1: those outside all spans. Nothing if no
  // layer there keeps a journal.
  std::optional<int64_t> rows(int64_t span) const;

  // Whether rows are dropped by weight, so that tokens cannot be taken back at will.
  bool evicts() const;

  // Bytes of all journals, or of those of the layers directly in `span`.
  int64_t bytes() const;
  int64_t bytes(int64_t span) const;

  // A self-contained byte string, with a checksum. load() throws Error on anything unexpected, such
  // as journals that do not agree with the length of the sequence or with each other.
  std::string save() const;
  static SequenceState load(std::span<const std::byte> bytes,
                            std::shared_ptr<const StateLayout> layout, std::string_view where);

 private:
  std::shared_ptr<const StateLayout> layout_;
  std::vector<std::vector<Journal>> layers_;
  int64_t prefix() const { return layout_ == nullptr ? 0 : layout_->prefix; }

  std::vector<std::vector<int32_t>> tree_nodes_;  // of each span
  int64_t rows_ = 0;                              // tokens, and the prefix
};

}  // namespace pronghorn
