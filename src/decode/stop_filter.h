// StopFilter: ends a text before the first of some strings, in a text that arrives in pieces.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace pronghorn {

// Gives out text as soon as it is certain that no stop string begins in it.
class StopFilter {
 public:
  // Throws UsageError for an empty stop string.
  explicit StopFilter(std::vector<std::string> stops);

  // Takes a piece and returns what may be shown. visible: false for what is part of the text and
  // never shown, the names of special tokens: stop strings are found in them too. After a stop
  // string has come, returns what stands before it, and then nothing.
  std::string push(std::string_view text, bool visible = true);
  bool stopped() const { return stopped_; }
  // The stop string that came: of several that begin at the same place, the first that was named.
  const std::string& found() const { return found_; }
  // What was held back, at the end of the text.
  std::string finish();

 private:
  // Takes the first `count` bytes out of what is held, and returns those of them that are shown.
  std::string release(size_t count);

  std::vector<std::string> stops_;
  std::string held_;
  std::string visible_;  // for each byte held whether it is shown: 1 or 0
  bool stopped_ = false;
  std::string found_;
};

}  // namespace pronghorn
