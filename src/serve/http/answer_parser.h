// AnswerParser: takes an answer apart while it arrives: reasoning between <think> and </think>, and
// calls of tools between <tool_call> and </tool_call>, as Qwen's and Hermes' models write them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pronghorn::serve {

struct AnswerPiece {
  enum class Kind : uint8_t { content, reasoning, tool_call } kind = Kind::content;
  std::string text;       // of content and reasoning: what follows the last piece of that kind
  std::string name;       // of the tool
  std::string arguments;  // JSON text of an object
};

class AnswerParser {
 public:
  // tools: whether calls are looked for. in_reasoning: the prompt has opened the reasoning.
  AnswerParser(bool tools, bool in_reasoning)
      : tools_(tools), reasoning_(in_reasoning), trims_(in_reasoning) {}

  // Takes text and returns what is certain of it; what may be the beginning of a mark waits.
  // Reasoning is marked at the beginning of an answer only. Space around marks is left out.
  std::vector<AnswerPiece> push(std::string_view text);
  // The rest, at the end of the answer.
  std::vector<AnswerPiece> finish();

  // Calls that could not be read as one; they are left out of the answer.
  int64_t malformed_calls() const { return malformed_; }

 private:
  using Pieces = std::vector<AnswerPiece>;
  // What ends the part that is open, or may begin another in it.
  std::vector<std::string_view> marks() const;
  // The first mark in what is held, and where.
  std::optional<std::pair<size_t, std::string_view>> find_mark() const;
  void take_mark(std::string_view mark, Pieces& pieces);
  void add(std::string_view text, Pieces& pieces);
  void give(std::string_view text, Pieces& pieces);

  bool tools_, reasoning_, in_call_ = false, content_seen_ = false;
  bool trims_;  // space that follows is left out
  std::string held_, space_, call_;
  int64_t malformed_ = 0;
};

}  // namespace pronghorn::serve
