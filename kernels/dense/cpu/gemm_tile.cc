// The products of one block by Eigen or oneDNN, called so that the bits of a result depend on the extents alone.
#include "kernels/dense/cpu/gemm_tile.h"

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <new>
#include <type_traits>

#if defined(HEDDLE_ONEDNN)
#include <dnnl.h>

#include "kernels/dense/cpu/one_thread.h"
#endif

namespace heddle::kernels::cpu {
namespace {

// c += op(a) op(b) by Eigen's blocked kernel, which reads packed copies of a and b. It is called directly, because the
// expression a * b uses other kernels for small sizes and for vectors, whose sums depend on strides and addresses.
template <class T, int OrderA, int OrderB>
void add_blocked(Eigen::Index m, Eigen::Index n, Eigen::Index k, const GemmOperand<T>& a, const GemmOperand<T>& b, T* c,
                 Eigen::Index c_stride) {
  constexpr int dynamic = Eigen::Dynamic;
  Eigen::internal::gemm_blocking_space<Eigen::RowMajor, T, T, dynamic, dynamic, dynamic> blocking(m, n, k, 1, true);
  Eigen::internal::general_matrix_matrix_product<Eigen::Index, T, OrderA, false, T, OrderB, false, Eigen::RowMajor,
                                                 1>::run(m, n, k, a.data, a.stride, b.data, b.stride, c, 1, c_stride,
                                                         T{1}, blocking);
}

// c (n) += a (k) b (n, k)^T, where each element of c is a sum along one row of b. Nothing is packed: for a single row
// of c packing would cost many times as much as the product.
template <class T>
void add_row_times_transpose(Eigen::Index n, Eigen::Index k, const T* a, const GemmOperand<T>& b, T* c) {
  using Vector = Eigen::Matrix<T, Eigen::Dynamic, 1>;
  using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  Eigen::Map<const Matrix, Eigen::Unaligned, Eigen::OuterStride<>> weight(b.data, n, k, Eigen::OuterStride<>(b.stride));
  Eigen::Map<Vector>(c, n).noalias() += weight * Eigen::Map<const Vector>(a, k);
}

// c += op(a) op(b)
template <class T>
void add_product(int64_t m, int64_t n, int64_t k, const GemmOperand<T>& a, const GemmOperand<T>& b, T* c,
                 int64_t c_stride) {
  // The transpose of a row-major matrix is a column-major one.
  constexpr int plain = Eigen::RowMajor, transposed = Eigen::ColMajor;
  if (a.transpose == Transpose::no && b.transpose == Transpose::no) {
    add_blocked<T, plain, plain>(m, n, k, a, b, c, c_stride);
  } else if (a.transpose == Transpose::yes && b.transpose == Transpose::no) {
    add_blocked<T, transposed, plain>(m, n, k, a, b, c, c_stride);
  } else if (a.transpose == Transpose::yes) {
    add_blocked<T, transposed, transposed>(m, n, k, a, b, c, c_stride);
  } else if (m == 1) {
    add_row_times_transpose(n, k, a.data, b, c);
  } else {
    add_blocked<T, plain, transposed>(m, n, k, a, b, c, c_stride);
  }
}

#if defined(HEDDLE_ONEDNN)
// Computes c = op(a) op(b) and returns whether oneDNN has code for it. Throws std::bad_alloc where it lacks memory:
// Eigen in its place would give other last bits. It is only asked to overwrite c, because the order in which it adds to
// c depends on addresses.
bool multiply_by_onednn(int64_t m, int64_t n, int64_t k, const GemmOperand<float>& a, const GemmOperand<float>& b,
                        float* c, int64_t c_stride) {
  const OneThread one_thread;
  const auto letter = [](Transpose transpose) { return transpose == Transpose::no ? 'N' : 'T'; };
  const dnnl_status_t status = dnnl_sgemm(letter(a.transpose), letter(b.transpose), m, n, k, 1.0f, a.data, a.stride,
                                          b.data, b.stride, 0.0f, c, c_stride);
  if (status == dnnl_out_of_memory) throw std::bad_alloc();
  return status == dnnl_success;
}
#endif

}  // namespace

template <class T>
void multiply(int64_t m, int64_t n, int64_t k, const GemmOperand<T>& a, const GemmOperand<T>& b, T* c,
              int64_t c_stride) {
#if defined(HEDDLE_ONEDNN)
  if constexpr (std::is_same_v<T, float>) {
    if (k > 0 && multiply_by_onednn(m, n, k, a, b, c, c_stride)) return;
  }
#endif
  for (int64_t i = 0; i < m; ++i) std::fill_n(c + i * c_stride, n, T{0});
  if (k > 0) add_product(m, n, k, a, b, c, c_stride);
}

template void multiply(int64_t, int64_t, int64_t, const GemmOperand<float>&, const GemmOperand<float>&, float*,
                       int64_t);
template void multiply(int64_t, int64_t, int64_t, const GemmOperand<double>&, const GemmOperand<double>&, double*,
                       int64_t);

}  // namespace heddle::kernels::cpu
