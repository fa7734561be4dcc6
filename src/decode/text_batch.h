// TextBatch: the loop that writes texts. Texts join and leave between its steps.
//
// A step: guess, let the model read the last token of each text and the guesses behind it, take the
// tokens that the model chooses as far as guesses were right, and forget the rest. Without guesses
// it is a step of plain decoding. Prompts are read in pieces beside that (decode/reading_plan.h):
// exact ones in the same forward, longer ones in forwards of their own, so that no text depends on
// what it shares a step with. A longer piece may take several steps: its forward then waits between
// two parts of its blocks (model/forward_run.h), which changes no bit of it, as cutting it would.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "decode/reading_plan.h"
#include "decode/writer.h"

namespace pronghorn {

// What the model has done for a batch.
struct BatchWork {
  int64_t steps = 0, rows = 0;                    // forwards that have ended, and their rows
  double prompt_seconds = 0, decode_seconds = 0;  // of pieces read alone; of all others
};

// How much of prompts a step reads; what of it happens in which step changes no text.
struct StepLimits {
  static constexpr double kNone = std::numeric_limits<double>::infinity();

  // About so many rows: at least one piece of each kind, exact and longer.
  int64_t prompt_rows = std::numeric_limits<int64_t>::max();
  // In a step in which texts are written, as a multiple of what they take: pieces of one kind, in
  // turn where both wait. Exact ones of so many rows for each text, at least kExactStep, or so much
  // time for parts of a longer one, at least one part. kNone: as in any other step.
  double beside = kNone;
};

class TextBatch {
 public:
  // slots: texts at a time. changing: texts join all the time, so that guesses are weighed for
  // batches of every size. All must outlive it; speculation: null for plain decoding.
  TextBatch(const Model& model, const Tokenizer& tokenizer, Precision precision, size_t slots,
            Speculation* speculation, bool changing = false);
  ~TextBatch();

  struct Joining {
    Generation generation;  // its session must outlive the text
    // How the tokens that the session has not read are read, the prompt included: their sum.
    std::vector<ReadingRun> runs;
    // For drafters, what the session has read; empty: the end of it that the session remembers.
    std::span<const int32_t> known;
    // Called after each piece with its place, as `runs` has it; may be empty.
    std::function<void(const ReadingRun& piece)> on_read;
  };
  // Takes a text in and returns its slot. Throws Error if there is nothing to read, options are out
  // of range, or no slot is free.
  size_t join(const Joining& joining);

  // Lets the model run once for all texts that are written, and read of prompts what `limits`
  // allow: of the shortest ones first, and of the oldest every so often. False if no text needs it.
  bool step(const StepLimits& limits = {});

  bool holds(size_t slot) const { return texts_[slot] != nullptr; }
  bool reading(size_t slot) const { return texts_[slot]->reading(); }
  bool ended(size_t slot) const { return texts_[slot]->done; }
  // What went wrong with a text, which has then ended; null: nothing.
  std::exception_ptr error(size_t slot) const { return texts_[slot]->error; }
  const Generated& result(size_t slot) const { return texts_[slot]->writer.result(); }

  const BatchWork& work() const { return work_; }

  // Frees the slot. A text that has not ended ends here, as interrupted; of a piece that waits
  // nothing has been read.
  Generated leave(size_t slot);

 private:
  struct Text {
    Text(const Tokenizer& tokenizer, const Generation& generation)
        : writer(tokenizer, generation) {}
    bool reading() const { return !done && run < runs.size(); }
    bool writing() const { return !done && run == runs.size(); }
    // Of the piece that is read next.
    ReadingRun next_piece() const;

    Writer writer;
    std::vector<ReadingRun> runs;
    size_t run = 0;        // the next one
    int64_t run_done = 0;  // of its tokens
    int64_t unread = 0;    // of all runs
    std::function<void(const ReadingRun&)> on_read;
    int64_t number = 0;                       // in the order of joining
    double prompt_end = 0, decode_start = 0;  // times; 0: not yet
    bool guessed = true;                      // guesses are made for it
    bool done = false;
    std::exception_ptr error;
  };
  // One forward for texts that are written and for exact pieces of prompts.
  struct Round;
  // One for a longer piece.
  struct LongPiece;

  Session& session(size_t slot) const { return texts_[slot]->writer.session(); }
  Drafter* drafter() const { return speculation_ == nullptr ? nullptr : &speculation_->drafter(); }
  void check_length(const Writer& writer) const;
  // Ends a text with what was thrown.
  void fail(size_t slot);
  void finish(size_t slot);
  // Calls body(); what it throws ends the text.
  template <typename Body>
  void guard(size_t slot, const Body& body);

  std::vector<size_t> exact_readers(int64_t prompt_rows);
  std::optional<size_t> long_reader() const;
  // Reads on in the long piece that waits, or in the next, for about so many seconds and at least a
  // part. Returns its rows; 0: there is none.
  int64_t read_alone(double seconds);
  void end_long_piece();
  // Reads of prompts in a step in which texts are written, within limits.beside.
  void step_beside(Round& round, double beside);
  // A piece was read; `scores` of the next token where it was the last.
  void after_piece(size_t slot, const Tensor& hidden, std::span<const float> scores,
                   double seconds);

  void run_together(Round& round);
  void guess(Round& round);
  void draft(Round& round);
  std::vector<Draft> make_drafts(std::span<const size_t> writing, const DraftShape& shape);
  bool judges_blocks(const Writer& writer) const;
  void decide(Round& round);
  void choose_first(Round& round);
  void take(Round& round, size_t i);

  const Model& model_;
  const Tokenizer& tokenizer_;
  Speculation* speculation_;  // null: there are no guesses, or none any longer
  Context context_;
  bool changing_;
  int64_t trained_;  // tokens; 0: not known
  std::vector<std::unique_ptr<Text>> texts_;
  int64_t joined_ = 0, long_pieces_ = 0, exact_steps_ = 0;
  std::unique_ptr<LongPiece> long_piece_;  // that waits; null: none does
  bool exact_turn_ = true;      // of the two kinds of pieces, beside texts that are written
  double written_seconds_ = 0;  // of a step for texts that are written alone, of late; 0: not known
  BatchWork work_;
};

template <typename Body>
void TextBatch::guard(size_t slot, const Body& body) {
  try {
    body();
  } catch (...) {
    fail(slot);
  }
}

}  // namespace pronghorn
