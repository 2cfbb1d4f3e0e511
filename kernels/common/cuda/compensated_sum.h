// A sum that carries what rounding took from it, so that its error does not grow with the number of terms.
// Source: T. Ogita, S. M. Rump, S. Oishi, "Accurate Sum and Dot Product", SIAM J. Sci. Comput. 26 (2005), Sum2.
#pragma once

#include "kernels/common/cuda/vec.h"

namespace heddle::kernels::cuda {

template <class A>
struct CompensatedSum {
  A sum = A(0), rest = A(0);

  __device__ __forceinline__ void add(A term) {
    const A total = sum + term;
    const A added = total - sum;
    rest += (sum - (total - added)) + (term - added);
    sum = total;
  }
  // An infinity makes the rest NaN.
  __device__ __forceinline__ A value() const { return rest == rest ? sum + rest : sum; }
};

// One for each element of a vector.
template <class A, int width>
struct VecSum {
  CompensatedSum<A> elements[width];

  __device__ __forceinline__ void add(const Vec<A, width>& terms) {
#pragma unroll
    for (int e = 0; e < width; ++e) elements[e].add(terms[e]);
  }
  __device__ __forceinline__ Vec<A, width> value() const {
    Vec<A, width> result;
#pragma unroll
    for (int e = 0; e < width; ++e) result[e] = elements[e].value();
    return result;
  }
};

}  // namespace heddle::kernels::cuda
