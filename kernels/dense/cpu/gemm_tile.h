// A matrix product on one thread, by a library: what the blocks of kernels/cpu/gemm.cc are made of.
#pragma once

#include "kernels/dense/gemm.h"

namespace heddle::kernels::cpu {

// op(x), where x is row-major with rows `stride` apart.
template <class T>
struct GemmOperand {
  const T* data = nullptr;
  int64_t stride = 0;
  Transpose transpose = Transpose::no;

  // The part of op(x) that starts at (row, col).
  GemmOperand at(int64_t row, int64_t col) const {
    const int64_t offset = transpose == Transpose::no ? row * stride + col : col * stride + row;
    return {data + offset, stride, transpose};
  }
};

// c (m, n) = op(a) (m, k) op(b) (k, n), rows of c `c_stride` apart. T is float or double; m, n > 0. float goes through
// oneDNN where heddle was built with it, all else through Eigen. The order of a sum depends on the sizes alone.
template <class T>
void multiply(int64_t m, int64_t n, int64_t k, const GemmOperand<T>& a, const GemmOperand<T>& b, T* c,
              int64_t c_stride);

extern template void multiply(int64_t, int64_t, int64_t, const GemmOperand<float>&, const GemmOperand<float>&, float*,
                              int64_t);
extern template void multiply(int64_t, int64_t, int64_t, const GemmOperand<double>&, const GemmOperand<double>&,
                              double*, int64_t);

}  // namespace heddle::kernels::cpu
