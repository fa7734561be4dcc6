#include "base/warning.h"

#include <fmt/format.h>

#include <cstdio>
#include <mutex>
#include <set>

#include "base/quote.h"

namespace pronghorn {

void warn_once(const std::string& text) {
  constexpr size_t kLongest = 2000, kKept = 1000;
  static std::mutex mutex;
  static std::set<std::string> said;
  const std::lock_guard lock(mutex);
  // Who makes that many different ones may hear some of them twice.
  if (said.size() >= kKept) said.clear();
  if (!said.insert(text).second) return;
  fmt::print(stderr, "warning: {}\n", printable(text, kLongest));
}

}  // namespace pronghorn
