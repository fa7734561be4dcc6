#include "decode/writer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"

namespace pronghorn {
namespace {

bool holds(const std::vector<int32_t>& tokens, int32_t token) {
  return std::ranges::find(tokens, token) != tokens.end();
}

}  // namespace

Writer::Writer(const Tokenizer& tokenizer, const Generation& generation)
    : tokenizer_(tokenizer),
      session_(*generation.session),
      options_(generation.options),
      sampling_(options_.sampling),
      emit_(generation.emit),
      interrupted_(generation.interrupted),
      filter_(options_.stop) {
  check_sampling(options_.sampling);
  session_.append_prompt(tokenizer, generation.prompt);
  result_.prompt_tokens = std::ssize(generation.prompt);
  position_ = session_.length();
  sampling_.penalty_start = position_;
  stream_.emplace(tokenizer_, session_.text());
  unending_ = sampling_;
  if (options_.min_tokens > 0 && options_.stop_at_eos) {
    const auto rule_out = [&](int32_t token) {
      unending_.logit_bias.emplace_back(token, -INFINITY);
    };
    if (tokenizer.eos()) rule_out(*tokenizer.eos());
    std::ranges::for_each(options_.end_tokens, rule_out);
  }
  if (options_.reasoning) {
    const BoundedPart& part = *options_.reasoning;
    PartMarks marks{tokenizer.token_bytes(part.begin, true), tokenizer.token_bytes(part.end, true),
                    part.call, part.call_end};
    if (marks.reasoning.empty() || marks.reasoning_end.empty()) {
      throw UsageError("reasoning", "is marked by tokens without text", "tokens that have one");
    }
    parts_.emplace(std::move(marks), part.begun);
    part_left_ = part.tokens;
  }
  if (options_.grammar == nullptr) return;
  std::vector<int32_t> ends;
  if (options_.stop_at_eos) {
    ends = options_.end_tokens;
    if (tokenizer.eos()) ends.push_back(*tokenizer.eos());
  }
  grammar_.emplace(options_.grammar, std::move(ends));
  if (grammar_->ended()) end_with(Generated::End::end_token);
}

int32_t Writer::choose(std::span<const float> scores) {
  const bool cut = cuts_part();
  if (!grammar_) {
    return cut ? options_.reasoning->end : sample(scores, sampling(), session_.recent(), position_);
  }
  const TokenMask allowed = grammar_->allowed();
  if (cut && allowed.allows(options_.reasoning->end)) return options_.reasoning->end;
  return sample(scores, sampling(), session_.recent(), position_, &allowed);
}

void Writer::follow_grammar(int32_t token) {
  if (!grammar_) return;
  require(grammar_->take(token), "generate", "token {} breaks the grammar", token);
}

void Writer::follow_reasoning(int32_t token) {
  if (!parts_ || !parts_->may_reason()) return;
  if (parts_->part() == PartFinder::Part::reasoning) --part_left_;
  const bool mark = token == options_.reasoning->begin || token == options_.reasoning->end;
  if (token >= tokenizer_.vocab_size()) return;
  parts_->push(
      tokenizer_.token_bytes(token, mark || shows(token)), [](std::string_view) {},
      [](PartFinder::Part) {});
}

// Not inside a character, for which three tokens more are enough.
bool Writer::cuts_part() const {
  constexpr int64_t kMore = 3;
  const bool in_part = parts_ && parts_->part() == PartFinder::Part::reasoning;
  return in_part && part_left_ <= 0 && (stream_->state().pending.empty() || part_left_ <= -kMore);
}

// A special token that a grammar asked for is text of that grammar.
bool Writer::shows(int32_t token) const {
  return grammar_.has_value() || holds(options_.shown_tokens, token);
}

bool Writer::take(int32_t token, std::span<const float> scores) {
  follow_grammar(token);
  follow_reasoning(token);
  if (options_.likeliest >= 0) {
    result_.written.push_back(written_token(scores, token, options_.likeliest));
  }
  result_.ids.push_back(token);
  ++result_.tokens;
  ++position_;
  session_.append({&token, 1});
  const bool ends = options_.stop_at_eos && ends_text(token);
  if (token < tokenizer_.vocab_size()) {
    if (!ends) give(filter_.push(stream_->push(token)));
    if (ends || tokenizer_.is_special(token)) {
      give(filter_.push(tokenizer_.token_bytes(token, true), shows(token) && !ends));
    }
  }
  if (filter_.stopped()) {
    result_.stop = filter_.found();
    end_with(Generated::End::stop_string);
  } else if (ends || (grammar_ && grammar_->ended())) {
    end_with(Generated::End::end_token);
  } else if (!ended() && interrupt()) {
    return false;
  }
  return !ended();
}

bool Writer::interrupt() {
  if (interrupted_ == nullptr || !interrupted_()) return false;
  end_with(Generated::End::interrupted);
  return true;
}

void Writer::end_with(Generated::End end) {
  result_.end = end;
  ended_ = true;
}

void Writer::finish() {
  const bool goes_on =
      result_.end == Generated::End::length || result_.end == Generated::End::interrupted;
  if (!goes_on) give(filter_.push(stream_->finish()));
  give(filter_.finish());
  session_.set_text(stream_->state());
}

bool Writer::ends_text(int32_t token) const {
  return tokenizer_.eos() == token || holds(options_.end_tokens, token);
}

void Writer::give(const std::string& ready) {
  result_.text += ready;
  if (emit_ && !ready.empty()) emit_(ready);
}

}  // namespace pronghorn
