// The error that a function meets, as text.
#pragma once

#include <string>

#include "core/runtime/error.h"

namespace heddle::testing {

// what() of the E that `run` throws, or "no error".
template <class E = Error, class Run>
std::string error_of(const Run& run) {
  try {
    run();
  } catch (const E& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace heddle::testing
