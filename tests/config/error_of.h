// The error that a function meets, as text.
#pragma once

#include <functional>
#include <string>

#include "core/runtime/error.h"

namespace heddle::testing {

// what() of the Error that `run` throws (a ConfigError is one), or "no error".
inline std::string error_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace heddle::testing
