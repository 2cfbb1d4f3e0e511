#include "layers/ops/distinct_destinations.h"

#include <algorithm>
#include <cstdint>

#include "layers/ops/gradient.h"

namespace heddle {
namespace {

using kernels::rows_view;

// Whether two matrices have an element in common. Columns side by side in rows of one stride, as the parts of a fused
// projection are, have none; matrices of different strides are taken to meet where the memory between their first and
// last elements does.
bool meet(const Tensor& first, const Tensor& second) {
  if (!first.shares_storage_with(second)) return false;
  const kernels::RowsView a = rows_view(first), b = rows_view(second);
  if (a.rows * a.cols == 0 || b.rows * b.cols == 0) return false;
  const auto size = static_cast<int64_t>(size_of(a.dtype));
  const int64_t distance = (static_cast<const char*>(b.data) - static_cast<const char*>(a.data)) / size;
  const auto extent = [](const kernels::RowsView& view) { return (view.rows - 1) * view.row_stride + view.cols; };
  if (distance >= extent(a) || -distance >= extent(b)) return false;
  if (a.row_stride != b.row_stride) return true;
  const int64_t stride = a.row_stride, column = (distance % stride + stride) % stride;
  return column < a.cols || column + b.cols > stride;
}

}  // namespace

GradientDestination DistinctDestinations::of(Slot slot) {
  const GradientDestination wanted = tape_.destination(slot);
  if (!wanted) return wanted;
  const bool is_taken =
      std::any_of(given_.begin(), given_.end(), [&](const Tensor& other) { return meet(other, wanted.tensor); });
  if (!is_taken) {
    given_.push_back(wanted.tensor);
    return wanted;
  }
  const MemoryScope scope(tape_.context(), MemoryCategory::workspace);
  postponed_.push_back({Tensor::empty(tape_.context(), wanted.tensor.shape(), wanted.tensor.dtype()), wanted});
  return {postponed_.back().workspace, GradientMode::overwrite};
}

void DistinctDestinations::finish() {
  for (const Postponed& postponed : postponed_) {
    kernels::accumulate(tape_.context(),
                        {rows_view(postponed.workspace), rows_destination(postponed.destination), 1.0});
  }
}

}  // namespace heddle
