// A matrix product on one thread, by Eigen: what the tiles of kernels/cpu/gemm.cc are made of.
#pragma once

#include "kernels/gemm.h"

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

// c (m, n) += op(a) (m, k) op(b) (k, n). T is float or double; m, n, k > 0.
template <class T>
void add_product(int64_t m, int64_t n, int64_t k, const GemmOperand<T>& a, const GemmOperand<T>& b, T* c,
                 int64_t c_stride);

extern template void add_product(int64_t, int64_t, int64_t, const GemmOperand<float>&, const GemmOperand<float>&,
                                 float*, int64_t);
extern template void add_product(int64_t, int64_t, int64_t, const GemmOperand<double>&, const GemmOperand<double>&,
                                 double*, int64_t);

}  // namespace heddle::kernels::cpu
