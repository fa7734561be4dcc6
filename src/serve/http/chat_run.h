// ChatRun: answers in a chat, taken apart while they arrive; what the chat APIs have in common.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "serve/http/answer_parser.h"
#include "serve/http/chat_prompt.h"
#include "serve/http/text_fields.h"
#include "serve/http/text_run.h"

namespace pronghorn::serve {

// Whether a piece adds anything to an answer, rather than only telling that a call has ended.
inline bool says_something(const AnswerPiece& piece) {
  return piece.kind != AnswerPiece::Kind::tool_call || piece.begins || !piece.arguments.empty();
}

// Reads how much an answer is to reason: thinking ({"type", "budget_tokens"}), and reasoning_effort
// or reasoning ({"effort"}). The template is told, and the reasoning is bounded where the model has
// tokens for its marks; fields that change nothing stay unread. Throws ApiError.
void read_reasoning(Fields& fields, const ServedModel& model, Chat& chat);

class ChatRun {
 public:
  // Renders the chat and queues text.choices answers of at most `most` tokens (-1: as many as there
  // is room for). likeliest: as in TextRequest. Throws what chat_prompt() and TextRun::submit() do.
  ChatRun(Service& service, std::shared_ptr<ServedModel> model, Call& call, const Chat& chat,
          const TextFields& text, int64_t most, int likeliest = -1);

  struct Event {
    size_t choice = 0;
    std::vector<AnswerPiece> pieces;
    std::vector<WrittenToken> tokens;
    bool ended = false;  // the last of its choice
  };
  // As TextRun::next().
  std::optional<Event> next(const std::function<void()>& on_silence = {});

  // Of a choice that has ended.
  const TextSummary& summary(size_t choice) const { return run_.summary(choice); }
  bool called_tools(size_t choice) const { return called_[choice]; }
  // Calls that could not be read (AnswerParser).
  int64_t malformed_calls() const;

  TextSummary total() const { return run_.total(); }
  size_t choices() const { return run_.choices(); }
  int64_t prompt_tokens() const { return prompt_tokens_; }
  const ServedModel& model() const { return run_.model(); }

 private:
  TextRun run_;
  std::vector<AnswerParser> parsers_;
  std::vector<bool> called_;
  int64_t prompt_tokens_ = 0;
};

}  // namespace pronghorn::serve
