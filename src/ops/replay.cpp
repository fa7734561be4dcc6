#include "ops/replay.h"

#include <utility>

#include "base/error.h"
#include "tensor/memory.h"
#include "tensor/sequence_shards.h"

namespace pronghorn {
namespace {

// Whether a piece has to be folded before it is planned.
bool due(const Journal& journal) {
  return journal.length() - journal.anchor_row() >= journal.shape().fold_interval;
}

}  // namespace

void check_recurrence(const char* where, const CheckedBatch& batch, bool record, bool forks) {
  require_whole(batch, where);
  for (const Segment& segment : batch.segments()) {
    require(segment.mask == Mask::causal, where, "a recurrence cannot see rows after its own");
    require(segment.state == nullptr || !record, where,
            "segments with a state cannot be differentiated");
    require(forks || segment.after < 0, where, "segments cannot go on from others of a batch");
  }
}

Replay::Replay(const CheckedBatch& batch, JournalSlot slot) {
  for (const Segment& segment : batch.segments()) {
    if (segment.state == nullptr || segment.length == 0) continue;
    add({&segment.state->journal(slot.layer, slot.index), segment.first_row, segment.length,
         batch.positions(segment), segment.parents,
         segment.parents.empty() && segment.length > kExactStep});
  }
}

float* Replay::buffer(int64_t count) {
  scratch_.push_back(std::make_unique<Storage>(static_cast<size_t>(count) * sizeof(float)));
  return reinterpret_cast<float*>(scratch_.back()->data());
}

void Replay::copy_state(const Journal& journal, const float* from, float* to) {
  const RowCopy state{from, to, static_cast<size_t>(journal.shape().anchor_size) * sizeof(float)};
  memory().copy({&state, 1});
}

std::span<const float* const> Replay::path_of(const Journal& journal, int64_t from, int64_t to) {
  const auto path = make<const float*>(to - from);
  for (int64_t row = from; row < to; ++row)
    path[static_cast<size_t>(row - from)] = journal.row(row);
  return path;
}

std::span<const ReplayFold> Replay::begin_folds() {
  std::pmr::vector<ReplayFold> folds(&memory_);
  for (const ReplayPiece& piece : pieces_) {
    Journal& journal = *piece.journal;
    if (!due(journal)) continue;
    const int64_t row = journal.anchor_row();
    folds.push_back({journal.anchor(), path_of(journal, row, row + journal.shape().fold_interval),
                     journal.begin_anchor()});
  }
  return keep(folds);
}

void Replay::commit_folds() {
  for (const ReplayPiece& piece : pieces_) {
    Journal& journal = *piece.journal;
    if (due(journal))
      journal.commit_anchor(journal.anchor_row() + journal.shape().fold_interval, true);
  }
}

std::span<const float* const> Replay::live_rows(Journal& journal, int64_t row, bool& fresh) {
  const bool ahead = journal.live_row() >= journal.anchor_row() && journal.live_row() < row;
  fresh = !ahead && journal.anchor() == nullptr;
  if (!ahead && !fresh) {
    copy_state(journal, journal.anchor(), journal.live());
  }
  return path_of(journal, ahead ? journal.live_row() : journal.anchor_row(), row);
}

// Appends the rows of a piece to its journal and places the anchors that its tokens or later ones
// need. A token is computed from the anchor at the last multiple of the interval before it, so an
// anchor is placed right before the first token that needs it.
ReplayRun Replay::place(const ReplayPiece& piece) {
  Journal& journal = *piece.journal;
  const JournalShape& shape = journal.shape();
  const bool tree = !piece.parents.empty(), stateless = shape.anchor_size == 0;
  const int64_t interval = shape.fold_interval;
  const int64_t start = journal.length(), end = start + piece.length;
  const int64_t anchor_row = journal.anchor_row();
  require(stateless || start - anchor_row < interval + (shape.live ? 1 : 0), shape.name,
          "{} rows after the anchor have not been folded", start - anchor_row);
  ReplayRun run;
  run.first_row = piece.first_row;
  run.length = piece.length;
  run.anchor = journal.anchor();
  run.parents = piece.parents;
  if (shape.live) {  // before rows are skipped, which forgets the live state
    float* live = journal.live();
    run.anchor = start > 0 ? live : nullptr;
    run.live = tree ? nullptr : live;
  }
  std::pmr::vector<ReplaySnapshot> snapshots(&memory_);
  const auto place_anchor = [&](int64_t row, bool keep_previous) {
    snapshots.push_back({row - start, journal.begin_anchor()});
    journal.commit_anchor(row, keep_previous);
  };

  const bool path = !stateless && !shape.live, foldable = !tree && interval > 0;
  const Journal* source = &journal;  // of the path
  const int64_t fold = foldable ? (end - 1) / interval * interval : 0;
  int64_t from = start;  // the first row that is kept
  if (foldable) {
    // Later tokens and truncate() need the rows from here on. A journal with a live state and one
    // without any state can go back an interval even after a bulk.
    int64_t oldest = end / interval * interval;
    if (shape.live) oldest = fold - interval;
    if (stateless) oldest = fold - interval - shape.history;
    if (stateless ? oldest > start : oldest > anchor_row && (shape.live || piece.bulk)) {
      if (path) source = &kept_.emplace_back(journal);
      journal.skip(piece.positions.first(static_cast<size_t>(oldest - start)));
      if (!stateless) place_anchor(oldest, false);
      from = oldest;
    }
  }
  journal.append(piece.positions.subspan(static_cast<size_t>(from - start)));
  if (path) run.path = path_of(*source, anchor_row, start);
  const auto rows = make<float*>(end - from);
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i] = journal.mutable_row(from + static_cast<int64_t>(i));
  }
  run.rows = rows;
  if (tree) journal.set_tree({piece.parents.begin(), piece.parents.end()});
  if (foldable && stateless) journal.pass();
  if (!stateless && fold > journal.anchor_row()) {
    place_anchor(fold, journal.anchor_row() == fold - interval);
  }
  run.snapshots = keep(snapshots);
  if (run.live != nullptr) journal.set_live_row(end);
  return run;
}

// Steps of a chain: from one multiple of the interval to the next.
std::span<const ReplayStep> Replay::chain_steps(const ReplayPiece& piece) {
  const JournalShape& shape = piece.journal->shape();
  const int64_t start = piece.journal->length();
  const ReplayRun run = place(piece);
  const int64_t unkept = run.first_kept();
  float* temporary = unkept > 0 ? buffer(unkept * shape.row_width) : nullptr;
  const std::span<const float*> rows =
      make<const float*>(static_cast<int64_t>(run.path.size()) + run.length);
  std::copy(run.path.begin(), run.path.end(), rows.begin());
  const std::span<ReplayToken> tokens = make<ReplayToken>(run.length);
  std::pmr::vector<ReplayStep> steps(&memory_);

  ReplayFold fold{run.anchor, {}, nullptr};
  size_t first_row = 0, row = run.path.size(), first_token = 0, token = 0, snapshot = 0;
  const auto finish_step = [&] {
    steps.push_back({fold, tokens.subspan(first_token, token - first_token)});
    first_token = token;
  };
  for (int64_t i = 0; i <= run.length; ++i) {
    const bool placed = snapshot < run.snapshots.size() && run.snapshots[snapshot].tokens == i;
    if (placed || (i > 0 && i < run.length && (start + i) % shape.fold_interval == 0)) {
      finish_step();
      float* to = placed ? run.snapshots[snapshot++].state : buffer(shape.anchor_size);
      fold = {steps.back().anchor(), rows.subspan(first_row, row - first_row), to};
      first_row = row;
    }
    if (i == run.length) break;
    float* own =
        i < unkept ? temporary + i * shape.row_width : run.rows[static_cast<size_t>(i - unkept)];
    tokens[token++] = {run.first_row + i, i, own, rows.subspan(first_row, row - first_row)};
    rows[row++] = own;
  }
  finish_step();
  return keep(steps);
}

// Steps of a tree: nodes that have the same ancestors up to a multiple of the interval share one.
std::span<const ReplayStep> Replay::tree_steps(const ReplayPiece& piece) {
  struct Node {
    int64_t index = 0;  // of its row in its sequence
    size_t step = 0;    // that computes it
    std::span<const float* const> path;
  };
  const JournalShape& shape = piece.journal->shape();
  const int64_t start = piece.journal->length();
  const ReplayRun run = place(piece);
  const std::span<Node> nodes = make<Node>(run.length);
  std::pmr::vector<ReplayStep> steps({{{run.anchor, {}, nullptr}, {}}}, &memory_);
  std::pmr::vector<int64_t> last({-1}, &memory_);  // of each step: the node that it follows
  for (size_t i = 0; i < nodes.size(); ++i) {
    nodes[i] = {start, 0, run.path};
    const int64_t parent = piece.parents[i];
    if (parent < 0) continue;
    const Node& above = nodes[static_cast<size_t>(parent)];
    const auto path = make<const float*>(static_cast<int64_t>(above.path.size()) + 1);
    std::copy(above.path.begin(), above.path.end(), path.begin());
    path.back() = run.rows[static_cast<size_t>(parent)];
    nodes[i] = {above.index + 1, above.step, path};
    if (nodes[i].index % shape.fold_interval != 0) continue;
    const auto known = std::find(last.begin() + 1, last.end(), parent);
    nodes[i].step = static_cast<size_t>(known - last.begin());
    nodes[i].path = {};
    if (known != last.end()) continue;
    last.push_back(parent);
    steps.push_back({{steps[above.step].anchor(), path, buffer(shape.anchor_size)}, {}});
  }
  for (size_t s = 0; s < steps.size(); ++s) {
    std::pmr::vector<ReplayToken> tokens(&memory_);
    for (size_t i = 0; i < nodes.size(); ++i) {
      if (nodes[i].step != s) continue;
      tokens.push_back({run.first_row + static_cast<int64_t>(i), nodes[i].index - start,
                        run.rows[i], nodes[i].path});
    }
    steps[s].tokens = keep(tokens);
  }
  return keep(steps);
}

std::span<const std::span<const ReplayStep>> Replay::steps(Kind kind) {
  std::pmr::vector<std::span<const ReplayStep>> sequences(&memory_);
  for (const ReplayPiece& piece : pieces_) {
    if (!is(piece, kind)) continue;
    sequences.push_back(piece.parents.empty() ? chain_steps(piece) : tree_steps(piece));
  }
  return keep(sequences);
}

std::span<const ReplayRun> Replay::runs(Kind kind) {
  std::pmr::vector<ReplayRun> runs(&memory_);
  for (const ReplayPiece& piece : pieces_) {
    if (is(piece, kind)) runs.push_back(place(piece));
  }
  return keep(runs);
}

void copy_rows(std::span<const ReplayRun> runs, const Tensor& from, int64_t offset) {
  const auto bytes = static_cast<size_t>(from.columns()) * sizeof(float);
  PooledVector<RowCopy> copies;
  for (const ReplayRun& run : runs) {
    for (size_t i = 0; i < run.rows.size(); ++i) {
      const int64_t row = run.first_row + run.first_kept() + static_cast<int64_t>(i);
      copies.push_back({from.row(row), run.rows[i] + offset, bytes});
    }
  }
  memory().copy(copies);
}

ReplayCut::ReplayCut(const CheckedBatch& batch, JournalSlot slot) {
  const Replay whole(batch, slot);
  for (const ReplayPiece& piece : whole.pieces()) {
    const int64_t interval = piece.journal->shape().fold_interval;
    const int64_t lead = (interval - piece.journal->length() % interval) % interval;
    int64_t done = 0;
    const auto add = [&](Replay& to, int64_t length, bool at_once) {
      if (length == 0) return;
      ReplayPiece part = piece;
      part.first_row += done;
      part.length = length;
      part.positions =
          piece.positions.subspan(static_cast<size_t>(done), static_cast<size_t>(length));
      part.bulk = at_once;
      to.add(part);
      done += length;
    };
    add(first, piece.bulk ? lead : piece.length, false);
    add(bulk, (piece.length - done) / interval * interval, true);
    add(rest, piece.length - done, false);
  }
}

}  // namespace pronghorn
