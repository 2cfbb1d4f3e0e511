// What a kernel sees of a tensor: an address, a dtype and the extents and strides it needs. Trivially copyable, so that
// arguments travel to a GPU as they are. Strides are in elements; the last dimension is always contiguous.
#pragma once

#include <cstdint>

#include "core/runtime/host_device.h"
#include "core/tensor/gradient_mode.h"
#include "core/tensor/tensor.h"

namespace heddle::kernels {

// Empty views (no data) stand for optional arguments that are not there.
struct VectorView {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t size = 0;
  HEDDLE_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
};

// (rows, cols), rows row_stride apart.
struct RowsView {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t rows = 0, cols = 0;
  int64_t row_stride = 0;
  HEDDLE_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
};

// (batch, length, heads, dim) in whatever order it lies in memory: layout bnhd and bhnd differ in strides only.
struct HeadsView {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t batch = 0, length = 0, heads = 0, dim = 0;
  int64_t batch_stride = 0, length_stride = 0, head_stride = 0;
  HEDDLE_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
};

// Where a gradient goes, and whether it is written over what is there or added to it. Empty: not wanted.
template <class View>
struct Destination {
  View view;
  GradientMode mode = GradientMode::overwrite;
  HEDDLE_HOST_DEVICE explicit operator bool() const { return static_cast<bool>(view); }
};
using VectorDestination = Destination<VectorView>;
using RowsDestination = Destination<RowsView>;
using HeadsDestination = Destination<HeadsView>;

enum class Layout { bnhd, bhnd };

// The views below are of defined tensors; an undefined tensor gives an empty view. Each throws Error when the tensor
// cannot be seen that way without a copy, naming its shape and strides.

// All elements in one row of memory.
VectorView vector_view(const Tensor& tensor);
// All dimensions but the last are rows.
RowsView rows_view(const Tensor& tensor);
// Rank 4 in the given layout, or rank 3 (batch, length, dim) with one head.
HeadsView heads_view(const Tensor& tensor, Layout layout = Layout::bnhd);

}  // namespace heddle::kernels
