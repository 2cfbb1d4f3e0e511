// Sums over many rows, column by column, in the order of the rows. Every few rows are added up in the type of
// arithmetic and passed on to a sum in double, so the error does not grow with the number of rows.
//
//   ColumnSums<float, 512> sums(count);
//   for (...) sums.add([&](int64_t i) { return weight * row[i]; });
//   store_chunk(to, sums.total(), count, mode);
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/math.h"

namespace heddle::kernels::cpu {

template <class A, int64_t kColumns>
class ColumnSums {
 public:
  // count <= kColumns
  explicit ColumnSums(int64_t count) : count_(count) { std::fill_n(part_.data(), count, A(0)); }

  // Adds value(0) .. value(count - 1) to the sums of the columns. `value` neither branches nor stores.
  template <class Value>
  void add(const Value& value) {
    A* part = part_;
    HEDDLE_INDEPENDENT
    for (int64_t i = 0; i < count_; ++i) part[i] += value(i);
    if (++rows_ == kRows) pass_on();
  }

  // The sums of all rows that were added. Nothing may be added afterwards.
  const A* total() {
    if (!is_long_) return part_;
    for (int64_t i = 0; i < count_; ++i) part_[i] = static_cast<A>(sums_[i] + static_cast<double>(part_[i]));
    return part_;
  }

 private:
  static constexpr int kRows = 8;

  void pass_on() {
    for (int64_t i = 0; i < count_; ++i) {
      sums_[i] = (is_long_ ? sums_[i] : 0.0) + static_cast<double>(part_[i]);
      part_[i] = A(0);
    }
    rows_ = 0;
    is_long_ = true;
  }

  const int64_t count_;
  int rows_ = 0;  // in part_
  bool is_long_ = false;
  Buffer<A, kColumns> part_;
  Buffer<double, kColumns> sums_;  // where is_long_
};

}  // namespace heddle::kernels::cpu
