// Replay: what an operator with a state does with the rows of a batch that continue sequences,
// planned in one place for all such operators.
//
// A journal (tensor/journal.h) holds an anchor, which is the state at a multiple of the fold
// interval, and the rows since. An operator
//   1. folds what is due: catch_up(), or catch_up_live() for a journal with a live state;
//   2. takes a plan: steps(), where every token has the anchor and the rows it is computed from, or
//      runs(), for kernels that walk a segment by themselves;
//   3. runs its kernel, which writes the rows, anchors and live states that the plan points to.
// A plan appends the rows to the journals, drops those that nobody can need any more, places the
// new anchors and marks trees, before the kernel runs: what it points to stays valid as long as the
// Replay lives. A plan for one token of one sequence takes no memory from the heap.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <span>
#include <vector>

#include "backend/replay.h"
#include "tensor/batch.h"
#include "tensor/storage.h"
#include "tensor/tensor.h"

namespace pronghorn {

// Throws Error unless the segments suit a recurrence: causal, of whole sequences, and fresh while
// gradients are recorded (`record`). An operator that runs over ranks does so before it asks.
// forks: whether segments may go on from others.
void check_recurrence(const char* where, const CheckedBatch& batch, bool record,
                      bool forks = false);

// Rows first_row ... first_row + length - 1 of a batch, which continue the sequence of a journal.
struct ReplayPiece {
  Journal* journal = nullptr;
  int64_t first_row = 0, length = 0;
  std::span<const int32_t> positions;
  std::span<const int32_t> parents;  // of a token tree; empty: a chain
  // Computed at once: keeps no rows before the last multiple of the fold interval.
  bool bulk = false;
};

// A piece for a kernel that walks it by itself.
struct ReplayRun {
  int64_t first_row = 0, length = 0;
  // The state before the rows of `path`, which lead up to the first token. With a live state there
  // is no path. Null: a fresh sequence.
  const float* anchor = nullptr;
  std::span<const float* const> path;
  std::span<float* const> rows;               // journal rows of the last rows.size() tokens
  std::span<const ReplaySnapshot> snapshots;  // anchors to be written, by increasing tokens
  float* live = nullptr;             // gets the state after the last token; may be `anchor`
  std::span<const int32_t> parents;  // of a token tree; empty: a chain

  // The first token that has a row.
  int64_t first_kept() const { return length - static_cast<int64_t>(rows.size()); }
};

class Replay {
 public:
  enum class Kind { all, chains, trees };

  // No pieces yet.
  Replay() = default;
  // The segments of `batch` that have a state and rows. A chain longer than kExactStep is a bulk.
  Replay(const CheckedBatch& batch, JournalSlot slot);
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;

  void add(const ReplayPiece& piece) { pieces_.push_back(piece); }
  bool empty() const { return pieces_.empty(); }
  std::span<const ReplayPiece> pieces() const { return pieces_; }

  // Folds until fewer rows than an interval follow each anchor. fold(std::span<const ReplayFold>)
  // is called with one fold of each journal that is due, as often as there are any.
  template <typename Fold>
  void catch_up(Fold&& fold) {
    for (;;) {
      const std::span<const ReplayFold> due = begin_folds();
      if (due.empty()) return;
      fold(due);
      commit_folds();
    }
  }

  // Makes each live state that of all rows, with at most an interval of rows after the anchor.
  // advance(std::span<const float* const> rows, bool fresh, float* state) moves a state on by rows;
  // fresh: its contents count as zeros.
  template <typename Advance>
  void catch_up_live(Advance&& advance) {
    for (const ReplayPiece& piece : pieces()) {
      Journal& journal = *piece.journal;
      const int64_t interval = journal.shape().fold_interval;
      for (bool due = true; due;) {
        due = journal.length() - journal.anchor_row() > interval;
        const int64_t row = due ? journal.anchor_row() + interval : journal.length();
        if (journal.live_row() != row && row > 0) {
          bool fresh = false;
          const std::span<const float* const> rows = live_rows(journal, row, fresh);
          advance(rows, fresh, journal.live());
          journal.set_live_row(row);
        }
        if (!due) break;
        copy_state(journal, journal.live(), journal.begin_anchor());
        journal.commit_anchor(row, true);
      }
    }
  }

  // For each piece of a kind its steps, which are to be run in order: a later one may fold rows
  // that an earlier one writes. A piece must be up to date (catch_up).
  std::span<const std::span<const ReplayStep>> steps(Kind kind = Kind::all);

  // One run for each piece of a kind. Also for operators whose journals have no anchor
  // (convolutions): a run then has rows and nothing else.
  std::span<const ReplayRun> runs(Kind kind = Kind::all);

 private:
  static bool is(const ReplayPiece& piece, Kind kind) {
    return kind == Kind::all || piece.parents.empty() == (kind == Kind::chains);
  }

  // Objects that live as long as the plan.
  template <typename T>
  std::span<T> make(int64_t count) {
    const auto size = static_cast<size_t>(count);
    T* objects = std::pmr::polymorphic_allocator<T>(&memory_).allocate(size);
    std::uninitialized_value_construct_n(objects, size);
    return {objects, size};
  }
  template <typename T>
  std::span<const T> keep(const std::pmr::vector<T>& objects) {
    const std::span<T> kept = make<T>(static_cast<int64_t>(objects.size()));
    std::copy(objects.begin(), objects.end(), kept.begin());
    return kept;
  }
  float* buffer(int64_t count);
  static void copy_state(const Journal& journal, const float* from, float* to);
  std::span<const float* const> path_of(const Journal& journal, int64_t from, int64_t to);

  std::span<const ReplayFold> begin_folds();
  void commit_folds();
  // The rows that the live state is to be moved on by, from where it is or from the anchor.
  std::span<const float* const> live_rows(Journal& journal, int64_t row, bool& fresh);
  ReplayRun place(const ReplayPiece& piece);
  std::span<const ReplayStep> chain_steps(const ReplayPiece& piece);
  std::span<const ReplayStep> tree_steps(const ReplayPiece& piece);

  std::array<std::byte, 2048> inline_memory_;  // enough for a token of a sequence or two
  std::pmr::monotonic_buffer_resource memory_{inline_memory_.data(), inline_memory_.size()};
  std::pmr::vector<ReplayPiece> pieces_{&memory_};
  std::vector<std::unique_ptr<Storage>> scratch_;
  std::vector<Journal> kept_;  // as they were before a bulk
};

// Replay::catch_up() for kernels that fold as the beginning of a step: run(sequences) is called
// with one step without tokens of each journal that is due.
template <typename Run>
void catch_up_by_steps(Replay& replay, Run&& run) {
  replay.catch_up([&](std::span<const ReplayFold> folds) {
    PooledVector<ReplayStep> steps;
    PooledVector<std::span<const ReplayStep>> sequences;
    steps.reserve(folds.size());
    for (const ReplayFold& fold : folds) {
      steps.push_back({fold, {}});
      sequences.emplace_back(&steps.back(), 1);
    }
    run(std::span<const std::span<const ReplayStep>>(sequences));
  });
}

// What runs in chunks, as a kernel's segments {first row, length, state before, state after, 0}:
// the segments of `batch` that have no state, then the pieces of `bulk`, which must be up to date.
template <typename ChunkedSegment>
std::vector<ChunkedSegment> chunked_segments(const CheckedBatch& batch, Replay& bulk) {
  std::vector<ChunkedSegment> chunked;
  for (const Segment& segment : batch.segments()) {
    if (segment.state == nullptr && segment.length > 0) {
      chunked.push_back({segment.first_row, segment.length, nullptr, nullptr, 0});
    }
  }
  for (const ReplayRun& run : bulk.runs()) {
    chunked.push_back({run.first_row, run.length, run.anchor, run.snapshots.back().state, 0});
  }
  return chunked;
}

// Copies the columns of `from`, one row per row of the batch, to the journal rows of the runs, from
// number `offset` of these on.
void copy_rows(std::span<const ReplayRun> runs, const Tensor& from, int64_t offset);

// The segments of a batch that have a state, cut for an operator that has a form of its own for
// long segments. A chain longer than kExactStep becomes steps up to a multiple of the fold
// interval, whole intervals in bulk, and steps for the rest; all other segments are steps. Each
// part must be planned and run before the next is planned.
struct ReplayCut {
  ReplayCut(const CheckedBatch& batch, JournalSlot slot);

  Replay first, bulk, rest;
};

}  // namespace pronghorn
