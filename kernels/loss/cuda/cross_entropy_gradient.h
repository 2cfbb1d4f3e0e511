// The gradient of consecutive logits of a row, for both passes of the cross entropy.
#pragma once

#include <cstdint>

#include "kernels/common/cuda/activation.h"
#include "kernels/common/cuda/vec.h"
#include "kernels/loss/cross_entropy_row.h"

namespace heddle::kernels::cuda {

template <class T>
struct Exponential {
  __device__ __forceinline__ accumulate_t<T> operator()(accumulate_t<T> x) const { return exponential<T>(x); }
};

// exp(z - maximum). In 16 bits an error of the exponent of 2^-18 at most is not seen.
template <class T>
__device__ __forceinline__ accumulate_t<T> term(accumulate_t<T> z, accumulate_t<T> maximum) {
  if constexpr (sizeof(T) == 2) {
    return exponential<T>(z - maximum);
  } else {
    return exponential_of_difference(z, maximum, Exponential<T>{});
  }
}

// Calls visit(e) for the target among `width` logits of a row, if it is one of them; `place` is how far it is from the
// first of them. Few threads of a row take this branch, so that a logit costs nothing for it.
template <int width, class Visit>
__device__ __forceinline__ void visit_target(int64_t place, const Visit& visit) {
  if (place < 0 || place >= width) return;
  stay_branch();
#pragma unroll
  for (int e = 0; e < width; ++e) {
    if (e == place) visit(e);
  }
}

// The gradient of `width` logits of a row. `place` as in visit_target().
template <class T, int width>
__device__ __forceinline__ Vec<accumulate_t<T>, width> gradient_of(
    const CrossEntropyRowGradient<accumulate_t<T>>& of_row, const Vec<accumulate_t<T>, width>& values,
    accumulate_t<T> maximum, int64_t place) {
  Vec<accumulate_t<T>, width> terms, gradient;
#pragma unroll
  for (int e = 0; e < width; ++e) {
    terms[e] = term<T>(values[e], maximum);
    gradient[e] = of_row.of_other(terms[e]);
  }
  visit_target<width>(place, [&](int e) { gradient[e] = of_row.of_target(terms[e]); });
  return gradient;
}

}  // namespace heddle::kernels::cuda
