#include "decode/text_round.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/random.h"
#include "base/threads.h"
#include "base/warning.h"
#include "decode/verification.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

// Noise of block verification: for judging guesses, of which there is one number more.
constexpr uint64_t kJudgeStream = stream_id("judge draft");

constexpr double kSlowDraft = 0.25;  // seconds

// The first `count` guesses of a chain.
void cut_chain(Draft& chain, size_t count) {
  chain.tokens.resize(count);
  chain.shape = DraftShape::chain(static_cast<int64_t>(count));
  if (!chain.distributions.empty()) chain.distributions.resize(count);
}

// Block verification of one draft; returns what take_matching() returns.
template <typename Scores, typename Take>
std::vector<int32_t> take_block(const Writer& writer, const Draft& draft, const Scores& scores,
                                const Take& take) {
  const std::span<const int32_t> recent = writer.session().recent();
  std::vector<int32_t> text(recent.begin(), recent.end());
  std::vector<TokenDistribution> distributions;
  std::optional<GrammarState> grammar;
  if (writer.grammar() != nullptr) grammar = *writer.grammar();
  Draft chain = draft;
  for (int32_t node = -1; node < static_cast<int32_t>(chain.tokens.size()); ++node) {
    std::optional<TokenMask> allowed;
    try {
      if (node >= 0) {
        const int32_t token = chain.tokens[static_cast<size_t>(node)];
        text.push_back(token);
        // Behind a guess that breaks the grammar, which cannot come true, nothing counts.
        if (grammar && !grammar->take(token)) grammar.reset();
      }
      if (grammar && !grammar->ended()) allowed = grammar->allowed();
    } catch (const Error&) {
      if (node < 0) throw;  // it is the text's own
      cut_chain(chain, static_cast<size_t>(node));
      break;
    }
    distributions.push_back(token_distribution(scores(node), writer.sampling(node + 1), text,
                                               writer.position() + node + 1,
                                               allowed ? &*allowed : nullptr));
  }
  // Noise of its own for every round: its numbers have told something of guesses once used.
  const uint64_t round = static_cast<uint64_t>(writer.position()) << 8;
  const uint64_t seed = writer.sampling().seed;
  const BlockVerdict verdict = verify_block(chain, distributions, [&](size_t i) {
    return unit_interval(philox(seed, round | i, kJudgeStream));
  });
  std::vector<int32_t> path;
  for (size_t i = 0; i < verdict.accepted; ++i) {
    if (!take(chain.tokens[i], static_cast<int32_t>(i) - 1)) return path;
    path.push_back(static_cast<int32_t>(i));
  }
  take(verdict.next, static_cast<int32_t>(verdict.accepted) - 1);
  return path;
}

// The model's state keeps the last token read and the nodes of `path`.
void forget(Session& session, const Draft& draft, int64_t before, std::span<const int32_t> path) {
  const auto read = static_cast<int64_t>(path.size()) + 1;
  if (draft.shape.is_chain()) {
    if (!draft.empty()) session.state().truncate(before + read);
  } else {
    std::vector<int32_t> nodes = {0};
    for (const int32_t node : path) nodes.push_back(node + 1);
    session.state().commit(nodes);
  }
  session.mark_read(static_cast<size_t>(read));
}

void count(SpeculationStats& stats, const Draft& draft, std::span<const int32_t> path,
           int64_t tokens) {
  ++stats.rounds;
  stats.tokens += tokens;
  if (draft.empty()) return;
  ++stats.speculated;
  stats.drafted += static_cast<int64_t>(draft.tokens.size());
  stats.accepted += static_cast<int64_t>(path.size());
  const std::vector<int32_t> depths = draft.shape.depths();
  for (const int32_t depth : depths) ++stats.drafted_at[static_cast<size_t>(depth - 1)];
  for (size_t i = 0; i < path.size(); ++i) ++stats.accepted_at[i];
}

void add_text(Batch& batch, Session& session, const Draft& draft) {
  std::vector<int32_t> tokens = {session.pending().front()}, parents;
  tokens.insert(tokens.end(), draft.tokens.begin(), draft.tokens.end());
  if (!draft.shape.is_chain()) {
    parents = {-1};
    for (const int32_t parent : draft.shape.parents) parents.push_back(parent + 1);
  }
  add_segment(batch, session.state(), tokens, std::move(parents));
}

}  // namespace

// Guesses for each text, of the shape that is asked for.
std::vector<Draft> TextBatch::make_drafts(std::span<const size_t> writing,
                                          const DraftShape& shape) {
  std::vector<DraftRequest> requests;
  std::vector<size_t> asked;  // places in `writing`
  for (size_t i = 0; i < writing.size(); ++i) {
    const size_t slot = writing[i];
    const Writer& writer = texts_[slot]->writer;
    if (writer.position() + kMaxDraft > speculation_->drafter().longest_text()) continue;
    if (!texts_[slot]->guessed) continue;
    asked.push_back(i);
    DraftRequest request;
    request.sequence = slot;
    // The model adds a token to the guesses that come true.
    request.limit = std::min(kMaxDraft, writer.left() - 1);
    request.shape = shape.up_to_depth(request.limit);
    request.sampling = &writer.sampling();
    request.draw = judges_blocks(writer);
    request.recent = writer.session().recent();
    request.position = writer.position();
    request.state = &writer.session().state();
    request.grammar = writer.grammar();
    requests.push_back(std::move(request));
  }
  const double start = now_seconds();
  speculation_->drafter().draft(context_, requests);
  std::vector<Draft> drafts(writing.size());
  for (size_t r = 0; r < requests.size(); ++r) {
    check_draft(requests[r].draft, model_.config().vocab_size);
    if (requests[r].grammar != nullptr) keep_to(*requests[r].grammar, requests[r].draft);
    drafts[asked[r]] = std::move(requests[r].draft);
  }
  // What grammars cost at guesses is no text's own: where that may be much, they have no more.
  if (now_seconds() - start > kSlowDraft) {
    for (const DraftRequest& request : requests) {
      if (request.grammar != nullptr) texts_[request.sequence]->guessed = false;
    }
  }
  return drafts;
}

bool TextBatch::judges_blocks(const Writer& writer) const {
  return speculation_ != nullptr && speculation_->options().block &&
         writer.options().sampling.temperature != 0 && !writer.options().reasoning;
}

// Where texts come and go, a drafter that fails is not asked again, and harms no text.
void TextBatch::guess(Round& round) {
  round.drafts.resize(round.writing.size());
  round.made = round.drafts;
  if (speculation_ == nullptr || round.writing.empty()) return;
  try {
    draft(round);
  } catch (const Error& error) {
    if (!changing_) throw;
    warn_once(
        fmt::format("draft: {}; texts are written without guesses from here on", error.what()));
    speculation_ = nullptr;
    round.made.assign(round.writing.size(), {});
    round.drafts = round.made;
  }
}

void TextBatch::draft(Round& round) {
  const double start = now_seconds();
  Controller& controller = speculation_->controller();
  if (changing_) controller.set_sequences(std::ssize(round.writing));
  if (const std::optional<DraftShape> wanted = controller.plan(kMaxDraft)) {
    round.made = make_drafts(round.writing, *wanted);
    round.drafts = round.made;
    controller.trim(round.drafts);
  }
  round.draft_seconds = now_seconds() - start;
}

void TextBatch::run_together(Round& round) {
  try {
    guess(round);
    const double start = now_seconds();
    Batch& batch = round.batch;
    for (size_t i = 0; i < round.writing.size(); ++i) {
      Session& text = session(round.writing[i]);
      round.lengths.push_back(text.state().length());
      add_text(batch, text, round.drafts[i]);
    }
    round.written_rows = batch.rows();
    std::vector<int32_t> rows(static_cast<size_t>(batch.rows()));  // whose scores are wanted
    std::iota(rows.begin(), rows.end(), 0);
    for (const size_t slot : round.reading) {
      Session& text = session(slot);
      const auto count = static_cast<size_t>(texts_[slot]->next_piece().tokens.size());
      const bool ends = count == text.pending().size();
      add_segment(batch, text.state(), text.pending().first(count));
      if (ends) rows.push_back(static_cast<int32_t>(batch.rows() - 1));
    }
    round.hidden = model_.forward(context_, batch);
    if (std::ssize(rows) == batch.rows()) {
      round.logits = model_.logits(context_, round.hidden);
    } else if (!rows.empty()) {
      round.logits = model_.logits(context_, embedding(context_, round.hidden, rows));
    }
    round.step_seconds = now_seconds() - start;
    ++work_.steps;
    work_.rows += batch.rows();
    work_.decode_seconds += round.step_seconds + round.draft_seconds;
  } catch (...) {
    for (const size_t slot : round.writing) fail(slot);
    for (const size_t slot : round.reading) fail(slot);
    return;
  }
  decide(round);
  int64_t row = round.written_rows;
  for (size_t i = 0; i < round.reading.size(); ++i) {
    const size_t slot = round.reading[i];
    const Segment& segment = round.batch.segments[round.writing.size() + i];
    const bool ends = segment.length == std::ssize(session(slot).pending());
    const std::span<const float> scores = ends ? round.row(row++) : std::span<const float>();
    guard(slot, [&] {
      after_piece(slot, round.hidden.row_slice(segment.first_row, segment.length), scores,
                  round.step_seconds);
    });
  }
}

// The first choice of each text is due whatever the guesses were, and drawing from a large
// vocabulary takes as long as a small model's step.
void TextBatch::choose_first(Round& round) {
  const auto texts = static_cast<int64_t>(round.writing.size());
  round.first_choices.resize(round.writing.size());
  parallel_for(texts, 1, [&](int64_t begin, int64_t end) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      Writer& writer = texts_[round.writing[i]]->writer;
      if (!round.drafts[i].empty() && judges_blocks(writer)) continue;
      guard(round.writing[i], [&] { round.first_choices[i] = writer.choose(round.scores(i, -1)); });
    }
  });
}

void TextBatch::decide(Round& round) {
  if (round.writing.empty()) return;
  choose_first(round);
  round.taken.resize(round.writing.size());
  for (size_t i = 0; i < round.writing.size(); ++i) {
    const size_t slot = round.writing[i];
    if (!texts_[slot]->done) guard(slot, [&] { take(round, i); });
  }
  if (speculation_ == nullptr) return;
  speculation_->stats().draft_seconds += round.draft_seconds;
  speculation_->stats().step_seconds += round.step_seconds;
  speculation_->controller().observe({round.made, round.taken, round.written_rows,
                                      round.draft_seconds, round.step_seconds,
                                      round.reading.empty()});
}

// The tokens of the i-th text that this step decides.
void TextBatch::take(Round& round, size_t i) {
  const size_t slot = round.writing[i];
  Writer& writer = texts_[slot]->writer;
  const Draft& draft = round.drafts[i];
  if (texts_[slot]->decode_start == 0) {
    texts_[slot]->decode_start = now_seconds() - round.step_seconds - round.draft_seconds;
  }
  const auto scores = [&](int32_t node) { return round.scores(i, node); };
  const auto take = [&](int32_t token, int32_t node) {
    round.taken[i].push_back(token);
    return writer.take(token, scores(node));
  };
  int32_t chosen_behind = -1;
  const auto choose = [&](int32_t node) {
    chosen_behind = node;
    return node < 0 ? round.first_choices[i] : writer.choose(scores(node));
  };
  const std::vector<int32_t> path =
      !draft.empty() && judges_blocks(writer)
          ? take_block(writer, draft, scores, take)
          : take_matching(draft, choose, [&](int32_t t) { return take(t, chosen_behind); });
  forget(writer.session(), draft, round.lengths[i], path);
  Generated& result = writer.result();
  ++result.steps;
  result.drafted += static_cast<int64_t>(draft.tokens.size());
  result.accepted += static_cast<int64_t>(path.size());
  if (Drafter* drafter = this->drafter()) {
    if (drafter->wants_hidden()) {
      std::vector<int32_t> rows = {static_cast<int32_t>(round.batch.segments[i].first_row)};
      for (const int32_t node : path) rows.push_back(rows.front() + node + 1);
      drafter->observe(slot, embedding({}, round.hidden, rows));
    }
    drafter->append(slot, round.taken[i]);
    count(speculation_->stats(), draft, path, static_cast<int64_t>(round.taken[i].size()));
  }
  check_length(writer);
  if (writer.ended()) finish(slot);
}

}  // namespace pronghorn
