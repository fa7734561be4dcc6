// The one exception type of the engine: where it happened, what is wrong, and what to do about it.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <string_view>

namespace pronghorn {

// Every failure that a caller can meet. what() is one line: "where: problem (remedy)".
class Error : public std::runtime_error {
 public:
  // where: file, field, operator or option at fault. problem: what is wrong, with the value.
  // remedy: what the user can do; may be empty.
  Error(std::string_view where, std::string_view problem, std::string_view remedy = {});
};

// Wrong usage of the command line or of an API: exit code 2 of the commands.
class UsageError : public Error {
 public:
  using Error::Error;
};

// Throws Error(where, formatted problem) unless the condition holds. Always on.
template <typename... Args>
void require(bool condition, std::string_view where, fmt::format_string<Args...> problem,
             Args&&... args) {
  if (!condition) [[unlikely]] {
    throw Error(where, fmt::format(problem, std::forward<Args>(args)...));
  }
}

}  // namespace pronghorn
