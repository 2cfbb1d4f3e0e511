// Products of a matrix and a vector, of which the sums over columns are a case: many terms and few results, which the
// kernels of libraries add up one after the other. Here the rounding error does not grow with the number of terms.
#pragma once

#include <cstdint>

#include "core/runtime/context.h"
#include "kernels/dense/cpu/gemm_tile.h"

namespace heddle::kernels::cpu {

// A vector of T whose elements are `stride` apart: 0 repeats one element.
template <class T>
struct StridedVector {
  T* data = nullptr;
  int64_t stride = 1;
  T* at(int64_t i) const { return data + i * stride; }
};

// to[i] (=|+=) bias[i] + the sum over p of matrix[i][p] * weights[p], i < size, p < terms.
template <class T, class To>
struct VectorProductArgs {
  int64_t size = 0, terms = 0;
  GemmOperand<T> matrix = {};           // op(x), (size, terms)
  StridedVector<const T> weights = {};  // without data: all 1
  StridedVector<const T> bias = {};     // may be without data
  StridedVector<To> to = {};            // T or its accumulate type
  GradientMode mode = GradientMode::overwrite;
};

// The order of summation depends on the extents alone.
template <class T, class To>
void vector_product(const Context& context, const VectorProductArgs<T, To>& args);

}  // namespace heddle::kernels::cpu
