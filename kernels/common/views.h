// What a kernel sees of a tensor: an address, a dtype, and the extents and strides that it needs. Views own nothing and
// are trivially copyable, so that they are passed to a GPU as they are. Strides are in elements; the last dimension is
// always contiguous. A view without data is empty and stands for an optional argument that is not given.
#pragma once

#include <cstdint>

#include "core/runtime/host_device.h"
#include "core/tensor/gradient_mode.h"
#include "core/tensor/tensor.h"

namespace heddle::kernels {

// `size` contiguous elements.
struct VectorView {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t size = 0;
  HEDDLE_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
};

// A matrix (rows, cols) with row_stride elements from one row to the next.
struct RowsView {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t rows = 0, cols = 0;
  int64_t row_stride = 0;
  HEDDLE_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
};

// A tensor (batch, length, heads, dim) in any order in memory: the layouts bnhd and bhnd differ in their strides only.
struct HeadsView {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t batch = 0, length = 0, heads = 0, dim = 0;
  int64_t batch_stride = 0, length_stride = 0, head_stride = 0;
  HEDDLE_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
};

// Where a kernel puts a gradient, and whether it overwrites (=) what is there or adds to it (+=). An empty destination
// means that the gradient is not wanted.
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

// Each of the functions below returns a view of a tensor, or an empty view of an undefined tensor. It throws Error,
// which names the shape and the strides, when the tensor has no such view without a copy.

// All elements of a contiguous tensor.
VectorView vector_view(const Tensor& tensor);
// A matrix whose rows are all dimensions but the last.
RowsView rows_view(const Tensor& tensor);
// A tensor of rank 4 in the given layout, or of rank 3, (batch, length, dim), which has one head.
HeadsView heads_view(const Tensor& tensor, Layout layout = Layout::bnhd);

}  // namespace heddle::kernels
