// How a NaN is shown: as "nan", whatever its sign.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

namespace heddle {

// A NaN without its sign, and anything else as it is. printf and fmt write a NaN whose sign bit is set as "-nan", and
// whether an operation sets that bit depends on the compiler and the CPU. So every number that a message, a table or a
// file shows, and that can be a NaN, passes through here first; fail() and check() see to their arguments themselves.
template <class T>
decltype(auto) unsigned_nan(const T& value) {
  if constexpr (std::is_floating_point_v<T>) {
    return std::isnan(value) ? std::numeric_limits<T>::quiet_NaN() : T(value);
  } else {
    return (value);
  }
}

}  // namespace heddle
