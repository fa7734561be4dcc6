#include "decode/generator.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/random.h"
#include "base/threads.h"
#include "decode/drafter.h"
#include "decode/stop_filter.h"
#include "decode/verification.h"
#include "ops/pointwise.h"

namespace pronghorn {
namespace {

// Noise of block verification: for judging guesses, of which there is one number more.
constexpr uint64_t kJudgeStream = stream_id("judge draft");

// One text on its way: its tokens become text, and it ends where it must.
class Writer {
 public:
  Writer(const Tokenizer& tokenizer, const Generation& generation)
      : tokenizer_(tokenizer),
        session_(*generation.session),
        options_(generation.options),
        emit_(generation.emit),
        interrupted_(generation.interrupted),
        filter_(options_.stop) {
    check(options_.sampling);
  }

  Session& session() const { return session_; }
  const GenerateOptions& options() const { return options_; }
  Generated& result() { return result_; }
  bool ended() const { return ended_ || left() <= 0; }
  // Tokens that may still be written.
  int64_t left() const { return options_.max_tokens - result_.tokens; }

  // The model's own choice from its scores of the next token.
  int32_t choose(std::span<const float> scores) const {
    return sample(scores, options_.sampling, session_.recent(), position_);
  }
  // Of the next token in the text.
  int64_t position() const { return position_; }

  void append_prompt(std::span<const int32_t> prompt) {
    session_.append_prompt(tokenizer_, prompt);
    result_.prompt_tokens = static_cast<int64_t>(prompt.size());
    position_ = session_.length();
    stream_.emplace(tokenizer_, session_.text());
  }

  // Takes the next token; false if the text ends with it.
  bool take(int32_t token) {
    ++result_.tokens;
    ++position_;
    result_.ids.push_back(token);
    session_.append({&token, 1});
    const bool ends = options_.stop_at_eos && ends_text(token);
    if (token < tokenizer_.vocab_size()) {
      if (!ends) show(stream_->push(token));
      if (ends || tokenizer_.is_special(token)) {
        give(filter_.push(tokenizer_.token_bytes(token, true), false));
      }
    }
    if (filter_.stopped()) {
      end_with(Generated::End::stop_string);
    } else if (ends) {
      end_with(Generated::End::end_token);
    } else if (!ended() && interrupt()) {
      return false;
    }
    return !ended();
  }

  // Ends the text here if somebody wants that.
  bool interrupt() {
    if (interrupted_ == nullptr || !interrupted_()) return false;
    end_with(Generated::End::interrupted);
    return true;
  }

  // What was held back. A character that is not complete stays for whoever goes on.
  void finish() {
    const bool goes_on =
        result_.end == Generated::End::length || result_.end == Generated::End::interrupted;
    if (!goes_on) show(stream_->finish());
    give(filter_.finish());
    session_.set_text(stream_->state());
  }

 private:
  bool ends_text(int32_t token) const {
    return tokenizer_.eos() == token ||
           std::find(options_.end_tokens.begin(), options_.end_tokens.end(), token) !=
               options_.end_tokens.end();
  }
  void end_with(Generated::End end) {
    result_.end = end;
    ended_ = true;
  }
  void show(std::string_view text) { give(filter_.push(text)); }
  void give(const std::string& ready) {
    result_.text += ready;
    if (emit_ && !ready.empty()) emit_(ready);
  }

  const Tokenizer& tokenizer_;
  Session& session_;
  const GenerateOptions& options_;
  const std::function<void(std::string_view)>& emit_;
  const std::function<bool()>& interrupted_;
  int64_t position_ = 0;
  StopFilter filter_;
  std::optional<TextStream> stream_;
  Generated result_;
  bool ended_ = false;
};

// Writes several texts together. A round: guess, let the model read the last token of each text and
// the guesses after it, take the tokens that the model chooses as far as guesses were right, and
// forget the rest. Without guesses a round is a step of plain decoding; there is no other loop.
class Generator {
 public:
  Generator(const Model& model, const Tokenizer& tokenizer, std::span<const Generation> generations,
            Speculation* speculation)
      : model_(model), speculation_(speculation) {
    for (const Generation& generation : generations) {
      writers_.push_back(std::make_unique<Writer>(tokenizer, generation));
      require(generation.options.precision == generations.front().options.precision, "generate",
              "texts of one batch differ in precision");
      for (size_t i = 0; i + 1 < writers_.size(); ++i) {
        require(&writers_[i]->session() != generation.session, "generate",
                "a session occurs twice in a batch");
      }
    }
    if (!generations.empty()) context_.precision = generations.front().options.precision;
    if (speculation_ != nullptr) {
      speculation_->prepare(model, context_, static_cast<int64_t>(generations.size()));
      speculation_->drafter().start(generations.size());
    }
    trained_ = trained_context(model.config()).tokens;
    for (size_t i = 0; i < writers_.size(); ++i) {
      check_length(*writers_[i], std::ssize(generations[i].prompt));
      read_prompt(i, generations[i].prompt);
    }
  }

  std::vector<Generated> run() {
    const double start = now_seconds();
    std::vector<size_t> active;
    for (size_t i = 0; i < writers_.size(); ++i) {
      Writer& writer = *writers_[i];
      if (writer.left() > 0 && !writer.ended()) {
        if (!writer.interrupt()) {
          const std::vector<int32_t> token = {writer.choose(first_scores_[i].values())};
          writer.take(token.front());
          if (speculation_ != nullptr) speculation_->drafter().append(i, token);
        }
      }
      if (writer.ended()) {
        end(writer, start);
      } else {
        active.push_back(i);
      }
    }
    first_scores_.clear();
    while (!active.empty()) {
      round(active);
      for (const size_t i : active) check_length(*writers_[i], 0);
      std::erase_if(active, [&](size_t i) {
        if (!writers_[i]->ended()) return false;
        end(*writers_[i], start);
        return true;
      });
    }
    std::vector<Generated> results;
    for (const auto& writer : writers_) results.push_back(std::move(writer->result()));
    return results;
  }

 private:
  // Of a text, with what is to be added to it.
  void check_length(const Writer& writer, int64_t added) const {
    const int64_t length = writer.session().length() + added;
    if (trained_ > 0 && length > trained_) {
      check_context(model_, length, writer.options().context);
    }
  }

  void read_prompt(size_t index, std::span<const int32_t> prompt) {
    Writer& writer = *writers_[index];
    Session& session = writer.session();
    Drafter* drafter = speculation_ == nullptr ? nullptr : &speculation_->drafter();
    const std::span<const int32_t> recent = session.recent();
    if (drafter != nullptr) {
      const size_t unread = std::min(session.pending().size(), recent.size());
      drafter->begin(index, recent.first(recent.size() - unread));
    }
    writer.append_prompt(prompt);
    if (drafter != nullptr) drafter->append(index, session.pending());
    const double start = now_seconds();
    Progress progress("reading the prompt", static_cast<double>(prompt.size()), "tokens");
    struct Interrupted {};
    try {
      first_scores_.push_back(
          session.scores(model_, context_, [&](size_t done, const Tensor& hidden) {
            progress.update(static_cast<double>(done));
            if (drafter != nullptr && drafter->wants_hidden()) drafter->observe(index, hidden);
            if (writer.interrupt()) throw Interrupted();
          }));
    } catch (const Interrupted&) {
      first_scores_.emplace_back();  // the text has ended and asks for none
    }
    writer.result().prompt_seconds = now_seconds() - start;
  }

  void end(Writer& writer, double start) {
    writer.finish();
    writer.result().decode_seconds = now_seconds() - start;
  }

  // Guesses for each active text, of the shape that is asked for.
  std::vector<Draft> make_drafts(std::span<const size_t> active, const DraftShape& shape) {
    std::vector<DraftRequest> requests;
    for (const size_t i : active) {
      const Writer& writer = *writers_[i];
      DraftRequest request;
      request.sequence = i;
      // The model adds a token to the guesses that come true.
      request.limit = std::min(kMaxDraft, writer.left() - 1);
      request.shape = shape.up_to_depth(request.limit);
      request.sampling = &writer.options().sampling;
      request.draw = judges_blocks(writer);
      request.recent = writer.session().recent();
      request.position = writer.position();
      request.state = &writer.session().state();
      requests.push_back(std::move(request));
    }
    speculation_->drafter().draft(context_, requests);
    std::vector<Draft> drafts;
    for (DraftRequest& request : requests) {
      check(request.draft, model_.config().vocab_size);
      drafts.push_back(std::move(request.draft));
    }
    return drafts;
  }

  bool judges_blocks(const Writer& writer) const {
    return speculation_ != nullptr && speculation_->options().block &&
           writer.options().sampling.temperature != 0;
  }

  void round(std::span<const size_t> active) {
    std::vector<Draft> drafts(active.size()), made(active.size());
    const double start = now_seconds();
    const std::optional<DraftShape> wanted =
        speculation_ != nullptr ? speculation_->controller().plan(kMaxDraft) : std::nullopt;
    if (wanted) {
      made = make_drafts(active, *wanted);
      drafts = made;
      speculation_->controller().trim(drafts);
    }
    const double draft_end = now_seconds();

    Batch batch;
    std::vector<int64_t> lengths;  // of the states before the step
    for (size_t i = 0; i < active.size(); ++i) {
      Session& session = writers_[active[i]]->session();
      const Draft& draft = drafts[i];
      std::vector<int32_t> tokens = {session.pending().front()}, parents;
      tokens.insert(tokens.end(), draft.tokens.begin(), draft.tokens.end());
      if (!draft.shape.is_chain()) {
        parents = {-1};
        for (const int32_t parent : draft.shape.parents) parents.push_back(parent + 1);
      }
      lengths.push_back(session.state().length());
      add_segment(batch, session.state(), tokens, std::move(parents));
    }
    const Tensor hidden = model_.forward(context_, batch);
    const Tensor logits = model_.logits(context_, hidden);
    const double step_end = now_seconds();

    const auto scores_of = [&](size_t i, int32_t node) -> std::span<const float> {
      return {logits.row(batch.segments[i].first_row + node + 1),
              static_cast<size_t>(logits.columns())};
    };
    const auto judged = [&](size_t i) {
      return !drafts[i].empty() && judges_blocks(*writers_[active[i]]);
    };
    // The first choice of each text is due whatever the guesses were, and drawing from a large
    // vocabulary takes as long as a small model's step.
    std::vector<int32_t> first_choices(active.size());
    parallel_for(static_cast<int64_t>(active.size()), 1, [&](int64_t begin, int64_t end) {
      for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
        if (!judged(i)) first_choices[i] = writers_[active[i]]->choose(scores_of(i, -1));
      }
    });

    std::vector<std::vector<int32_t>> taken(active.size());
    for (size_t i = 0; i < active.size(); ++i) {
      Writer& writer = *writers_[active[i]];
      const auto scores = [&](int32_t node) { return scores_of(i, node); };
      const auto take = [&](int32_t token) {
        taken[i].push_back(token);
        return writer.take(token);
      };
      const std::vector<int32_t> path =
          judged(i) ? take_block(writer, drafts[i], scores, take)
                    : take_matching(
                          drafts[i],
                          [&](int32_t node) {
                            return node < 0 ? first_choices[i] : writer.choose(scores(node));
                          },
                          take);
      forget(writer.session(), drafts[i], lengths[i], path);
      ++writer.result().steps;
      if (speculation_ == nullptr) continue;
      Drafter& drafter = speculation_->drafter();
      if (drafter.wants_hidden()) {
        std::vector<int32_t> rows = {static_cast<int32_t>(batch.segments[i].first_row)};
        for (const int32_t node : path) rows.push_back(rows.front() + node + 1);
        drafter.observe(active[i], embedding({}, hidden, rows));
      }
      drafter.append(active[i], taken[i]);
      count(speculation_->stats(), drafts[i], path, static_cast<int64_t>(taken[i].size()));
    }
    if (speculation_ == nullptr) return;
    speculation_->stats().draft_seconds += draft_end - start;
    speculation_->stats().step_seconds += step_end - draft_end;
    speculation_->controller().observe(
        {made, taken, batch.rows(), draft_end - start, step_end - draft_end});
  }

  // Block verification of one draft; returns what take_matching() returns.
  template <typename Scores, typename Take>
  static std::vector<int32_t> take_block(const Writer& writer, const Draft& draft,
                                         const Scores& scores, const Take& take) {
    const SamplingOptions& sampling = writer.options().sampling;
    const std::span<const int32_t> recent = writer.session().recent();
    std::vector<int32_t> text(recent.begin(), recent.end());
    std::vector<TokenDistribution> distributions;
    for (int32_t node = -1; node < static_cast<int32_t>(draft.tokens.size()); ++node) {
      if (node >= 0) text.push_back(draft.tokens[static_cast<size_t>(node)]);
      distributions.push_back(token_distribution(scores(node), sampling, text));
    }
    // Noise of its own for every round: its numbers have told something of guesses once used.
    const uint64_t round = static_cast<uint64_t>(writer.position()) << 8;
    const BlockVerdict verdict = verify_block(draft, distributions, [&](size_t i) {
      return unit_interval(philox(sampling.seed, round | i, kJudgeStream));
    });
    std::vector<int32_t> path;
    for (size_t i = 0; i < verdict.accepted; ++i) {
      if (!take(draft.tokens[i])) return path;
      path.push_back(static_cast<int32_t>(i));
    }
    take(verdict.next);
    return path;
  }

  // The model's state keeps the last token read and the nodes of `path`.
  static void forget(Session& session, const Draft& draft, int64_t before,
                     std::span<const int32_t> path) {
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

  static void count(SpeculationStats& stats, const Draft& draft, std::span<const int32_t> path,
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

  const Model& model_;
  int64_t trained_ = 0;  // tokens; 0: not known
  Speculation* speculation_;
  Context context_;
  std::vector<std::unique_ptr<Writer>> writers_;
  std::vector<Tensor> first_scores_;
};

}  // namespace

std::vector<Generated> generate(const Model& model, const Tokenizer& tokenizer,
                                std::span<const Generation> generations, Speculation* speculation) {
  return Generator(model, tokenizer, generations, speculation).run();
}

Generated generate(const Model& model, const Tokenizer& tokenizer, Session& session,
                   std::span<const int32_t> prompt, const GenerateOptions& options,
                   const std::function<void(std::string_view)>& emit, Speculation* speculation,
                   const std::function<bool()>& interrupted) {
  const Generation generation{&session, prompt, options, emit, interrupted};
  return generate(model, tokenizer, {&generation, 1}, speculation).front();
}

}  // namespace pronghorn
