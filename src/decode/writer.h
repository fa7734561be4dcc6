// Writer: one text on its way. Its tokens become characters, and it ends where it must.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "decode/generator.h"
#include "decode/part_finder.h"
#include "decode/stop_filter.h"

namespace pronghorn {

class Writer {
 public:
  // Appends the prompt to the session, which must outlive it, as the tokenizer must. Throws
  // UsageError for options out of range.
  Writer(const Tokenizer& tokenizer, const Generation& generation);

  Session& session() const { return session_; }
  const GenerateOptions& options() const { return options_; }
  Generated& result() { return result_; }
  const Generated& result() const { return result_; }
  bool ended() const { return ended_ || left() <= 0; }
  // Tokens that may still be written.
  int64_t left() const { return options_.max_tokens - result_.tokens; }
  // Of the next token in the text.
  int64_t position() const { return position_; }

  // How the token is to be drawn that comes `ahead` tokens after the next.
  const SamplingOptions& sampling(int64_t ahead = 0) const {
    return result_.tokens + ahead < options_.min_tokens ? unending_ : sampling_;
  }
  // Where the text stands in the grammar that it must follow; null: there is none.
  const GrammarState* grammar() const { return grammar_ ? &*grammar_ : nullptr; }
  // The model's own choice from its scores of the next token. Throws Error if there is none.
  int32_t choose(std::span<const float> scores);
  // Takes the next token, which was chosen from these scores; false if the text ends with it.
  bool take(int32_t token, std::span<const float> scores);

  // Ends the text here if somebody wants that.
  bool interrupt();
  void end_with(Generated::End end);
  // Gives out what was held back. A character that is not complete stays for whoever goes on.
  void finish();

 private:
  bool ends_text(int32_t token) const;
  void follow_grammar(int32_t token);
  void follow_reasoning(int32_t token);
  bool cuts_part() const;
  // Whether a token that is special is written as its text.
  bool shows(int32_t token) const;
  void give(const std::string& ready);

  const Tokenizer& tokenizer_;
  Session& session_;
  GenerateOptions options_;
  SamplingOptions sampling_, unending_;  // the second: without the tokens that end the text
  std::optional<GrammarState> grammar_;
  std::optional<PartFinder> parts_;  // with a bounded part, which is found as its readers find it
  int64_t part_left_ = 0;            // tokens that the part may still have
  std::function<void(std::string_view)> emit_;
  std::function<bool()> interrupted_;
  int64_t position_ = 0;
  StopFilter filter_;
  std::optional<TextStream> stream_;
  Generated result_;
  bool ended_ = false;
};

}  // namespace pronghorn
