// Warnings: what is odd but no reason to stop.
#pragma once

#include <string>

namespace pronghorn {

// One line on stderr, "where: what is odd". A text that was said before in this process is not said
// again. Thread-safe.
void warn_once(const std::string& text);

}  // namespace pronghorn
