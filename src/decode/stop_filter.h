// StopFilter: ends a text before the first of several strings, wherever pieces of it begin and end.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace pronghorn {

// Holds text back while it might be the beginning of a stop string.
class StopFilter {
 public:
  // Throws UsageError if a stop string is empty.
  explicit StopFilter(std::vector<std::string> stops);

  // Adds text; returns what can be shown.
  std::string push(std::string_view text);
  // What was held back, at the end of the text.
  std::string finish();
  // A stop string was found.
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace pronghorn
