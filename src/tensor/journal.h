// Journal: what one operator of one layer remembers of one sequence, as an anchor and rows.
//
// Rows are appended, one per token. Attention reads all rows and never folds them. A recurrence
// folds its rows into a fixed-size state, the anchor, only when the row index reaches a multiple of
// the fold interval, and computes a token from the last anchor and the rows since: so token t is
// always computed from the same numbers in the same order, however the sequence was cut into steps.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tensor/dtype.h"
#include "tensor/storage.h"

namespace pronghorn {

// Longest step (tokens per segment) for which results are bit-identical however a sequence is cut,
// and also the fold interval of recurrences: the best interval for a d_k x d_v state is about
// sqrt(2 d_k d_v / (d_k + d_v + 1)), 11 for 128 x 128.
constexpr int64_t kExactStep = 16;

// Rows that stand for blocks of a journal's rows: row i for rows i stride ... i stride + length
// - 1.
struct BlockRows {
  int64_t length = 0;  // 0: there are none
  int64_t stride = 0;
  int64_t width = 0;  // f32 of a row

  // Blocks that end within the first `rows` rows.
  int64_t within(int64_t rows) const {
    return length == 0 || rows < length ? 0 : (rows - length) / stride + 1;
  }
};

// How a cache drops rows that are little looked at. Whenever `interval` rows more have come, the
// last `observed` queries of these weigh the rows that are held, and of those before the `recent`
// ones the `keep` that weigh most stay. It happens when the next row comes.
struct Eviction {
  int64_t keep = 0;      // 0: no row is ever dropped
  int64_t recent = 0;    // whole pages
  int64_t interval = 0;  // whole pages
  int64_t observed = 0;  // at most a page
  int64_t always = 0;    // the first rows of all, which are among those that stay
  int64_t pool = 1;  // rows, an odd number: a row weighs what the heaviest of those around it does
  bool accumulates = false;  // what queries give is added to what earlier ones gave

  bool is_on() const { return keep > 0; }
  // Of a multiple of the interval: whether rows are dropped, or at least weighed, after so many.
  bool drops(int64_t rows) const { return rows - recent > keep; }
  bool judges(int64_t rows) const { return rows > 0 && (accumulates || drops(rows)); }
  // The last multiple of the interval before `length`.
  int64_t begin(int64_t length) const {
    return length <= 0 ? 0 : (length - 1) / interval * interval;
  }
  // The first row after `row` before which rows are weighed.
  int64_t next(int64_t row) const;
};

// Sizes of a journal; fixed by the layer's configuration.
struct JournalShape {
  std::string name;             // for messages and `inspect`: "key_value", "state", "convolution"
  int64_t row_width = 0;        // numbers of a row
  int64_t anchor_size = 0;      // f32 of the anchor; 0: rows are never folded
  int64_t history = 0;          // rows before the anchor that a token still reads (convolutions)
  int64_t fold_interval = 0;    // rows between anchors; 0: never folds
  bool live = false;            // keeps a running state beside the anchor (see Journal::live)
  DType row_type = DType::f32;  // how the numbers of rows are held: one of kRowTypes
  bool is_cache = false;        // row_type may be chosen for each sequence (see with_cache)
  int64_t kept = 0;             // the first rows, which are never dropped
  // Later layers of the model read its rows, too: those out of reach are dropped at the end of a
  // forward (SequenceState::advance), not by the operator that appends.
  bool is_shared = false;
  // Of a cache: the numbers at the beginning of a row that are the key; 0 where the layer decides
  // itself which rows are looked at, so that a cache cannot (with_cache).
  int64_t key_width = 0;
  // Of a cache: a number that divides the widths of all heads in a row, as blocks of numbers must;
  // 0: rows have no such parts.
  int64_t head_width = 0;
  // Of a cache that keeps the first rows and a window (with_cache): a row sees the kept ones as if
  // nothing lay between them and its window (StreamingLLM, arXiv 2309.17453).
  bool rolls = false;
  // Of a cache: in decoding a row looks at so many blocks (Quest, arXiv 2406.10774); 0: at all.
  int64_t top_blocks = 0;
  BlockRows blocks = {};
  // Of a cache: numbers of what a row looks with, its query and one log-sum-exp for each head.
  int64_t query_width = 0;
  Eviction eviction = {};  // of a cache (CacheOptions::snapkv, ::h2o)
  // In training, the operator lets several segments go on from one (Segment::after).
  bool forks = false;

  int64_t row_bytes() const { return dtype_bytes(row_type, row_width); }
};

// Copies are cheap: pages and anchors are shared and copied when written (copy on write), so a copy
// is a mark to roll back to, or a fork that goes its own way.
class Journal {
 public:
  Journal() = default;
  explicit Journal(JournalShape shape);

  const JournalShape& shape() const { return shape_; }

  // Rows ever committed or appended; also the index of the next row.
  int64_t length() const { return length_; }
  // The oldest row still held, apart from those that are never dropped.
  int64_t first_row() const { return first_row_; }
  // How many rows before that are held: the first ones of the sequence or, where rows are dropped
  // by weight, those that weighed most, in their order. They have the indexes from 0 on.
  int64_t kept() const;

  // Row `index`, first_row() <= index < length(), or one of the kept: row_width numbers of
  // row_type.
  const std::byte* row_data(int64_t index) const;
  std::byte* mutable_row_data(int64_t index);
  // The same for rows of f32.
  const float* row(int64_t index) const { return reinterpret_cast<const float*>(row_data(index)); }
  float* mutable_row(int64_t index) { return reinterpret_cast<float*>(mutable_row_data(index)); }
  // Number of rows that lie one after another in memory from `index` on: tiles of kPageRows rows
  // aligned to multiples of kPageRows are always contiguous.
  int64_t contiguous_rows(int64_t index) const;

  // Appends a row (contents undefined) for each of `positions`, the positions of their tokens, and
  // returns the index of the first. A page shared with a copy of this journal is copied first.
  int64_t append(std::span<const int32_t> positions);
  int32_t position(int64_t index) const;
  // Position of the last of the first `count` rows; nothing if it is no longer known. It is known
  // of rows that are held, and of the last row before an anchor that is held.
  std::optional<int32_t> last_position(int64_t count) const;

  // Drops all rows and continues after tokens at these positions, if there are any, which a bulk
  // update computed without appending rows.
  void skip(std::span<const int32_t> positions);

  // Drops the rows from `length` on. Throws Error if the state at `length` is no longer held: a
  // recurrence holds one anchor more than the newest, so it can always go back kExactStep rows.
  void truncate(int64_t length);
  // Throws what truncate(length) would throw, and changes nothing.
  void require_held(int64_t length) const;

  // The anchor: the state after anchor_row() rows; null while it is all zeros (a fresh sequence).
  int64_t anchor_row() const { return anchor_row_; }
  const float* anchor() const { return anchor_ ? floats(*anchor_) : nullptr; }
  // Folding: begin_anchor() gives a buffer (contents undefined) for the new anchor while anchor()
  // still is the old one; commit_anchor() makes it the state after `row` rows and drops rows that
  // nobody can need; row <= length(). keep_previous: the old anchor and the rows since are kept for
  // truncate(); false after a bulk update whose rows were skipped. With anchor_size 0 (a
  // convolution) there is no state, and only rows are dropped.
  float* begin_anchor();
  void commit_anchor(int64_t row, bool keep_previous);
  // For rows without a state (convolutions, windows): drops those that neither the tokens to come
  // nor truncate() by a fold interval can ask for.
  void pass();

  // A scratch state that runs ahead of the anchor, for operators whose state is small enough to
  // update every token: derived from the anchor and the rows, so neither saved nor counted by the
  // laws. live_row(): how many rows it has seen, -1 if there is none. live(): a private buffer of
  // anchor_size floats, holding that state if there is one.
  int64_t live_row() const { return live_row_; }
  float* live();
  void set_live_row(int64_t row) { live_row_ = row; }

  // The rows of shape().blocks: a journal that whoever appends rows appends to, for blocks that are
  // complete; it may lag behind. truncate() drops those that are no longer complete. Their
  // positions are those of the last rows of the blocks. Throws Error if there are none.
  Journal& blocks();
  const Journal& blocks() const;

  // Where rows are dropped by weight (shape().eviction). judged(): the length at which rows were
  // last weighed; truncate() goes no further back. weights(): what the rows then held had been
  // given if that accumulates, the kept ones and then those from first_row() on.
  int64_t judged() const { return judged_; }
  std::span<const float> weights() const { return weights_; }
  // The last queries before the next judgement, query_width numbers each, and how many of them
  // there are to be after `length` rows, none of which is judged.
  Journal& queries();
  const Journal& queries() const;
  int64_t expected_queries(int64_t length) const;
  // Ends a judgement: the rows from `first` on stay, and of those before it `rows`, ascending and
  // shape().eviction.keep many; first_row(): all stay. weights: of those that stay, as weights().
  void judge(std::span<const int64_t> rows, int64_t first, std::vector<float> weights);

  // Token trees: the last tree_rows() rows are nodes with parents; nothing may be appended or
  // folded until commit_path() keeps some of them. parents[i] < i: index within the nodes, or -1
  // for the last committed row.
  void set_tree(std::vector<int32_t> parents);
  int64_t tree_rows() const { return static_cast<int64_t>(tree_.size()); }
  std::span<const int32_t> tree() const { return tree_; }
  // Keeps the nodes of `path` (indexes into the nodes, root first), in order; drops the others.
  void commit_path(std::span<const int32_t> path);

  // Bytes of pages and anchors that this journal refers to (shared ones counted in full).
  int64_t bytes() const;

  // Bytes that a journal of this shape holds after `length` rows appended in one go.
  static int64_t predicted_bytes(const JournalShape& shape, int64_t length);

  // Serialised form, self-describing. load() throws Error unless what it reads is a journal of this
  // shape that keeps what operators count on: anchors at multiples of the fold interval, one
  // interval apart, with a state exactly where rows were folded; all rows since the older one and
  // the history before it; positions that grow.
  void save(std::string& out) const;
  void load(std::span<const std::byte>& in, std::string_view where);

  static constexpr int64_t kPageRows = 64;

 private:
  using Block = std::shared_ptr<Storage>;
  struct Page;  // kPageRows rows and the positions of their tokens
  static float* floats(const Storage& storage) { return reinterpret_cast<float*>(storage.data()); }
  size_t page_bytes() const;
  Page& page(int64_t row) const;
  Page& writable_page(int64_t row);
  void drop_old_rows();
  template <typename Self>
  static auto& page_of(Self& self, int64_t row);
  // The kept rows before first_row(), as save() has them.
  void save_kept(std::string& out) const;
  void load_kept(std::span<const std::byte>& in, std::string_view where);
  void load_blocks(std::span<const std::byte>& in, std::string_view where);
  void save_judgement(std::string& out) const;
  void load_judgement(std::span<const std::byte>& in, std::string_view where);

  JournalShape shape_;
  // pages_[i] holds rows (first_page_ + i) * kPageRows ...; kept_pages_[i] rows i * kPageRows ...,
  // of those before that some are kept.
  std::vector<std::shared_ptr<Page>> pages_, kept_pages_;
  int64_t first_page_ = 0, first_row_ = 0, length_ = 0;
  Block anchor_, previous_anchor_, next_anchor_, live_;
  int64_t anchor_row_ = 0, previous_anchor_row_ = -1, live_row_ = -1;
  // Positions of the last rows before the anchors, and of the last row before those held.
  int32_t anchor_position_ = -1, previous_anchor_position_ = -1, skipped_position_ = -1;
  int64_t skipped_row_ = 0;
  std::vector<int32_t> tree_;
  std::vector<Journal> blocks_, queries_;  // one or none
  int64_t judged_ = 0;
  std::vector<float> weights_;
};

}  // namespace pronghorn
