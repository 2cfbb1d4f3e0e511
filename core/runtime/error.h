// How heddle reports what went wrong: exceptions whose text says where, what was found and what was expected.
#pragma once

#if defined(__CUDACC__)  // nvcc cannot evaluate fmt's check of format strings; the host compiler does elsewhere
#define FMT_CONSTEVAL
#define FMT_USE_CONSTEXPR 1
#endif
#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "core/runtime/unsigned_nan.h"

namespace heddle {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A command that cannot be meant as it was given: the user has to give another one.
class UsageError : public Error {
 public:
  using Error::Error;
};

// Throws Error with a formatted message.
template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  const auto write = [&](const auto&... shown) { return fmt::vformat(format, fmt::make_format_args(shown...)); };
  throw Error(write(unsigned_nan(args)...));
}

// Throws Error with a formatted message unless `condition` holds. The message is made only on failure, but the
// arguments are evaluated always: those that cost something belong behind an `if` and fail().
template <class... Args>
void check(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) fail(format, std::forward<Args>(args)...);
}

}  // namespace heddle
