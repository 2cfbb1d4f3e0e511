// The loop of CPU kernels that work on groups of consecutive features.
#pragma once

#include <cstdint>

#include "kernels/common/cpu/parallel.h"
#include "kernels/common/views.h"

namespace heddle::kernels::cpu {

// Calls visit(row, group, first) for each of `groups` groups of each row of the shape, on several threads. The features
// of the group are [first, first + cols / groups).
template <class Visit>
void parallel_groups(const Context& context, const RowsView& shape, int64_t groups, const Visit& visit) {
  constexpr int64_t kElementsOfATask = 8192;
  const int64_t size = shape.cols / groups;
  parallel_ranges(context, shape.rows, 1 + kElementsOfATask / (shape.cols + 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t group = 0; group < groups; ++group) visit(row, group, group * size);
    }
  });
}

}  // namespace heddle::kernels::cpu
