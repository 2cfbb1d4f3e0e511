#include "layers/ops/distinct_destinations.h"

#include <algorithm>
#include <cstdint>

#include "layers/ops/gradient.h"

namespace heddle {
namespace {

using kernels::rows_view;

// The rows that hold the elements of a tensor: its own, or for heads (batch, length, heads, dim) one for each token,
// from its first head to its last.
kernels::RowsView holding_rows(const Tensor& tensor) {
  if (tensor.rank() != 4) return rows_view(tensor);
  const kernels::HeadsView heads = kernels::heads_view(tensor);
  const int64_t width = heads.heads == 0 ? 0 : (heads.heads - 1) * heads.head_stride + heads.dim;
  if (heads.batch > 1 && heads.batch_stride != heads.length * heads.length_stride) {
    return {heads.data, heads.dtype, 1, (heads.batch - 1) * heads.batch_stride + heads.length * heads.length_stride, 0};
  }
  return {heads.data, heads.dtype, heads.batch * heads.length, width, heads.length_stride};
}

// Whether two tensors have an element in common. Columns side by side in rows of one stride, as the parts of a fused
// projection are, have none; tensors of different strides are taken to meet where the memory between their first and
// last elements does.
bool meet(const Tensor& first, const Tensor& second) {
  if (!first.shares_storage_with(second)) return false;
  const kernels::RowsView a = holding_rows(first), b = holding_rows(second);
  if (a.rows * a.cols == 0 || b.rows * b.cols == 0) return false;
  const auto size = static_cast<int64_t>(size_of(a.dtype));
  const int64_t distance = (static_cast<const char*>(b.data) - static_cast<const char*>(a.data)) / size;
  const auto extent = [](const kernels::RowsView& view) { return (view.rows - 1) * view.row_stride + view.cols; };
  if (distance >= extent(a) || -distance >= extent(b)) return false;
  if (a.row_stride != b.row_stride || a.row_stride == 0) return true;
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
    const Tensor &workspace = postponed.workspace, &whole = postponed.destination.tensor;
    const auto add = [&](const Tensor& from, const Tensor& to) {
      kernels::accumulate(tape_.context(), {rows_view(from), rows_destination({to, postponed.destination.mode}), 1.0});
    };
    if (workspace.rank() != 4) {
      add(workspace, whole);
      continue;
    }
    for (int64_t head = 0; head < workspace.size(2); ++head) {
      add(workspace.slice(2, head, head + 1), whole.slice(2, head, head + 1));
    }
  }
}

}  // namespace heddle
