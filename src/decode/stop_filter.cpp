#include "decode/stop_filter.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace pronghorn {

StopFilter::StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) {
    if (stop.empty()) throw UsageError("stop", "a stop string is empty");
  }
}

std::string StopFilter::push(std::string_view text, bool visible) {
  if (stopped_) return {};
  held_ += text;
  visible_.append(text.size(), visible ? 1 : 0);
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at >= first) continue;
    first = at;
    found_ = stop;
  }
  if (first != std::string::npos) {
    stopped_ = true;
    return release(first);
  }
  size_t keep = 0;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > keep; --n) {
      if (held_.ends_with(std::string_view(stop).substr(0, n))) keep = n;
    }
  }
  return release(held_.size() - keep);
}

std::string StopFilter::finish() { return stopped_ ? std::string() : release(held_.size()); }

std::string StopFilter::release(size_t count) {
  std::string shown;
  for (size_t i = 0; i < count; ++i) {
    if (visible_[i] != 0) shown += held_[i];
  }
  held_.erase(0, count);
  visible_.erase(0, count);
  return shown;
}

}  // namespace pronghorn
