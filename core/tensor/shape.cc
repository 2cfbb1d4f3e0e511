#include "core/tensor/shape.h"

#include <algorithm>
#include <optional>

#include "core/runtime/checked.h"
#include "core/runtime/error.h"

namespace heddle {

Shape::Shape(std::initializer_list<int64_t> extents) : Shape(std::span(extents.begin(), extents.size())) {}

Shape::Shape(std::span<const int64_t> extents) {
  for (int64_t extent : extents) append(extent);
}

void Shape::append(int64_t extent) {
  check(rank_ < kMaxRank, "a tensor has at most {} dimensions", kMaxRank);
  extents_[rank_++] = extent;
}

Shape Shape::part(int first, int last) const {
  check(0 <= first && first <= last && last <= rank_, "the dimensions [{}, {}) of a shape of rank {}", first, last,
        rank_);
  return Shape(std::span(begin() + first, begin() + last));
}

bool Shape::operator==(const Shape& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }

int Shape::index(int dim) const {
  const int wrapped = dim < 0 ? dim + rank_ : dim;
  check(wrapped >= 0 && wrapped < rank_, "dimension {} of a tensor of rank {}", dim, rank_);
  return wrapped;
}

int64_t numel(const Shape& shape) {
  const std::optional<int64_t> product = checked_product(std::span(shape.begin(), shape.end()));
  check(product.has_value(), "shape {} is too large: it has more elements than an int64 counts", shape);
  return *product;
}

Shape contiguous_strides(const Shape& shape) {
  Shape strides = shape;
  int64_t stride = 1;
  for (int dim = shape.rank() - 1; dim >= 0; --dim) {
    strides[dim] = stride;
    stride *= std::max<int64_t>(shape[dim], 1);
  }
  return strides;
}

std::string to_string(const Shape& shape) { return fmt::format("({})", fmt::join(shape.begin(), shape.end(), ", ")); }

}  // namespace heddle
