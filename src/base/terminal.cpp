#include "base/terminal.h"

#include <unistd.h>

#include <cstdlib>
#include <string_view>

#include "base/ranks.h"

namespace pronghorn {

bool is_terminal(int descriptor) {
  return ::isatty(descriptor) != 0 && !launch_of_mpirun().by_mpirun;
}

bool terminal_obeys(int descriptor) {
  const char* const terminal = std::getenv("TERM");
  return is_terminal(descriptor) && terminal != nullptr && *terminal != '\0' &&
         std::string_view(terminal) != "dumb";
}

bool terminal_shows_styles(int descriptor) {
  const char* const no_color = std::getenv("NO_COLOR");
  return terminal_obeys(descriptor) && (no_color == nullptr || *no_color == '\0');
}

}  // namespace pronghorn
