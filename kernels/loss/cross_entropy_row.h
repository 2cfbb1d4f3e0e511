// The arithmetic of one row of cross entropy, for both devices. With z the logits and m = max(z), a row is known by m
// and by `rest`, the sum of exp(z - m) over all classes but one whose logit is m. The softmax then is
// exp(z - m) / (1 + rest), and neither a probability near 1 nor a logit far from 0 costs digits.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/common/types.h"

namespace heddle::kernels {

// exp(a - b) for a <= b; 0 for a = -infinity, NaN when both are infinite. The difference is taken as its rounded value
// and what the rounding left, because an error of the exponent is a relative error of the result. Source of the exact
// difference: D. E. Knuth, "The Art of Computer Programming", volume 2, section 4.2.2, theorem B.
template <class A, class Exponential>
HEDDLE_HOST_DEVICE_INLINE A exponential_of_difference(A a, A b, const Exponential& exponential) {
  const A difference = a - b;
  const A subtracted = a - difference;
  const A left = (a - (difference + subtracted)) + (subtracted - b);
  const A power = exponential(difference);
  return power + (power > A(0) ? power * left : A(0));  // where power is 0, `left` may be NaN
}

// What forward finds in a row: sums over all classes but the target. The maximum is -infinity where there is no other
// class or all others are masked.
template <class A>
struct OtherClasses {
  A maximum;  // of z
  A terms;    // sum of exp(z - maximum)
  A gaps;     // sum of half_gap(maximum, z) * (1 / number of all classes), for label smoothing
};

// Half of how far z lies below the maximum: the whole may be infinite where both are finite.
template <class A>
HEDDLE_HOST_DEVICE_INLINE A half_gap(A maximum, A z) {
  return A(0.5) * maximum - A(0.5) * z;
}

template <class A>
struct CrossEntropyRow {
  A maximum, rest, loss;
};

// logsumexp(z), from what forward knows of the row.
template <class A>
HEDDLE_HOST_DEVICE_INLINE A log_of_sum(A maximum, A rest) {
  return maximum + std::log1p(rest);
}

// `hit` is the logit of the target.
template <class A, class Exponential>
HEDDLE_HOST_DEVICE_INLINE CrossEntropyRow<A> finish_row(const OtherClasses<A>& others, A hit, int64_t classes,
                                                        A smoothing, A z_loss, const Exponential& exponential) {
  const bool is_ahead = !(others.maximum > hit);
  const A maximum = is_ahead ? hit : others.maximum;
  const A own = exponential_of_difference(hit, maximum, exponential);
  const A rest = is_ahead ? others.terms * exponential_of_difference(others.maximum, maximum, exponential)
                          : (others.terms - A(1)) + own;
  A loss = maximum - hit;
  if (smoothing != A(0)) {
    const A share = A(1) / static_cast<A>(classes);
    A gaps = A(0);  // of the other classes, from the maximum of all
    if (classes > 1) gaps = (A(1) - share) * half_gap(maximum, others.maximum) + others.gaps;
    const A of_target = (A(1) - smoothing) + smoothing * share;
    loss = A(2) * of_target * half_gap(maximum, hit) + A(2) * smoothing * gaps;
  }
  loss += std::log1p(rest);
  if (z_loss != A(0)) {
    const A log_sum = log_of_sum(maximum, rest);
    loss += z_loss * log_sum * log_sum;
  }
  return {maximum, rest, loss};
}

// The sum over all classes but the target of what the softmax is before its division by 1 + rest. `own` is the
// target's: exp(z[target] - maximum).
template <class A>
HEDDLE_HOST_DEVICE_INLINE A sum_of_others(A own, A rest) {
  return (A(1) - own) + rest;
}

// The distribution of a label with smoothing: every class has the share of_class = smoothing / classes, and the target
// has of_target = 1 - smoothing on top of it.
template <class A>
struct SmoothedLabel {
  A of_class, of_target;
  static SmoothedLabel of(double smoothing, int64_t classes) {
    return {static_cast<A>(smoothing / static_cast<double>(classes)), static_cast<A>(1.0 - smoothing)};
  }
};

// What backward takes the gradient of a row's logits from. `scale` is the gradient of the row's loss.
template <class A>
struct CrossEntropyRowGradient {
  A rest;
  A factor;             // of exp(z - maximum), for the probability times scale
  A share;              // the same with the derivative of z_loss, which is a multiple of the probability
  A pull;               // what z_loss adds to factor
  A spread;             // scale * of_class, which is taken from the gradient of every class
  bool is_mostly_even;  // of_target < 0.5
  A label;              // scale times the target's share of the label if is_mostly_even, else times that of all others

  HEDDLE_HOST_DEVICE_INLINE CrossEntropyRowGradient(A scale, const SmoothedLabel<A>& smoothed, int64_t classes,
                                                    A maximum, A rest_of_row, A z_loss)
      : rest(rest_of_row),
        spread(smoothed.of_class == A(0) ? A(0) : scale * smoothed.of_class),  // scale may be infinite
        is_mostly_even(smoothed.of_target < A(0.5)),
        label(is_mostly_even ? scale * smoothed.of_target + spread : static_cast<A>(classes - 1) * spread) {
    factor = scale / (A(1) + rest);
    // The derivative of z_loss by the logarithm of the sum.
    const A slope = z_loss == A(0) ? A(0) : A(2) * z_loss * log_of_sum(maximum, rest);
    share = factor * (A(1) + slope);
    pull = z_loss == A(0) ? A(0) : factor * slope;
  }

  // The gradient of a class whose exp(z - maximum) is `term`, and that of the target. With p its probability that is
  // p - label or, which is the same, (1 - label) - (1 - p). The first loses digits where both are near 1, the second
  // where both are near 0, so the label decides.
  HEDDLE_HOST_DEVICE_INLINE A of_other(A term) const { return term * share - spread; }
  HEDDLE_HOST_DEVICE_INLINE A of_target(A term) const {
    if (is_mostly_even) return term * share - label;
    return label - sum_of_others(term, rest) * factor + term * pull;
  }
};

}  // namespace heddle::kernels
