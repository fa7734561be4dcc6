// Lines that a person types, or that a pipe holds.
#pragma once

#include <memory>
#include <optional>
#include <string>

namespace pronghorn::app {

class LineInput {
 public:
  // editing: on a terminal, with the keys of an editor and a history.
  explicit LineInput(bool editing);
  ~LineInput();
  LineInput(const LineInput&) = delete;
  LineInput& operator=(const LineInput&) = delete;

  // The next line without its end; nothing at the end of the input, or after a signal. A prompt is
  // shown where there is editing.
  std::optional<std::string> next(const std::string& prompt);
  // Whether the last next() ended by a signal.
  bool interrupted() const { return interrupted_; }

 private:
  struct Editor;
  std::unique_ptr<Editor> editor_;
  bool interrupted_ = false;
};

}  // namespace pronghorn::app
