// AnswerParser: takes an answer apart while it arrives: reasoning between <think> and </think>, and
// calls of tools between <tool_call> and </tool_call>, as Qwen's and Hermes' models write them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "decode/part_finder.h"

namespace pronghorn::serve {

// What answers are searched for, with or without tools.
PartMarks answer_marks(bool tools);

struct AnswerPiece {
  enum class Kind : uint8_t { content, reasoning, tool_call } kind = Kind::content;
  std::string text;       // of content and reasoning: what follows the last piece of that kind
  std::string name;       // of the tool, in the first piece of a call
  std::string arguments;  // JSON text of an object, or what follows the last piece of the call
  // Whether this is the first and the last piece of a call. One that is cut, or cannot be read, has
  // no last.
  bool begins = true, ends = true;
};

class AnswerParser {
 public:
  // tools: whether calls are looked for. in_reasoning: the prompt has opened the reasoning.
  // in_parts: the arguments of a call are given out while they come, without space between their
  // parts, where the call begins with its name; otherwise calls are given out whole.
  AnswerParser(bool tools, bool in_reasoning, bool in_parts = false)
      : finder_(answer_marks(tools), in_reasoning), in_parts_(in_parts), trims_(in_reasoning) {}

  // Takes text and returns what is certain of it; what may be the beginning of a mark waits. Space
  // around marks is left out.
  std::vector<AnswerPiece> push(std::string_view text);
  // The rest, at the end of the answer.
  std::vector<AnswerPiece> finish();

  // Calls that could not be read as one; they are left out of the answer, as far as no part of them
  // has been given out.
  int64_t malformed_calls() const { return malformed_; }

 private:
  using Pieces = std::vector<AnswerPiece>;
  void take_mark(PartFinder::Part ended, Pieces& pieces);
  void end_call(Pieces& pieces);
  // Gives out what has come of the call's arguments.
  void give_arguments(Pieces& pieces);
  void add(std::string_view text, Pieces& pieces);
  void give(std::string_view text, Pieces& pieces);

  PartFinder finder_;
  bool in_parts_;
  bool trims_;  // space that follows is left out
  std::string space_, call_;
  // Of a call that is given out in parts: how far, and where that is in its arguments.
  size_t given_ = 0;
  int64_t depth_ = 0;
  bool begun_ = false, in_string_ = false, escaped_ = false;
  int64_t malformed_ = 0;
};

}  // namespace pronghorn::serve
