// A matrix product on one thread, computed by a library. gemm.cc divides larger products into these.
#pragma once

#include <cstdint>

#include "kernels/dense/gemm.h"

namespace heddle::kernels::cpu {

// op(x), where x is row-major and its rows are `stride` elements apart.
template <class T>
struct GemmOperand {
  const T* data = nullptr;
  int64_t stride = 0;
  Transpose transpose = Transpose::no;

  // The part of op(x) from (row, col) on.
  GemmOperand at(int64_t row, int64_t col) const {
    const int64_t offset = transpose == Transpose::no ? row * stride + col : col * stride + row;
    return {data + offset, stride, transpose};
  }
};

// Writes c (m, n) = op(a) (m, k) op(b) (k, n), where the rows of c are `c_stride` elements apart. T is float or double;
// m, n > 0. oneDNN computes float where heddle was built with it, Eigen everything else. The order of summation depends
// on the extents alone.
template <class T>
void multiply(int64_t m, int64_t n, int64_t k, const GemmOperand<T>& a, const GemmOperand<T>& b, T* c,
              int64_t c_stride);

extern template void multiply(int64_t, int64_t, int64_t, const GemmOperand<float>&, const GemmOperand<float>&, float*,
                              int64_t);
extern template void multiply(int64_t, int64_t, int64_t, const GemmOperand<double>&, const GemmOperand<double>&,
                              double*, int64_t);

}  // namespace heddle::kernels::cpu
