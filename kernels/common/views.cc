#include "kernels/common/views.h"

#include "core/runtime/error.h"

namespace heddle::kernels {
namespace {

void require_dense_rows(const Tensor& tensor, const char* what) {
  check(tensor.rank() == 0 || tensor.stride(-1) == 1 || tensor.size(-1) <= 1,
        "{}: the last dimension of a tensor of shape {} and strides {} is not contiguous", what, tensor.shape(),
        tensor.strides());
}

}  // namespace

VectorView vector_view(const Tensor& tensor) {
  if (!tensor.defined()) return {};
  check(tensor.is_contiguous(), "a tensor of shape {} and strides {} is not contiguous", tensor.shape(),
        tensor.strides());
  return {tensor.raw(), tensor.dtype(), tensor.numel()};
}

RowsView rows_view(const Tensor& tensor) {
  if (!tensor.defined()) return {};
  require_dense_rows(tensor, "rows");
  const int64_t cols = tensor.rank() > 0 ? tensor.size(-1) : 1;
  const int64_t rows = cols > 0 ? tensor.numel() / cols : 0;
  if (rows == 0) return {tensor.raw(), tensor.dtype(), 0, cols, cols};
  const Tensor flat = tensor.reshape({rows, cols});
  return {tensor.raw(), tensor.dtype(), rows, cols, rows > 1 ? flat.stride(0) : cols};
}

HeadsView heads_view(const Tensor& tensor, Layout layout) {
  if (!tensor.defined()) return {};
  require_dense_rows(tensor, "heads");
  const auto& shape = tensor.shape();
  const auto& strides = tensor.strides();
  if (tensor.rank() == 3) {
    return {tensor.raw(), tensor.dtype(), shape[0], shape[1], 1, shape[2], strides[0], strides[1], shape[2]};
  }
  check(tensor.rank() == 4, "expected a tensor of rank 4 or 3, found shape {}", shape);
  const int length = layout == Layout::bnhd ? 1 : 2;
  const int heads = layout == Layout::bnhd ? 2 : 1;
  return {tensor.raw(), tensor.dtype(), shape[0],        shape[length], shape[heads],
          shape[3],     strides[0],     strides[length], strides[heads]};
}

}  // namespace heddle::kernels
