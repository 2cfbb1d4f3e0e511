// Extents of a tensor, outermost first, held inline: no allocation per shape.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "core/runtime/error.h"

namespace heddle {

inline constexpr int kMaxRank = 8;

// A short list of int64 values: the type of shapes and of strides (both counted in elements).
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> extents);
  explicit Shape(std::span<const int64_t> extents);

  int rank() const { return rank_; }
  // `dim` may be negative: -1 is the last. No range check beyond an Error for a dim that does not exist.
  int64_t operator[](int dim) const { return extents_[index(dim)]; }
  int64_t& operator[](int dim) { return extents_[index(dim)]; }

  const int64_t* begin() const { return extents_.data(); }
  const int64_t* end() const { return extents_.data() + rank_; }

  void append(int64_t extent);
  // The extents [first, last) as a shape of their own. Throws Error when there are no such dimensions.
  Shape part(int first, int last) const;
  bool operator==(const Shape& other) const;

 private:
  int index(int dim) const;

  std::array<int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

// Product of the extents; 1 for rank 0. Throws Error when an int64 cannot hold it.
int64_t numel(const Shape& shape);

// Row-major strides of a dense tensor of this shape.
Shape contiguous_strides(const Shape& shape);

// "(4, 128, 768)".
std::string to_string(const Shape& shape);

}  // namespace heddle

// A shape as an argument of a message, check() among them, which makes no text of it unless the check fails.
template <>
struct fmt::formatter<heddle::Shape> : private fmt::formatter<std::string> {  // privately: in a list it has no quotes
  using fmt::formatter<std::string>::parse;
  template <class Context>
  auto format(const heddle::Shape& shape, Context& context) const {
    return fmt::formatter<std::string>::format(heddle::to_string(shape), context);
  }
};
