// PartFinder: where reasoning and calls of tools begin and end in an answer, found by their marks
// while its text arrives. The one place that knows the rule, for who bounds reasoning and for who
// takes answers apart.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pronghorn {

struct PartMarks {
  std::string reasoning, reasoning_end;  // "<think>", "</think>"
  std::string call, call_end;            // "<tool_call>", "</tool_call>"; empty: calls are text
};

// Reasoning opens at the beginning of an answer, behind earlier reasoning and behind a call, with
// nothing but space between; once other text has come, its mark is text. A call begins anywhere
// outside reasoning, and in a call no mark counts but its own.
class PartFinder {
 public:
  enum class Part : uint8_t { text, reasoning, call };

  // in_reasoning: the prompt has opened it.
  PartFinder(PartMarks marks, bool in_reasoning)
      : marks_(std::move(marks)), part_(in_reasoning ? Part::reasoning : Part::text) {}

  // The part that is open.
  Part part() const { return part_; }
  // Whether reasoning is open, or may still open.
  bool may_reason() const { return part_ == Part::reasoning || !text_seen_; }

  // Takes what comes next. on_text: of the open part, as much as is certain; what may be the
  // beginning of a mark waits. on_mark: a mark has come, which ended the part that it is given.
  void push(std::string_view text, const std::function<void(std::string_view)>& on_text,
            const std::function<void(Part ended)>& on_mark);
  // What still waits, at the end of the answer: text of the open part.
  std::string finish() { return std::exchange(held_, {}); }

 private:
  // What may come next of them.
  std::vector<std::string_view> marks() const;
  // The first mark in what is held, and where.
  std::pair<size_t, std::string_view> find_mark() const;
  void give(std::string_view text, const std::function<void(std::string_view)>& on_text);
  void pass(std::string_view mark);

  PartMarks marks_;
  Part part_;
  bool text_seen_ = false;
  std::string held_;
};

}  // namespace pronghorn
