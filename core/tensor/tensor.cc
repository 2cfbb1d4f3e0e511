#include "core/tensor/tensor.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "core/runtime/checked.h"
#include "core/runtime/context.h"
#include "core/runtime/error.h"
#include "core/runtime/storage.h"
#include "core/tensor/element_types.h"
#include "core/tensor/transfer.h"

namespace heddle {
namespace {

int wrap(int dim, const Shape& shape) {
  const int wrapped = dim < 0 ? dim + shape.rank() : dim;
  check(wrapped >= 0 && wrapped < shape.rank(), "no dimension {} in a tensor of shape {}", dim, shape);
  return wrapped;
}

// Fills in a -1 and checks that the number of elements stays.
Shape complete(const Shape& wanted, const Shape& from) {
  Shape result = wanted;
  int unknown = -1;
  for (int dim = 0; dim < wanted.rank(); ++dim) {
    check(wanted[dim] >= -1, "cannot reshape {} to {}: negative extent", from, wanted);
    if (wanted[dim] != -1) continue;
    check(unknown < 0, "cannot reshape {} to {}: only one extent may be -1", from, wanted);
    unknown = dim;
  }
  if (unknown >= 0) {
    result[unknown] = 1;
    const int64_t known = numel(result);
    check(known > 0, "cannot reshape {} to {}: any extent would do for -1 beside an extent of 0", from, wanted);
    result[unknown] = numel(from) / known;
  }
  check(numel(result) == numel(from), "cannot reshape {} to {}: the numbers of elements differ", from, wanted);
  return result;
}

// Strides that show the memory of `tensor` as `wanted`; false when there are none. Runs of dimensions that lie densely
// in memory are matched, innermost first, with runs of wanted extents of the same product.
bool strides_of_view(const Tensor& tensor, const Shape& wanted, Shape& result) {
  result = contiguous_strides(wanted);
  if (tensor.is_contiguous()) return true;
  int to = wanted.rank() - 1;
  int64_t run_stride = tensor.stride(-1);
  int64_t run = 1;
  for (int from = tensor.rank() - 1; from >= 0; --from) {
    run *= tensor.size(from);
    if (from > 0 && (tensor.size(from - 1) == 1 || tensor.stride(from - 1) == run * run_stride)) continue;
    int64_t matched = 1;
    for (; to >= 0 && (matched < run || wanted[to] == 1); --to) {
      result[to] = matched * run_stride;
      matched *= wanted[to];
    }
    if (matched != run) return false;
    if (from > 0) run_stride = tensor.stride(from - 1);
    run = 1;
  }
  return to < 0;
}

// Bytes of a dense tensor. Throws Error for negative extents and for sizes that no address could reach.
size_t dense_bytes(const Shape& shape, DType dtype) {
  // Strides count an extent of 0 as 1, so that their product must fit as well.
  Shape nowhere_zero = shape;
  for (int dim = 0; dim < shape.rank(); ++dim) {
    check(shape[dim] >= 0, "negative extent in shape {}", shape);
    nowhere_zero[dim] = std::max<int64_t>(shape[dim], 1);
  }
  const auto bytes = checked_product({numel(nowhere_zero), static_cast<int64_t>(size_of(dtype))});
  check(bytes.has_value(), "shape {} is too large: it has more bytes than an int64 counts", shape);
  return numel(shape) == 0 ? 0 : static_cast<size_t>(*bytes);
}

}  // namespace

Storage::Storage(Context& context, size_t bytes)
    : allocator_(context.shared_allocator()),
      block_(allocator_->allocate(bytes, context.stream(), context.label(), context.pool())) {}

Storage::~Storage() { allocator_->free(block_); }

void* Storage::data() const { return CachingAllocator::data(block_); }

Tensor Tensor::empty(Context& context, const Shape& shape, DType dtype) {
  const size_t bytes = dense_bytes(shape, dtype);
  Tensor tensor;
  tensor.dtype_ = dtype;
  tensor.shape_ = shape;
  tensor.strides_ = contiguous_strides(shape);
  tensor.storage_ = std::make_shared<Storage>(context, bytes);
  return tensor;
}

Tensor Tensor::empty_in_order(Context& context, const Shape& shape, const Shape& strides, DType dtype) {
  Tensor tensor = empty(context, shape, dtype);
  if (strides == tensor.strides_) return tensor;
  std::vector<int> dims(static_cast<size_t>(shape.rank()));
  std::iota(dims.begin(), dims.end(), 0);
  std::sort(dims.begin(), dims.end(),
            [&](int a, int b) { return std::pair(strides[a], -a) < std::pair(strides[b], -b); });
  int64_t stride = 1;
  for (const int dim : dims) {
    tensor.strides_[dim] = stride;
    stride *= std::max<int64_t>(shape[dim], 1);
  }
  return tensor;
}

Tensor Tensor::zeros(Context& context, const Shape& shape, DType dtype) {
  Tensor tensor = empty(context, shape, dtype);
  fill_zero(context, tensor);
  return tensor;
}

Device Tensor::device() const {
  check(defined(), "device of an undefined tensor");
  return storage_->device();
}

bool Tensor::is_contiguous() const {
  if (numel() == 0) return true;
  int64_t stride = 1;
  for (int dim = rank() - 1; dim >= 0; --dim) {
    if (size(dim) != 1 && strides_[dim] != stride) return false;
    stride *= size(dim);
  }
  return true;
}

void* Tensor::raw() const {
  check(defined(), "data of an undefined tensor");
  return static_cast<char*>(storage_->data()) + offset_ * static_cast<int64_t>(size_of(dtype_));
}

template <class T>
T* Tensor::data() const {
  check(dtype_of<T>::value == dtype_, "data of a {} tensor asked for as {}", name(dtype_), name(dtype_of<T>::value));
  return static_cast<T*>(raw());
}

template double* Tensor::data<double>() const;
template float* Tensor::data<float>() const;
template bfloat16* Tensor::data<bfloat16>() const;
template float16* Tensor::data<float16>() const;
template int32_t* Tensor::data<int32_t>() const;
template int64_t* Tensor::data<int64_t>() const;

Tensor Tensor::slice(int dim, int64_t begin, int64_t end) const {
  dim = wrap(dim, shape_);
  check(0 <= begin && begin <= end && end <= shape_[dim], "slice [{}, {}) of dimension {} of a tensor of shape {}",
        begin, end, dim, shape_);
  Tensor view = *this;
  view.shape_[dim] = end - begin;
  view.offset_ += begin * strides_[dim];
  return view;
}

Tensor Tensor::select(int dim, int64_t index) const {
  dim = wrap(dim, shape_);
  Tensor view = slice(dim, index, index + 1);
  view.shape_ = shape_.part(0, dim);
  view.strides_ = strides_.part(0, dim);
  for (int later = dim + 1; later < rank(); ++later) {
    view.shape_.append(shape_[later]);
    view.strides_.append(strides_[later]);
  }
  return view;
}

Tensor Tensor::transpose(int dim_a, int dim_b) const {
  dim_a = wrap(dim_a, shape_);
  dim_b = wrap(dim_b, shape_);
  Tensor view = *this;
  std::swap(view.shape_[dim_a], view.shape_[dim_b]);
  std::swap(view.strides_[dim_a], view.strides_[dim_b]);
  return view;
}

Tensor Tensor::reshape(const Shape& shape) const {
  Tensor view = *this;
  view.shape_ = complete(shape, shape_);
  check(strides_of_view(*this, view.shape_, view.strides_), "cannot view {} with strides {} as {} without a copy",
        shape_, strides_, view.shape_);
  return view;
}

std::vector<Tensor> Tensor::split(int dim, const std::vector<int64_t>& sizes) const {
  dim = wrap(dim, shape_);
  std::vector<Tensor> parts;
  int64_t begin = 0;
  for (int64_t size : sizes) {
    parts.push_back(slice(dim, begin, begin + size));
    begin += size;
  }
  check(begin == shape_[dim], "split of dimension {} of a tensor of shape {}: the parts add up to {}", dim, shape_,
        begin);
  return parts;
}

bool Tensor::is_unique() const { return storage_.use_count() == 1; }

}  // namespace heddle
