#include "core/tensor/overlap.h"

#include <algorithm>
#include <cstdint>

namespace heddle {
namespace {

// Number of elements of memory from the first element of a tensor to its last, both included.
int64_t extent(const Tensor& tensor) {
  int64_t result = 1;
  for (int dim = 0; dim < tensor.rank(); ++dim) result += (tensor.size(dim) - 1) * tensor.stride(dim);
  return result;
}

// With memory seen as rows of `row` elements: number of columns from that of the first element to that of the last one,
// provided that the tensor does not reach beyond the end of a row.
int64_t columns(const Tensor& tensor, int64_t row) {
  int64_t result = 1;
  for (int dim = 0; dim < tensor.rank(); ++dim) {
    if (tensor.stride(dim) % row != 0) result += (tensor.size(dim) - 1) * tensor.stride(dim);
  }
  return result;
}

}  // namespace

bool may_overlap(const Tensor& first, const Tensor& second) {
  if (!first.shares_storage_with(second) || first.numel() == 0 || second.numel() == 0) return false;
  const auto* const begin = static_cast<const char*>(first.raw());
  const int64_t distance =
      (static_cast<const char*>(second.raw()) - begin) / static_cast<int64_t>(size_of(first.dtype()));
  if (distance >= extent(first) || -distance >= extent(second)) return false;
  const auto are_side_by_side = [&](int64_t row) {
    const int64_t column = (distance % row + row) % row;  // of the first element of `second`
    return columns(first, row) <= column && column + columns(second, row) <= row;
  };
  const Shape &a = first.strides(), &b = second.strides();
  return std::none_of(a.begin(), a.end(), are_side_by_side) && std::none_of(b.begin(), b.end(), are_side_by_side);
}

}  // namespace heddle
