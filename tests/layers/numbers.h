// Numbers that several tests of layers are made of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/tensor/dtype.h"
#include "core/tensor/random.h"

namespace heddle::test {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

// How far a number is moved at most when it is rounded to a dtype: half a unit in the last place, relative.
inline double roundoff(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return 0x1p-53;
    case DType::float32:
      return 0x1p-24;
    case DType::bfloat16:
      return 0x1p-8;
    case DType::float16:
      return 0x1p-11;
    default:
      return 0.0;
  }
}

// Multiples of 1/64 between -2 and 2, which every dtype holds.
inline std::vector<double> random_numbers(int64_t count, uint64_t seed) {
  Random random(seed, RandomStream::test);
  std::vector<double> numbers(static_cast<size_t>(count));
  for (double& number : numbers) number = (static_cast<double>(random.next_below(255)) - 127.0) / 64.0;
  return numbers;
}

}  // namespace heddle::test
