// Sums of squares that stay within the range of double, for both devices.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "kernels/common/types.h"

namespace heddle::kernels {

// The sum of the squares of numbers times `factor`, which is a power of two and so changes none of their digits.
struct SumOfSquares {
  double sum, factor;
  HEDDLE_HOST_DEVICE_INLINE double root() const { return std::sqrt(sum) / factor; }  // of the numbers themselves
};

// Sums in which no square has lost digits, and that are finite.
inline constexpr double kLeastSum = 0x1p-900, kLargestSum = std::numeric_limits<double>::max();

// What sum_of_squares(factor) takes in double of numbers of A. There the squares of float neither overflow nor vanish,
// and the factor is 1; where those of double do, the sum is taken again, of the numbers times another factor.
template <class A, class TakeSum>
HEDDLE_HOST_DEVICE_INLINE SumOfSquares sum_within_range(const TakeSum& sum_of_squares) {
  SumOfSquares squares{sum_of_squares(1.0), 1.0};
  if constexpr (std::is_same_v<A, double>) {
    if (!(squares.sum > kLeastSum && squares.sum <= kLargestSum)) {
      squares.factor = squares.sum < 1.0 ? 0x1p600 : 0x1p-600;
      squares.sum = sum_of_squares(squares.factor);
    }
  }
  return squares;
}

}  // namespace heddle::kernels
