// The softmax of one row on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/math.h"

namespace heddle::kernels::cpu {

// The softmax of one row is exp(x - maximum) * factor.
template <class A>
struct RowSoftmax {
  A maximum = 0, factor = 1;

  A operator()(A x) const { return exponential(x - maximum) * factor; }
};
template <class T, class A = accumulate_t<T>>
inline RowSoftmax<A> row_softmax(const T* row, int64_t dim) {
  Buffer<A> buffer;
  RowSoftmax<A> result{-std::numeric_limits<A>::infinity(), 1};
  for_each_chunk(dim, [&](int64_t begin, int64_t count) {
    const A* x = load_chunk(row + begin, count, buffer);
    result.maximum = std::max(result.maximum, maximum_of<A>(count, [x](int64_t i) { return x[i]; }));
  });
  double sum = 0.0;
  for_each_chunk(dim, [&](int64_t begin, int64_t count) {
    const A* x = load_chunk(row + begin, count, buffer);
    sum += sum_of<A>(count, [x, most = result.maximum](int64_t i) { return exponential(x[i] - most); });
  });
  result.factor = A(1) / static_cast<A>(sum);
  return result;
}

}  // namespace heddle::kernels::cpu
