#include "tensor/journal.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/quote.h"
#include "tensor/bytes.h"
#include "tensor/memory.h"
#include "tensor/pool.h"

namespace pronghorn {
namespace {

// Storages of the same size.
void copy_storage(const Storage& from, const Storage& to) {
  const RowCopy whole{from.data(), to.data(), from.bytes()};
  memory().copy({&whole, 1});
}

void append_bytes(std::string& out, const std::byte* from, size_t bytes) {
  out.resize(out.size() + bytes);
  memory().read(from, out.data() + out.size() - bytes, bytes);
}

void take_storage(std::span<const std::byte>& in, std::byte* to, size_t bytes,
                  std::string_view where) {
  require(bytes <= in.size(), where, "ends too early: {} more bytes expected, {} left", bytes,
          in.size());
  memory().write(in.data(), to, bytes);
  in = in.subspan(bytes);
}

JournalShape block_shape(const JournalShape& shape) {
  JournalShape blocks;
  blocks.name = shape.name + "_blocks";
  blocks.row_width = shape.blocks.width;
  return blocks;
}

JournalShape query_shape(const JournalShape& shape) {
  JournalShape queries;
  queries.name = shape.name + "_queries";
  queries.row_width = shape.query_width;
  return queries;
}

// Queries that wait for the next judgement after `length` rows, the last of which is not judged.
int64_t waiting_queries(const Eviction& eviction, int64_t length) {
  const int64_t end = eviction.begin(length) + eviction.interval;
  return eviction.judges(end) ? std::max<int64_t>(0, length - (end - eviction.observed)) : 0;
}

}  // namespace

int64_t Eviction::next(int64_t row) const {
  int64_t end = (row / interval + 1) * interval;
  if (!judges(end)) end = (recent + keep) / interval * interval + interval;
  return end;
}

// Positions are the host's: what a token sees is found from them.
struct Journal::Page {
  explicit Page(const JournalShape& shape)
      : rows(static_cast<size_t>(kPageRows * shape.row_bytes())) {}

  Storage rows;
  std::array<int32_t, kPageRows> positions;
};

Journal::Journal(JournalShape shape) : shape_(std::move(shape)) {
  if (shape_.blocks.length > 0) blocks_.emplace_back(block_shape(shape_));
  if (shape_.eviction.is_on()) queries_.emplace_back(query_shape(shape_));
}

int64_t Journal::kept() const {
  if (!shape_.eviction.is_on()) return shape_.kept;
  return first_row_ > 0 ? shape_.eviction.keep : 0;
}

Journal& Journal::queries() {
  require(!queries_.empty(), shape_.name, "keeps no queries");
  return queries_.front();
}

const Journal& Journal::queries() const {
  require(!queries_.empty(), shape_.name, "keeps no queries");
  return queries_.front();
}

int64_t Journal::expected_queries(int64_t length) const {
  return length == judged_ ? 0 : waiting_queries(shape_.eviction, length);
}

Journal& Journal::blocks() {
  require(!blocks_.empty(), shape_.name, "keeps no rows for blocks");
  return blocks_.front();
}

const Journal& Journal::blocks() const {
  require(!blocks_.empty(), shape_.name, "keeps no rows for blocks");
  return blocks_.front();
}

size_t Journal::page_bytes() const {
  return static_cast<size_t>(kPageRows) *
         (static_cast<size_t>(shape_.row_bytes()) + sizeof(int32_t));
}

template <typename Self>
auto& Journal::page_of(Self& self, int64_t row) {
  const int64_t index = row / kPageRows;
  return index < self.first_page_ ? self.kept_pages_[static_cast<size_t>(index)]
                                  : self.pages_[static_cast<size_t>(index - self.first_page_)];
}

Journal::Page& Journal::page(int64_t row) const { return *page_of(*this, row); }

Journal::Page& Journal::writable_page(int64_t row) {
  std::shared_ptr<Page>& page = page_of(*this, row);
  if (page.use_count() > 1) {
    auto copy = make_pooled<Page>(shape_);
    copy_storage(page->rows, copy->rows);
    copy->positions = page->positions;
    page = std::move(copy);
  }
  return *page;
}

const std::byte* Journal::row_data(int64_t index) const {
  return page(index).rows.data() + index % kPageRows * shape_.row_bytes();
}

std::byte* Journal::mutable_row_data(int64_t index) {
  return writable_page(index).rows.data() + index % kPageRows * shape_.row_bytes();
}

int64_t Journal::contiguous_rows(int64_t index) const {
  return std::min(length_, (index / kPageRows + 1) * kPageRows) - index;
}

int32_t Journal::position(int64_t index) const {
  return page(index).positions[static_cast<size_t>(index % kPageRows)];
}

std::optional<int32_t> Journal::last_position(int64_t count) const {
  if (count > first_row_ && count <= length_) return position(count - 1);
  if (count == anchor_row_) return anchor_position_;
  if (count == previous_anchor_row_) return previous_anchor_position_;
  if (count == skipped_row_) return skipped_position_;
  return {};
}

int64_t Journal::append(std::span<const int32_t> positions) {
  require(tree_.empty(), shape_.name, "rows appended while a token tree waits for commit_path()");
  const int64_t first = length_;
  for (const int32_t position : positions) {
    const int64_t page_index = length_ / kPageRows;
    if (pages_.empty()) first_page_ = page_index;
    if (page_index - first_page_ == static_cast<int64_t>(pages_.size())) {
      pages_.push_back(make_pooled<Page>(shape_));
      // Rows of a page that are not there weigh nothing, but are numbers.
      const int64_t missing = length_ % kPageRows;
      memory().clear(pages_.back()->rows.data(), static_cast<size_t>(missing * shape_.row_bytes()));
    }
    writable_page(length_).positions[static_cast<size_t>(length_ % kPageRows)] = position;
    ++length_;
  }
  return first;
}

void Journal::skip(std::span<const int32_t> positions) {
  require(tree_.empty(), shape_.name, "cannot skip rows after a token tree");
  skipped_position_ = positions.empty() ? last_position(length_).value_or(-1) : positions.back();
  pages_.clear();
  first_row_ = length_ = skipped_row_ = length_ + static_cast<int64_t>(positions.size());
  if (live_row_ != length_) live_row_ = -1;
}

void Journal::require_held(int64_t length) const {
  require(length >= 0 && length <= length_, shape_.name, "cannot truncate {} rows to {}", length_,
          length);
  require(length >= anchor_row_ || (previous_anchor_row_ >= 0 && length >= previous_anchor_row_),
          shape_.name,
          "the state after {} rows is no longer held (oldest: {}); keep a mark to go back further",
          length, previous_anchor_row_ >= 0 ? previous_anchor_row_ : anchor_row_);
  require(length >= judged_, shape_.name,
          "rows before {} were weighed, and some evicted, so the state after {} is no longer held; "
          "keep a mark to go back further",
          judged_, length);
}

void Journal::truncate(int64_t length) {
  require_held(length);
  tree_.clear();
  if (length == length_) return;
  if (length < anchor_row_) {
    anchor_ = std::move(previous_anchor_);
    anchor_row_ = previous_anchor_row_;
    anchor_position_ = previous_anchor_position_;
    previous_anchor_.reset();
    previous_anchor_row_ = -1;
  }
  length_ = length;
  for (Journal& blocks : blocks_) {
    blocks.truncate(std::min(blocks.length(), shape_.blocks.within(length)));
  }
  for (Journal& queries : queries_) {
    queries.truncate(std::min(queries.length(), expected_queries(length)));
  }
  if (live_row_ > length_) live_row_ = -1;
  const int64_t pages = length_ == 0 ? 0 : (length_ - 1) / kPageRows + 1 - first_page_;
  pages_.resize(static_cast<size_t>(std::max<int64_t>(0, pages)));
}

float* Journal::begin_anchor() {
  next_anchor_ = std::make_shared<Storage>(static_cast<size_t>(shape_.anchor_size) * sizeof(float));
  return floats(*next_anchor_);
}

void Journal::commit_anchor(int64_t row, bool keep_previous) {
  require(tree_.empty() && row >= anchor_row_ && row <= length_, shape_.name,
          "anchor at row {} of {} after one at {}", row, length_, anchor_row_);
  previous_anchor_ = keep_previous ? std::move(anchor_) : nullptr;
  previous_anchor_row_ = keep_previous ? anchor_row_ : -1;
  previous_anchor_position_ = anchor_position_;
  anchor_position_ = last_position(row).value_or(-1);
  anchor_ = std::move(next_anchor_);
  next_anchor_.reset();
  anchor_row_ = row;
  drop_old_rows();
}

void Journal::pass() {
  require(shape_.anchor_size == 0 && shape_.fold_interval > 0, shape_.name,
          "keeps a state, which must be folded");
  const int64_t fold = (length_ - 1) / shape_.fold_interval * shape_.fold_interval;
  for (const int64_t row : {fold - shape_.fold_interval, fold}) {
    if (row > anchor_row_) commit_anchor(row, true);
  }
}

void Journal::drop_old_rows() {
  const int64_t oldest = previous_anchor_row_ >= 0 ? previous_anchor_row_ : anchor_row_;
  first_row_ = std::max(first_row_, oldest - shape_.history);
  const int64_t pages = first_row_ / kPageRows - first_page_;
  if (pages > 0) {
    const int64_t held = static_cast<int64_t>(pages_.size());
    for (int64_t i = 0; i < std::min(pages, held); ++i) {
      if ((first_page_ + i) * kPageRows >= shape_.kept) break;
      kept_pages_.push_back(pages_[static_cast<size_t>(i)]);
    }
    pages_.erase(pages_.begin(), pages_.begin() + std::min(pages, held));
    first_page_ += pages;
  }
}

float* Journal::live() {
  const auto bytes = static_cast<size_t>(shape_.anchor_size) * sizeof(float);
  if (!live_ || live_.use_count() > 1) {
    auto copy = std::make_shared<Storage>(bytes);
    if (live_ && live_row_ >= 0) copy_storage(*live_, *copy);
    live_ = std::move(copy);
  }
  return floats(*live_);
}

void Journal::judge(std::span<const int64_t> rows, int64_t first, std::vector<float> weights) {
  const Eviction& eviction = shape_.eviction;
  require(tree_.empty() && first >= first_row_ && first % kPageRows == 0, shape_.name,
          "rows from {} on stay of those from {} on", first, first_row_);
  if (first > first_row_) {
    require(std::ssize(rows) == eviction.keep && first == length_ - eviction.recent, shape_.name,
            "{} rows stay before row {} of {}", rows.size(), first, length_);
    const auto row_bytes = static_cast<size_t>(shape_.row_bytes());
    std::vector<std::shared_ptr<Page>> pages;
    std::vector<RowCopy> copies;
    for (int64_t i = 0; i < eviction.keep; ++i) {
      if (i % kPageRows == 0) {
        pages.push_back(make_pooled<Page>(shape_));
        // Rows of a page that are not there weigh nothing, but are numbers.
        if (eviction.keep - i < kPageRows) {
          memory().clear(pages.back()->rows.data(), pages.back()->rows.bytes());
        }
      }
      const int64_t row = rows[static_cast<size_t>(i)];
      Page& page = *pages.back();
      copies.push_back(
          {row_data(row), page.rows.data() + i % kPageRows * shape_.row_bytes(), row_bytes});
      page.positions[static_cast<size_t>(i % kPageRows)] = position(row);
    }
    memory().copy(copies);
    kept_pages_ = std::move(pages);
    pages_.erase(pages_.begin(), pages_.begin() + (first / kPageRows - first_page_));
    first_page_ = first / kPageRows;
    first_row_ = first;
  }
  weights_ = std::move(weights);
  judged_ = length_;
  queries_.front() = Journal(query_shape(shape_));
}

void Journal::set_tree(std::vector<int32_t> parents) {
  require(static_cast<int64_t>(parents.size()) <= length_ - anchor_row_, shape_.name,
          "a tree of {} nodes over {} rows", parents.size(), length_ - anchor_row_);
  for (size_t i = 0; i < parents.size(); ++i) {
    require(parents[i] >= -1 && parents[i] < static_cast<int64_t>(i), shape_.name,
            "node {} of a tree cannot have parent {}", i, parents[i]);
  }
  tree_ = std::move(parents);
}

void Journal::commit_path(std::span<const int32_t> path) {
  const auto nodes = static_cast<int32_t>(tree_.size());
  const int64_t base = length_ - nodes;
  int32_t previous = -1;
  for (const int32_t node : path) {
    require(node >= 0 && node < nodes, shape_.name, "no node {} in a tree of {}", node, nodes);
    require(tree_[static_cast<size_t>(node)] == previous, shape_.name,
            "node {} of the path is not a child of node {}", node, previous);
    previous = node;
  }
  // Parents come before their children, so a row never moves on to one that is still to be moved.
  for (size_t i = 0; i < path.size(); ++i) {
    const int64_t to = base + static_cast<int64_t>(i), from = base + path[i];
    if (to == from) continue;
    const int32_t position_moved = position(from);
    std::byte* target = mutable_row_data(to);  // may copy the page that `from` lies on
    const RowCopy row{row_data(from), target, static_cast<size_t>(shape_.row_bytes())};
    memory().copy({&row, 1});
    page(to).positions[static_cast<size_t>(to % kPageRows)] = position_moved;
  }
  tree_.clear();
  truncate(base + static_cast<int64_t>(path.size()));
}

int64_t Journal::bytes() const {
  auto total = static_cast<int64_t>((pages_.size() + kept_pages_.size()) * page_bytes());
  for (const Block& block : {anchor_, previous_anchor_, live_}) {
    if (block) total += static_cast<int64_t>(block->bytes());
  }
  for (const Journal& blocks : blocks_) total += blocks.bytes();
  for (const Journal& queries : queries_) total += queries.bytes();
  return total + static_cast<int64_t>(weights_.size() * sizeof(float));
}

int64_t Journal::predicted_bytes(const JournalShape& shape, int64_t length) {
  if (length == 0) return 0;
  int64_t oldest = 0, anchors = 0, kept_rows = shape.kept, judgement = 0;
  if (shape.eviction.is_on()) {
    const Eviction& eviction = shape.eviction;
    const int64_t begin = eviction.begin(length), judged = eviction.judges(begin) ? begin : 0;
    kept_rows = 0;
    if (judged > 0 && eviction.drops(judged)) {
      oldest = judged - eviction.recent;
      kept_rows = eviction.keep;
    }
    judgement = predicted_bytes(query_shape(shape), waiting_queries(eviction, length));
    if (eviction.accumulates) judgement += (kept_rows + judged - oldest) * int64_t{sizeof(float)};
  } else if (shape.live) {
    // Folds when the first token after a full interval comes, and then keeps the anchor before.
    const int64_t anchor_row = (length - 1) / shape.fold_interval * shape.fold_interval;
    oldest = std::max<int64_t>(0, anchor_row - shape.fold_interval);
    anchors = 1 + (anchor_row > 0 ? 1 : 0) + (oldest > 0 ? 1 : 0);
  } else if (shape.fold_interval > 0 && shape.anchor_size == 0) {
    const int64_t fold = (length - 1) / shape.fold_interval * shape.fold_interval;
    oldest = std::max<int64_t>(0, fold - shape.fold_interval - shape.history);
  } else if (shape.fold_interval > 0 && length > kExactStep) {
    // Whole intervals in bulk, the rest as rows; a step of up to kExactStep is all rows.
    oldest = length / shape.fold_interval * shape.fold_interval;
    anchors = oldest > 0 ? 1 : 0;
  }
  // Whole pages, from that of the oldest row still needed on.
  const int64_t first_page = oldest / kPageRows;
  const int64_t kept = std::min(first_page, (kept_rows + kPageRows - 1) / kPageRows);
  const int64_t pages = kept + (length > oldest ? (length - 1) / kPageRows - first_page + 1 : 0);
  const int64_t blocks = shape.blocks.within(length);
  return pages * kPageRows * (shape.row_bytes() + int64_t{sizeof(int32_t)}) +
         anchors * shape.anchor_size * int64_t{sizeof(float)} + judgement +
         (blocks == 0 ? 0 : predicted_bytes(block_shape(shape), blocks));
}

void Journal::save(std::string& out) const {
  require(tree_.empty(), shape_.name, "cannot save while a token tree waits for commit_path()");
  put_string(out, shape_.name);
  for (const int64_t value :
       {shape_.row_width, shape_.anchor_size, first_row_, length_, anchor_row_,
        previous_anchor_row_, int64_t{anchor_position_}, int64_t{previous_anchor_position_}}) {
    put(out, value);
  }
  const auto row_bytes = static_cast<size_t>(shape_.row_bytes());
  for (int64_t i = first_row_; i < length_; ++i) {
    put(out, position(i));
    append_bytes(out, row_data(i), row_bytes);
  }
  for (const Block& block : {anchor_, previous_anchor_}) {
    put(out, static_cast<uint8_t>(block != nullptr));
    if (block) {
      append_bytes(out, block->data(), static_cast<size_t>(shape_.anchor_size) * sizeof(float));
    }
  }
  save_kept(out);
  if (shape_.eviction.is_on()) save_judgement(out);
  for (const Journal& blocks : blocks_) blocks.save(out);
}

void Journal::save_kept(std::string& out) const {
  for (int64_t i = 0; i < std::min(kept(), first_row_); ++i) {
    put(out, position(i));
    append_bytes(out, row_data(i), static_cast<size_t>(shape_.row_bytes()));
  }
}

void Journal::load_kept(std::span<const std::byte>& in, std::string_view where) {
  const int64_t count = std::min(kept(), first_row_);
  require(static_cast<uint64_t>(count) <=
              in.size() / (static_cast<size_t>(shape_.row_bytes()) + sizeof(int32_t)),
          where, "ends before the {} kept rows of journal '{}'", count, shape_.name);
  while (std::ssize(kept_pages_) < first_page_ && std::ssize(kept_pages_) * kPageRows < count) {
    kept_pages_.push_back(make_pooled<Page>(shape_));
  }
  for (int64_t i = 0, last = -1; i < count; ++i) {
    const auto next = take<int32_t>(in, where);
    require(next > last && next < position(first_row_), where,
            "kept row {} of journal '{}' has position {} after {}, before {}", i, shape_.name, next,
            last, position(first_row_));
    page(i).positions[static_cast<size_t>(i % kPageRows)] = next;
    take_storage(in, mutable_row_data(i), static_cast<size_t>(shape_.row_bytes()), where);
    last = next;
  }
}

void Journal::save_judgement(std::string& out) const {
  put(out, judged_);
  for (const float weight : weights_) put(out, weight);
  queries_.front().save(out);
}

void Journal::load_judgement(std::span<const std::byte>& in, std::string_view where) {
  const Eviction& eviction = shape_.eviction;
  const auto judged = take<int64_t>(in, where);
  const int64_t begin = eviction.begin(length_);
  const bool agrees =
      judged >= 0 && judged <= length_ && judged % eviction.interval == 0 &&
      (judged == 0 || eviction.judges(judged)) && (judged >= begin || !eviction.judges(begin)) &&
      first_row_ == (judged > 0 && eviction.drops(judged) ? judged - eviction.recent : 0);
  require(agrees, where, "journal '{}' of {} rows, {} of them dropped, was judged at row {}",
          shape_.name, length_, first_row_, judged);
  judged_ = judged;
  if (eviction.accumulates) {
    // Of rows that have been read.
    weights_.resize(static_cast<size_t>(kept() + judged_ - first_row_));
    for (float& weight : weights_) weight = take<float>(in, where);
  }
  Journal& queries = queries_.front();
  queries.load(in, where);
  const int64_t count = expected_queries(length_), first = length_ - count;
  require(queries.length() == count, where, "journal '{}' has {} queries at row {}", shape_.name,
          queries.length(), length_);
  for (int64_t i = 0; i < count; ++i) {
    require(queries.position(i) == position(first + i), where,
            "query {} of journal '{}' has position {}", i, shape_.name, queries.position(i));
  }
}

void Journal::load_blocks(std::span<const std::byte>& in, std::string_view where) {
  Journal& blocks = blocks_.front();
  blocks.load(in, where);
  // Those that are missing can be made from the rows that are held.
  require(blocks.first_row() == 0 && blocks.length() <= shape_.blocks.within(length_) &&
              blocks.length() * shape_.blocks.stride >= first_row_,
          where, "journal '{}' has {} blocks of {} rows, of which those from {} on are held",
          shape_.name, blocks.length(), length_, first_row_);
  for (int64_t i = 0; i < blocks.length(); ++i) {
    const int64_t last = i * shape_.blocks.stride + shape_.blocks.length - 1;
    const int64_t found = blocks.position(i);
    const bool held = last >= first_row_ || last < shape_.kept;
    require(held ? found == position(last) : found >= last && found < position(first_row_), where,
            "block {} of journal '{}' ends at position {}", i, shape_.name, found);
  }
}

void Journal::load(std::span<const std::byte>& in, std::string_view where) {
  const std::string name = take_string(in, where);
  require(name == shape_.name, where, "holds a journal {} where the model has '{}'", quote(name),
          shape_.name);
  int64_t header[8];
  for (int64_t& value : header) value = take<int64_t>(in, where);
  const auto [row_width, anchor_size, first_row, length, anchor_row, previous, anchor_position,
              previous_position] = std::to_array(header);
  require(row_width == shape_.row_width && anchor_size == shape_.anchor_size, where,
          "journal '{}' has rows of {} and an anchor of {} where the model has {} and {}", name,
          row_width, anchor_size, shape_.row_width, shape_.anchor_size);
  require(length >= 0 && length <= INT32_MAX && first_row >= 0 && first_row <= length, where,
          "journal '{}' has rows {} to {}", name, first_row, length);
  // Operators count on this: a token is computed from an anchor at a multiple of the interval and
  // from rows that are there.
  const int64_t interval = shape_.fold_interval;
  require(anchor_row >= 0 && anchor_row <= length &&
              (interval > 0 ? anchor_row % interval == 0 : anchor_row == 0),
          where, "journal '{}' of {} rows has an anchor at row {}, which is folded every {} rows",
          name, length, anchor_row, interval);
  require(previous == -1 || (anchor_row > 0 && previous == anchor_row - interval), where,
          "journal '{}' has an anchor at row {} before the one at row {}", name, previous,
          anchor_row);
  const int64_t oldest = previous >= 0 ? previous : anchor_row;
  // Of rows that are dropped by weight, the last ones stay.
  const int64_t held_from =
      shape_.eviction.is_on() ? length - shape_.eviction.recent : oldest - shape_.history;
  require(first_row <= std::max<int64_t>(0, held_from) &&
              (!shape_.eviction.is_on() || first_row % kPageRows == 0),
          where, "journal '{}' lacks rows before {}, which row {} needs", name, first_row, oldest);
  // Positions grow, so that of row i is i at least.
  const auto check_position = [&](int64_t row, int64_t position) {
    require((row <= 0 ? position >= -1 : position >= row - 1) && position <= INT32_MAX, where,
            "journal '{}' has an anchor at row {} after position {}", name, row, position);
  };
  check_position(anchor_row, anchor_position);
  check_position(previous, previous_position);
  const auto row_bytes = static_cast<size_t>(shape_.row_bytes());
  require(static_cast<uint64_t>(length - first_row) <= in.size() / (row_bytes + sizeof(int32_t)),
          where, "ends before the {} rows of journal '{}'", length - first_row, name);

  Journal fresh(shape_);
  fresh.first_row_ = fresh.length_ = first_row;
  int64_t last = first_row - 1;
  for (int64_t i = first_row; i < length; ++i) {
    const int32_t position = take<int32_t>(in, where);
    if (i == previous && i > 0) last = previous_position;
    if (i == anchor_row && i > 0) last = anchor_position;
    const bool agrees = (i + 1 != anchor_row || position == anchor_position) &&
                        (i + 1 != previous || position == previous_position);
    require(position > last && agrees, where, "row {} of journal '{}' has position {} after {}", i,
            name, position, last);
    last = position;
    fresh.append({&position, 1});
    take_storage(in, fresh.mutable_row_data(i), row_bytes, where);
  }
  for (const int64_t row : {anchor_row, previous}) {
    const bool there = take<uint8_t>(in, where) != 0, expected = row > 0 && anchor_size > 0;
    require(there == expected, where, "journal '{}' has {} state for its anchor at row {}", name,
            there ? "a" : "no", row);
    if (!there) continue;
    const auto bytes = static_cast<size_t>(anchor_size) * sizeof(float);
    require(bytes <= in.size(), where, "ends inside the anchor of '{}'", name);
    Block& block = row == anchor_row ? fresh.anchor_ : fresh.previous_anchor_;
    block = std::make_shared<Storage>(bytes);
    take_storage(in, block->data(), bytes, where);
  }
  fresh.load_kept(in, where);
  fresh.anchor_row_ = anchor_row;
  fresh.previous_anchor_row_ = previous;
  fresh.anchor_position_ = static_cast<int32_t>(anchor_position);
  fresh.previous_anchor_position_ = static_cast<int32_t>(previous_position);
  if (shape_.eviction.is_on()) fresh.load_judgement(in, where);
  if (!blocks_.empty()) fresh.load_blocks(in, where);
  *this = std::move(fresh);
}

}  // namespace pronghorn
