// What a call that must fail says.
#pragma once

#include <string>

#include "base/error.h"

namespace pronghorn::testing_support {

// The message of the Error that `action` throws, or "no error". Other exceptions pass.
template <typename Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace pronghorn::testing_support
