#include "base/error.h"

namespace pronghorn {

Error::Error(std::string_view where, std::string_view problem, std::string_view remedy)
    : std::runtime_error(remedy.empty() ? fmt::format("{}: {}", where, problem)
                                        : fmt::format("{}: {} ({})", where, problem, remedy)) {}

}  // namespace pronghorn
