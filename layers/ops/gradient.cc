#include "layers/ops/gradient.h"

#include <cstdint>

#include "core/tensor/shape.h"

namespace heddle {

bool are_one(const Tensor& tensor, int begin, int end, int64_t stride) {
  int64_t expected = stride;  // of the next dimension outwards
  for (int dim = end - 1; dim >= begin; --dim) {
    if (tensor.size(dim) == 1) continue;
    if (expected != 0 && tensor.stride(dim) != expected) return false;
    expected = tensor.stride(dim) * tensor.size(dim);
  }
  return true;
}

void add_gradient(Context& context, const Tensor& from, const GradientDestination& to) {
  if (from.numel() == 0) return;
  const int rank = from.rank();
  if (rank == 0) return add_gradient(context, from.reshape({1}), {to.tensor.reshape({1}), to.mode});
  for (int dim = 0; dim + 1 < rank; ++dim) {  // gradients of a transposed leaf lie in memory as it does
    if (to.tensor.stride(dim) > 1 || to.tensor.size(dim) == 1 || to.tensor.size(rank - 1) == 1) continue;
    return add_gradient(context, from.transpose(dim, rank - 1), {to.tensor.transpose(dim, rank - 1), to.mode});
  }
  for (int inner = rank - 1; inner >= 0; --inner) {  // the first dimension that belongs to the columns
    const auto is_matrix = [&](const Tensor& tensor) {
      return are_one(tensor, 0, inner) && are_one(tensor, inner, rank, 1);
    };
    if (!is_matrix(from) || !is_matrix(to.tensor)) continue;
    const int64_t rows = numel(from.shape().part(0, inner));
    const Shape matrix{rows, from.numel() / rows};
    const GradientDestination target{to.tensor.reshape(matrix), to.mode};
    kernels::accumulate(context, {kernels::rows_view(from.reshape(matrix)), rows_destination(target), 1.0});
    return;
  }
  int cut = 0;  // the shortest dimension of several parts
  for (int dim = 1; dim < rank - 1; ++dim) {
    if (from.size(dim) > 1 && (from.size(cut) == 1 || from.size(dim) < from.size(cut))) cut = dim;
  }
  for (int64_t part = 0; part < from.size(cut); ++part) {
    add_gradient(context, from.slice(cut, part, part + 1), {to.tensor.slice(cut, part, part + 1), to.mode});
  }
}

}  // namespace heddle
