#include "layers/ops/distinct_destinations.h"

#include <algorithm>
#include <cstdint>

#include "layers/ops/gradient.h"

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

// Whether two tensors may have an element in common. They have none where memory can be seen as rows, of a length that
// is a stride of one of them, in whose columns they lie side by side, as the parts of a fused projection do.
bool may_meet(const Tensor& first, const Tensor& second) {
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

// Whether the dimensions [begin, end) of a tensor can be seen as one, whose stride is `stride`; 0: any.
bool are_one(const Tensor& tensor, int begin, int end, int64_t stride) {
  int64_t expected = stride;  // of the next dimension outwards
  for (int dim = end - 1; dim >= begin; --dim) {
    if (tensor.size(dim) == 1) continue;
    if (expected != 0 && tensor.stride(dim) != expected) return false;
    expected = tensor.stride(dim) * tensor.size(dim);
  }
  return true;
}

// Adds `from` to `to`, in one kernel where both can be seen as the same matrix, else part by part.
void add(Context& context, const Tensor& from, const GradientDestination& to) {
  const int rank = from.rank();
  for (int inner = rank - 1; inner >= 0; --inner) {  // the first dimension that belongs to the columns
    const auto is_matrix = [&](const Tensor& tensor) {
      return are_one(tensor, 0, inner, 0) && are_one(tensor, inner, rank, 1);
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
    add(context, from.slice(cut, part, part + 1), {to.tensor.slice(cut, part, part + 1), to.mode});
  }
}

}  // namespace

GradientDestination DistinctDestinations::of(Slot slot) {
  const GradientDestination wanted = tape_.destination(slot);
  if (!wanted) return wanted;
  const bool is_taken =
      std::any_of(given_.begin(), given_.end(), [&](const Tensor& other) { return may_meet(other, wanted.tensor); });
  if (!is_taken) {
    given_.push_back(wanted.tensor);
    return wanted;
  }
  const MemoryScope scope(tape_.context(), MemoryCategory::workspace);
  postponed_.push_back({Tensor::empty(tape_.context(), wanted.tensor.shape(), wanted.tensor.dtype()), wanted});
  return {postponed_.back().workspace, GradientMode::overwrite};
}

void DistinctDestinations::finish() {
  for (const Postponed& postponed : postponed_) add(tape_.context(), postponed.workspace, postponed.destination);
}

}  // namespace heddle
