// The median of measured times.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace heddle {

// The larger one of the two in the middle when their number is even. At least one value.
inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace heddle
