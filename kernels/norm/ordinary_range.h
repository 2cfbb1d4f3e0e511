// Which groups of features the ordinary norm kernels compute. They work in the accumulate type, in which the square of
// a large number is infinite and that of a small one is 0. Groups that come near either are computed by wide_group.h,
// which costs time where such groups are, and one comparison a group elsewhere.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/common/types.h"
#include "kernels/norm/norm.h"

namespace heddle::kernels {

// Powers of two that bound the ordinary numbers of a type of arithmetic. double has 3 more bits of exponent than float.
template <class A>
struct NumberRange;
template <>
struct NumberRange<float> {
  static constexpr float kSmallest = 0x1p-126f;  // normal number
  static constexpr float kLargest = 0x1.fffffep127f;
  static constexpr float kTiny = 0x1p-100f;  // rounding among subnormal numbers is far below it
  // A sum of products that is 0 is trusted where 1 / s lies between 1 / kUsualInvStd and kUsualInvStd: features of that
  // size times a normal gradient do not underflow to 0.
  static constexpr float kUsualInvStd = 0x1p20f;
};
template <>
struct NumberRange<double> {
  static constexpr double kSmallest = 0x1p-1022;
  static constexpr double kLargest = 0x1.fffffffffffffp1023;
  static constexpr double kTiny = 0x1p-800;
  static constexpr double kUsualInvStd = 0x1p50;
};

// The values of mean(q^2) + eps with which forward is ordinary: no square was lost, and the factor scale / s is normal.
// `shift` = mean(d) is the rounding error of the mean, and mean(q^2) = mean(d^2) - shift^2. Where shift^2 exceeds 2^-8
// of the result, as in constant rows with a large mean, the difference has lost digits, and the group is not ordinary.
template <class A>
struct OrdinaryVariance {
  A least, most;

  explicit OrdinaryVariance(const NormOptions& options) : least(Range::kTiny), most(Range::kLargest) {
    const double scale = std::abs(options.scale);
    if (scale == 0.0) return;
    const double lowest = scale / double{Range::kLargest}, highest = scale / double{Range::kSmallest};
    least = static_cast<A>(std::max(double{least}, std::min(lowest * lowest, double{most})));
    most = static_cast<A>(std::min(double{most}, highest * highest));
  }
  HEDDLE_HOST_DEVICE bool holds(A variance, A shift = A(0)) const {
    return variance >= least && variance <= most && !(shift * shift > A(0x1p-8) * variance);
  }

 private:
  using Range = NumberRange<A>;
};

// Whether backward is ordinary in a group: `product` is the sum of g q over the group, g being the gradient of the
// normalized features, and d_p = g scale / s - (along q + rest).
template <class A>
HEDDLE_HOST_DEVICE_INLINE bool is_ordinary_gradient(A inv_std, A product, A along, A rest) {
  using Range = NumberRange<A>;
  const auto magnitude = [](A value) { return value < A(0) ? -value : value; };
  const A first = magnitude(product), second = magnitude(along);
  const bool is_finite = first + second + magnitude(rest) <= Range::kLargest;
  if (is_finite & (first >= Range::kTiny) & (second >= Range::kTiny)) return true;  // one branch, for almost all
  if (!is_finite) return false;
  // Exactly 0 is common: a row of zeros, or one whose gradient is 0.
  return product == A(0) && inv_std <= Range::kUsualInvStd && inv_std >= A(1) / Range::kUsualInvStd;
}

}  // namespace heddle::kernels
