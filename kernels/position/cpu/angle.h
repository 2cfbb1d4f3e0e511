// cos and sin of the angles of position encodings, position * theta, right at every position.
// In float, an angle is counted in units of 2^-64 of a revolution (2 pi). The product of theta / 2 pi in these units
// and the position then wraps exactly, as unsigned integers do. Its upper 32 bits are the phase: two bits are the
// quadrant, the rest is the argument of polynomials on [-pi/4, pi/4]. cos and sin are within 1e-6 of those of the exact
// product for every position below 2^20 and every theta. There are neither branches nor calls, so compilers vectorise
// it.
//
// In double, which serves gradient tests, the product is the sum of its rounded value and what that leaves.
//
// Source of the polynomials: S. L. Moshier, Cephes Mathematical Library, single/sinf.c.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/common/cpu/types.h"
#include "kernels/position/revolutions.h"

namespace heddle::kernels::cpu {

// Number of angles that are computed at once, at most.
inline constexpr int64_t kAngles = 1024;

// An integer next to x, as a double, without a call. Below 2^51 the sum has no bits for a fraction, so this rounds.
// Above 2^53 x is an integer itself and the result is another one near it, which serves as well to drop whole
// revolutions.
inline double near_integer(double x) {
  constexpr double kShift = 0x1.8p52;
  return (x + kShift) - kShift;
}

// theta / 2 pi modulo 1 in units of 2^-64, right to 2^-51 where |theta| < kFarTheta. The parts of 1 / 2 pi have 29
// bits, so that their products with a float are exact.
inline uint64_t revolutions(float theta) {
  constexpr double kFirst = 0x1.45f306dp-3, kSecond = 0x1.9391054p-32, kThird = 0x1.4fe13abe8fa9ap-61;
  constexpr double kInteger = 0x1.8p52;  // adding it leaves an integer in the low bits
  const double wide = theta;
  const double first = wide * kFirst, second = wide * kSecond;
  const double fraction = (first - near_integer(first)) + (second - near_integer(second)) + wide * kThird;
  return std::bit_cast<uint64_t>(fraction * 0x1p50 + kInteger) << 14;
}

// What is computed once from theta for many positions: theta in revolutions for float, theta itself for double. Writes
// (=) `count` of them.
inline void prepare_angles(const float* theta, int64_t count, uint64_t* prepared) {
  bool has_far = false;
  for (int64_t i = 0; i < count; ++i) {
    prepared[i] = revolutions(theta[i]);
    has_far |= std::abs(theta[i]) >= kFarTheta;
  }
  if (!has_far) return;
  for (int64_t i = 0; i < count; ++i) {
    if (std::abs(theta[i]) >= kFarTheta) prepared[i] = far_revolutions(std::bit_cast<uint32_t>(theta[i]));
  }
}
inline void prepare_angles(const double* theta, int64_t count, double* prepared) {
  std::copy_n(theta, count, prepared);
}
template <class A>
using prepared_angle_t = std::conditional_t<std::is_same_v<A, float>, uint64_t, double>;

// Writes (=) cos and sin of position * theta[i] for i < count <= kAngles; prepared[i] is prepare_angle(theta[i]).
inline void cos_and_sin(const float* theta, const uint64_t* prepared, int64_t count, int64_t position, float* cosines,
                        float* sines) {
  uint32_t phase[kAngles];
  const auto factor = static_cast<uint64_t>(position);
  for (int64_t i = 0; i < count; ++i) phase[i] = static_cast<uint32_t>((prepared[i] * factor) >> 32);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t quadrant = (phase[i] + 0x20000000u) >> 30;
    const auto rest = static_cast<int32_t>(phase[i] - (quadrant << 30));
    float x = static_cast<float>(rest) * 0x1.921fb6p-30f;  // 2 pi / 2^32
    x += theta[i] - theta[i];                              // a theta of NaN or infinity makes NaN
    const float z = x * x;
    const float sine = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * (z * x) + x;
    const float cosine =
        ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * (z * z) - 0.5f * z + 1.0f;
    const bool swapped = (quadrant & 1u) != 0;
    const uint32_t sine_sign = (quadrant & 2u) << 30, cosine_sign = ((quadrant + 1u) & 2u) << 30;
    sines[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(swapped ? cosine : sine) ^ sine_sign);
    cosines[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(swapped ? sine : cosine) ^ cosine_sign);
  }
}

inline void cos_and_sin(const double*, const double* prepared, int64_t count, int64_t position, double* cosines,
                        double* sines) {
  for (int64_t i = 0; i < count; ++i) {
    const auto factor = static_cast<double>(position);
    const double angle = factor * prepared[i], rest = std::fma(factor, prepared[i], -angle);
    const double cosine = std::cos(angle), sine = std::sin(angle), cosine_of_rest = std::cos(rest);
    const double sine_of_rest = std::sin(rest);
    cosines[i] = cosine * cosine_of_rest - sine * sine_of_rest;
    sines[i] = sine * cosine_of_rest + cosine * sine_of_rest;
  }
}

// The angles of a matrix theta, (heads, columns) of any floating dtype. A theta of at most kKept elements is prepared
// once for all positions, a larger one anew for each position.
template <class A>
class AngleTable {
 public:
  explicit AngleTable(const RowsView& theta) : theta_(theta), kept_(theta.rows * theta.cols <= kKept) {
    if (kept_) prepare(0, theta.rows, 0, theta.cols);
  }

  // Writes (=) cos and sin of the angles [begin, begin + count) of a head, count <= kAngles. Angles beyond the columns
  // of theta are 0.
  void at(int64_t head, int64_t begin, int64_t count, int64_t position, A* cosines, A* sines) {
    const int64_t left = theta_.cols - begin, here = left > 0 ? (left < count ? left : count) : 0;
    const int64_t place = kept_ && here > 0 ? head * theta_.cols + begin : 0;
    if (!kept_) prepare(head, 1, begin, here);
    cos_and_sin(values_ + place, prepared_ + place, here, position, cosines, sines);
    for (int64_t i = here; i < count; ++i) {
      cosines[i] = A(1);
      sines[i] = A(0);
    }
  }

 private:
  // Writes (=) columns [begin, begin + count) of the rows [head, head + heads) of theta to values_ and prepared_.
  void prepare(int64_t head, int64_t heads, int64_t begin, int64_t count) {
    visit_floating(theta_.dtype, [=, this](auto type) {
      for (int64_t index = 0; index < heads; ++index) {
        const auto* theta = row<decltype(type)>(theta_, head + index) + begin;
        for (int64_t i = 0; i < count; ++i) values_[index * count + i] = static_cast<A>(theta[i]);
      }
    });
    prepare_angles(values_, heads * count, prepared_);
  }

  static constexpr int64_t kKept = 2048;  // >= kAngles
  const RowsView theta_;
  const bool kept_;
  A values_[kKept];
  prepared_angle_t<A> prepared_[kKept];
};

}  // namespace heddle::kernels::cpu
