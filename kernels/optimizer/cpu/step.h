// What the optimizer's kernels on the CPU have in common: the scalars of a step, and what becomes of a new master.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/math.h"
#include "kernels/optimizer/moving_average.h"
#include "kernels/optimizer/optimizer.h"
#include "kernels/optimizer/sum_of_squares.h"

namespace heddle::kernels::cpu {

// Elements of one task, of which one partial norm is made; gradient_norm_partials() counts with the same.
inline constexpr int64_t kTaskSize = 16384;

// The norm of value(0) .. value(count - 1).
template <class A, class Value>
A norm_of(int64_t count, const Value& value) {
  const SumOfSquares squares = sum_within_range<A>([&](double factor) {
    return sum_of<double>(count, [&](int64_t i) {
      const auto number = static_cast<double>(value(i)) * factor;
      return number * number;
    });
  });
  return static_cast<A>(squares.root());
}

// The norm of a vector of `size` numbers, of which `partials` holds the norms of the tasks.
template <class A>
double norm_of_partials(const VectorView& partials, int64_t size) {
  const SumOfSquares squares = sum_within_range<A>([&](double factor) {
    double sum = 0.0;
    for (int64_t i = 0; i < gradient_norm_partials(size); ++i) {
      const auto norm = static_cast<double>(vector<const A>(partials)[i]) * factor;
      sum += norm * norm;
    }
    return sum;
  });
  return squares.root();
}

// Whether the step is to be taken at all.
template <class A>
bool is_finite_step(const VectorView& scalars) {
  const A* scalar = vector<const A>(scalars);
  return std::isfinite(scalar[scalar_gradient_norm] * scalar[scalar_gradient_scale]);
}

// What the gradient is multiplied by: gradient_scale, and less where the norm is clipped.
template <class A>
A clipped_scale(const VectorView& scalars) {
  const A* scalar = vector<const A>(scalars);
  A scale = scalar[scalar_gradient_scale];
  const A clip_norm = scalar[scalar_clip_norm];
  const A norm = scalar[scalar_gradient_norm] * scale;
  if (clip_norm > A(0) && norm > clip_norm) scale *= clip_norm / norm;
  return scale;
}

// The average of the weights.
template <class A>
MovingAverage<A> average_of_weights(const VectorView& scalars) {
  const A* scalar = vector<const A>(scalars);
  return {scalar[scalar_average_decay], scalar[scalar_average_rest]};
}

// Writes `count` <= kChunk new masters from element `at` on into the compute copy and into the average, if there are
// any.
template <class A>
void store_master(const VectorView& value, const VectorView& average, const MovingAverage<A>& averaged, int64_t at,
                  int64_t count, const A* __restrict master) {
  if (average) {
    A* __restrict to = vector<A>(average) + at;
    for (int64_t i = 0; i < count; ++i) to[i] = averaged.next(to[i], master[i]);
  }
  if (!value) return;
  visit_floating(value.dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (std::is_same_v<accumulate_t<T>, A>) {
      store_chunk(vector<T>(value) + at, master, count, GradientMode::overwrite);
    }
  });
}

}  // namespace heddle::kernels::cpu
