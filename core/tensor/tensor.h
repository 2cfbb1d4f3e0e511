// A strided handle on storage that one allocator owns. Copying a Tensor shares its storage; views share it too.
// Not thread-safe as an object; the storage's reference count is.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/runtime/device.h"
#include "core/tensor/dtype.h"
#include "core/tensor/shape.h"

namespace heddle {

class Context;
class Storage;

class Tensor {
 public:
  Tensor() = default;  // undefined: no storage

  // Uninitialized memory from the context's allocator, counted for the context's scope and category.
  static Tensor empty(Context& context, const Shape& shape, DType dtype);
  // The same, with the dimensions in memory in the order of `strides`, the largest outermost, and no gaps.
  static Tensor empty_in_order(Context& context, const Shape& shape, const Shape& strides, DType dtype);
  static Tensor zeros(Context& context, const Shape& shape, DType dtype);

  bool defined() const { return storage_ != nullptr; }
  explicit operator bool() const { return defined(); }

  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  const Shape& strides() const { return strides_; }  // in elements
  int rank() const { return shape_.rank(); }
  int64_t size(int dim) const { return shape_[dim]; }
  int64_t stride(int dim) const { return strides_[dim]; }
  int64_t numel() const { return heddle::numel(shape_); }
  Device device() const;
  bool is_contiguous() const;

  // Address of the first element; on meta an address that must not be read.
  void* raw() const;
  // raw() as T*, for T of element_types.h. Throws Error when T is not the tensor's dtype.
  template <class T>
  T* data() const;

  // Views. Each throws Error naming the shape when the view does not exist.
  Tensor slice(int dim, int64_t begin, int64_t end) const;
  Tensor select(int dim, int64_t index) const;  // slice of one, dimension dropped
  Tensor transpose(int dim_a, int dim_b) const;
  // One extent may be -1: it is what the others leave. Never copies.
  Tensor reshape(const Shape& shape) const;
  std::vector<Tensor> split(int dim, const std::vector<int64_t>& sizes) const;

  // Whether this handle is the only one on its storage, so that the memory may be written over.
  bool is_unique() const;
  bool shares_storage_with(const Tensor& other) const { return storage_ == other.storage_; }

 private:
  std::shared_ptr<Storage> storage_;
  DType dtype_ = DType::float32;
  Shape shape_;
  Shape strides_;
  int64_t offset_ = 0;  // in elements
};

}  // namespace heddle
