#include "decode/text_batch.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "decode/text_round.h"
#include "model/forward_run.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

// Every so many long pieces and steps with exact ones begin with the prompt that has waited
// longest.
constexpr int64_t kOldestEvery = 4;

}  // namespace

struct TextBatch::LongPiece {
  // waits: it may be given up halfway, so that the text's state is wanted as it was.
  LongPiece(const Model& model, const Context& context, size_t slot_given, Session& session,
            size_t count, bool waits)
      : slot(slot_given),
        before(waits ? session.state() : SequenceState()),
        batch(continue_sequence(session.state(), session.pending().first(count))),
        checked(batch),
        run(model, context, checked) {}

  size_t slot;
  SequenceState before;
  Batch batch;
  CheckedBatch checked;
  ForwardRun run;
  double seconds = 0;  // so far
};

TextBatch::~TextBatch() = default;

TextBatch::TextBatch(const Model& model, const Tokenizer& tokenizer, Precision precision,
                     size_t slots, Speculation* speculation, bool changing)
    : model_(model),
      tokenizer_(tokenizer),
      speculation_(speculation),
      changing_(changing),
      trained_(trained_context(model.config()).tokens),
      texts_(slots) {
  context_.precision = precision;
  if (speculation_ != nullptr) {
    speculation_->prepare(model, context_, static_cast<int64_t>(slots), changing);
    speculation_->drafter().start(slots);
  }
}

ReadingRun TextBatch::Text::next_piece() const {
  const ReadingRun& now = runs[run];
  const int64_t begin = now.tokens.begin + run_done;
  return {{begin, now.exact ? std::min(now.tokens.end, begin + kExactStep) : now.tokens.end},
          now.exact};
}

size_t TextBatch::join(const Joining& joining) {
  const auto free = std::find(texts_.begin(), texts_.end(), nullptr);
  require(free != texts_.end(), "generate", "all {} places are taken", texts_.size());
  const auto slot = static_cast<size_t>(free - texts_.begin());
  const Session& session = *joining.generation.session;
  const std::span<const int32_t> recent = session.recent();
  const size_t unread = std::min(session.pending().size(), recent.size());
  std::vector<int32_t> known(joining.known.begin(), joining.known.end());
  if (known.empty()) known.assign(recent.begin(), recent.end() - static_cast<ptrdiff_t>(unread));

  auto text = std::make_unique<Text>(tokenizer_, joining.generation);
  require(!session.pending().empty(), "generate",
          "there is no text to continue: the prompt is empty");
  check_length(text->writer);
  require(speculation_ == nullptr || !session.state().evicts(), "generate",
          "guesses are taken back, which rows that a cache drops by weight are not (leave out the "
          "drafter, or SnapKV and H2O)");
  text->runs = joining.runs;
  for (const ReadingRun& run : text->runs) text->unread += run.tokens.size();
  require(text->unread == std::ssize(session.pending()), "generate",
          "{} tokens are to be read of {}", text->unread, session.pending().size());
  text->on_read = joining.on_read;
  text->number = joined_++;
  *free = std::move(text);
  if (Drafter* drafter = this->drafter()) {
    try {
      drafter->begin(slot, known);
      drafter->append(slot, session.pending());
    } catch (...) {
      leave(slot);
      throw;
    }
  }
  return slot;
}

Generated TextBatch::leave(size_t slot) {
  Text& text = *texts_[slot];
  if (long_piece_ != nullptr && long_piece_->slot == slot) {
    SequenceState before = std::move(long_piece_->before);
    long_piece_.reset();
    session(slot).state() = std::move(before);
  }
  if (!text.done) {
    text.writer.end_with(Generated::End::interrupted);
    finish(slot);
  }
  Generated result = std::move(text.writer.result());
  texts_[slot].reset();
  if (Drafter* drafter = this->drafter()) drafter->forget(slot);
  return result;
}

void TextBatch::check_length(const Writer& writer) const {
  const int64_t length = writer.session().length();
  if (trained_ > 0 && length > trained_) {
    check_context(model_, length, writer.options().context);
  }
}

void TextBatch::fail(size_t slot) {
  Text& text = *texts_[slot];
  if (text.error == nullptr) text.error = std::current_exception();
  text.done = true;
}

void TextBatch::finish(size_t slot) {
  Text& text = *texts_[slot];
  text.done = true;
  const double start = text.decode_start > 0 ? text.decode_start : text.prompt_end;
  if (start > 0) text.writer.result().decode_seconds = now_seconds() - start;
  guard(slot, [&] { text.writer.finish(); });
}

std::vector<size_t> TextBatch::exact_readers(int64_t prompt_rows) {
  std::vector<size_t> readers;
  for (size_t slot = 0; slot < texts_.size(); ++slot) {
    if (holds(slot) && reading(slot) && texts_[slot]->next_piece().exact) readers.push_back(slot);
  }
  const auto number = [&](size_t slot) { return texts_[slot]->number; };
  std::ranges::sort(readers, {}, number);
  const bool oldest = !readers.empty() && ++exact_steps_ % kOldestEvery == 0;
  std::stable_sort(readers.begin() + (oldest ? 1 : 0), readers.end(),
                   [&](size_t a, size_t b) { return texts_[a]->unread < texts_[b]->unread; });
  int64_t rows = 0;
  size_t count = 0;
  for (; count < readers.size(); ++count) {
    rows += texts_[readers[count]]->next_piece().tokens.size();
    if (count > 0 && rows > prompt_rows) break;
  }
  readers.resize(count);
  return readers;
}

std::optional<size_t> TextBatch::long_reader() const {
  const bool oldest = long_pieces_ % kOldestEvery == kOldestEvery - 1;
  std::optional<size_t> best;
  for (size_t slot = 0; slot < texts_.size(); ++slot) {
    if (!holds(slot) || !reading(slot) || texts_[slot]->next_piece().exact) continue;
    const auto rank = [&](size_t i) {
      const Text& text = *texts_[i];
      return std::pair(oldest ? 0 : text.unread, text.number);
    };
    if (!best || rank(slot) < rank(*best)) best = slot;
  }
  return best;
}

bool TextBatch::step(const StepLimits& limits) {
  Round round;
  for (size_t slot = 0; slot < texts_.size(); ++slot) {
    if (holds(slot) && texts_[slot]->writing()) round.writing.push_back(slot);
  }
  if (!round.writing.empty() && std::isfinite(limits.beside)) {
    step_beside(round, limits.beside);
    return true;
  }
  round.reading = exact_readers(limits.prompt_rows);
  int64_t left = limits.prompt_rows;
  for (const size_t slot : round.reading) left -= texts_[slot]->next_piece().tokens.size();
  const bool together = !round.writing.empty() || !round.reading.empty();
  if (together) run_together(round);
  bool alone = false;
  while (left > 0 || !alone) {
    const int64_t rows = read_alone(StepLimits::kNone);
    if (rows == 0) break;
    left -= rows;
    alone = true;
  }
  return together || alone;
}

// Whoever is written hears a token in every step, so a step must not take much longer for prompts.
void TextBatch::step_beside(Round& round, double beside) {
  constexpr double kNewest = 0.1;
  const auto written = static_cast<double>(round.writing.size());
  const bool long_waits = long_piece_ != nullptr || long_reader().has_value();
  if (exact_turn_ || !long_waits) {
    const double rows = std::min(beside * written, 1e9);
    round.reading = exact_readers(std::max(kExactStep, static_cast<int64_t>(rows)));
  }
  run_together(round);
  exact_turn_ = round.reading.empty();
  if (!exact_turn_) return;
  // A single step that took long, for whatever reason, is not to be followed by a long wait.
  const double seconds = round.draft_seconds + round.step_seconds;
  written_seconds_ =
      written_seconds_ == 0 ? seconds : written_seconds_ + kNewest * (seconds - written_seconds_);
  read_alone(beside * std::min(seconds, written_seconds_));
}

int64_t TextBatch::read_alone(double seconds) {
  const std::optional<size_t> next =
      long_piece_ != nullptr ? std::optional<size_t>(long_piece_->slot) : long_reader();
  if (!next) return 0;
  const size_t slot = *next;
  const int64_t rows = texts_[slot]->next_piece().tokens.size();
  guard(slot, [&] {
    const double start = now_seconds();
    if (long_piece_ == nullptr) {
      ++long_pieces_;
      long_piece_ = std::make_unique<LongPiece>(model_, context_, slot, session(slot),
                                                static_cast<size_t>(rows), std::isfinite(seconds));
    }
    // Ends before a part that would take it beyond its time, as the longest so far would.
    double now = start, longest = 0;
    bool more = true;
    do {
      more = long_piece_->run.advance();
      const double then = std::exchange(now, now_seconds());
      longest = std::max(longest, now - then);
    } while (more && now - start + longest < seconds);
    long_piece_->seconds += now - start;
    work_.prompt_seconds += now - start;
    if (!more) end_long_piece();
  });
  if (texts_[slot]->done) long_piece_.reset();  // it failed
  return rows;
}

void TextBatch::end_long_piece() {
  const double start = now_seconds();
  const size_t slot = long_piece_->slot;
  const int64_t rows = long_piece_->batch.rows();
  const Tensor hidden = long_piece_->run.finish();
  double seconds = long_piece_->seconds;
  long_piece_.reset();
  Tensor logits;
  std::span<const float> scores;
  if (std::ssize(session(slot).pending()) == rows) {
    logits = model_.logits(context_, hidden.row_slice(rows - 1, 1));
    scores = logits.values();
  }
  const double last = now_seconds() - start;
  seconds += last;
  ++work_.steps;
  work_.rows += rows;
  work_.prompt_seconds += last;
  after_piece(slot, hidden, scores, seconds);
}

void TextBatch::after_piece(size_t slot, const Tensor& hidden, std::span<const float> scores,
                            double seconds) {
  Text& text = *texts_[slot];
  Writer& writer = text.writer;
  const ReadingRun piece = text.next_piece();
  writer.session().mark_read(static_cast<size_t>(piece.tokens.size()));
  writer.result().prompt_seconds += seconds;
  text.unread -= piece.tokens.size();
  text.run_done += piece.tokens.size();
  if (text.run_done == text.runs[text.run].tokens.size()) {
    ++text.run;
    text.run_done = 0;
  }
  Drafter* drafter = this->drafter();
  if (drafter != nullptr && drafter->wants_hidden()) drafter->observe(slot, hidden);
  if (text.on_read) text.on_read(piece);
  if (writer.interrupt()) return finish(slot);
  if (text.run < text.runs.size()) return;
  text.prompt_end = now_seconds();
  if (!writer.ended()) {
    const int32_t token = writer.choose(scores);
    writer.take(token, scores);
    if (drafter != nullptr) drafter->append(slot, {&token, 1});
    check_length(writer);
  }
  if (writer.ended()) finish(slot);
}

}  // namespace pronghorn
