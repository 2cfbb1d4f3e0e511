// Mathematics for the inner loops of CPU kernels. It has neither branches nor calls, so that compilers vectorise loops
// that use it. `exponential` is always inlined, because in a large kernel compilers may stop inlining before it.
// In float, the exponential is right to 1 ulp (unit in the last place). Results at 0 and at infinity are exact, NaN
// stays NaN. double serves gradient tests and calls the library's exp.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

// Stands before a loop whose iterations touch different elements, or where each touches only its own elements of memory
// that is known by two pointers. The compiler then makes no check for overlap, so that work in place is vectorised too.
#if defined(__clang__)
#define HEDDLE_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define HEDDLE_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace heddle::kernels::cpu {

// exp(x) = 2^n significand for x where neither overflows:
//   x = n ln 2 + r, |r| <= ln 2 / 2;   exp(r) by the polynomial of Cephes' expf.
// Source: S. L. Moshier, Cephes Mathematical Library, single/expf.c.
struct ScaledExponential {
  uint32_t n;  // modulo 2^23: right after a shift by 23
  float significand;
};
[[gnu::always_inline]] inline ScaledExponential scaled_exponential(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer that sits in the low bits
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  const float shifted = x * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * (r * r) + r) + 1.0f;
  // Unsigned: the bits of NaN must not overflow.
  return {std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound), p};
}

// exp(x), gradual underflow included.
[[gnu::always_inline]] inline float exponential(float x) {
  x = x > 89.0f ? 89.0f : x;  // written so that NaN stays
  x = x < -104.0f ? -104.0f : x;
  const ScaledExponential e = scaled_exponential(x);
  // 2^n as two factors, because n reaches from -150 to 128.
  const uint32_t first = static_cast<uint32_t>(static_cast<int32_t>(e.n) >> 1);
  const float low = std::bit_cast<float>((first + 127u) << 23);
  const float high = std::bit_cast<float>((e.n - first + 127u) << 23);
  return e.significand * low * high;
}
inline double exponential(double x) { return std::exp(x); }

// exp(-|x|), a number in [0, 1]; NaN stays NaN, and results that would be subnormal are 0. Sigmoids are computed from
// it because it neither overflows nor makes digits cancel.
[[gnu::always_inline]] inline float exponential_of_minus_magnitude(float x) {
  constexpr float kSmallest = -87.3365447505f;  // ln 2^-126
  const float given = x < 0.0f ? x : -x;
  const ScaledExponential e = scaled_exponential(given < kSmallest ? kSmallest : given);
  const float scale = std::bit_cast<float>((e.n + 127u) << 23);
  return given < kSmallest ? 0.0f : e.significand * scale;
}
[[gnu::always_inline]] inline double exponential_of_minus_magnitude(double x) { return std::exp(x < 0.0 ? x : -x); }

// 1 / d for d in [1, 2], right to 1 ulp; NaN stays NaN. The divider of a CPU is slow, so this uses multiplications: the
// parabola whose largest error is smallest (1/99), and two steps of Newton's method, each of which squares the error.
[[gnu::always_inline]] inline float inverse_in_1_2(float d) {
  float y = (d * (32.0f / 99.0f) - 16.0f / 11.0f) * d + 70.0f / 33.0f;
  y += y * (1.0f - d * y);
  y += y * (1.0f - d * y);
  return y;
}
inline double inverse_in_1_2(double d) { return 1.0 / d; }

// Number of partial sums of a row. Element i is added to partial sum (lane) i % kLanes, and the lanes are then added in
// halves, so the order of summation depends on the length alone and not on vector width, addresses or threads.
inline constexpr int kLanes = 32;

// lane[0] (=) the lanes [0, 2 width) put together in halves by combine(a, b). The widths are constants, so that each
// half is one vector operation.
template <int width, class A, class Combine>
inline void combine_halves(A* lane, const Combine& combine) {
  if constexpr (width > 0) {
    for (int j = 0; j < width; ++j) lane[j] = combine(lane[j], lane[j + width]);
    combine_halves<width / 2>(lane, combine);
  }
}

// The sum of all lanes, in halves.
template <class A>
inline A add_lanes(const A (&lane)[kLanes]) {
  A sums[kLanes];
  for (int j = 0; j < kLanes; ++j) sums[j] = lane[j];
  combine_halves<kLanes / 2>(sums, [](A a, A b) { return a + b; });
  return sums[0];
}

// The partial sums of kSums sums over the same elements, for rows of a few thousand elements at most: the rounding
// error grows with the number of elements of a lane.
template <class A, int kSums = 1>
struct Lanes {
  A lane[kSums][kLanes] = {};

  // Adds value(0) .. value(count - 1), each a number or, for several sums at once, a std::array of kSums numbers.
  // Several calls give the result of one call if every count but the last is a multiple of kLanes.
  template <class Value>
  inline void add(int64_t count, const Value& value) {
    A sums[kSums][kLanes];
    for (int k = 0; k < kSums; ++k) {
      for (int j = 0; j < kLanes; ++j) sums[k][j] = lane[k][j];
    }
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) {
        const std::array<A, kSums> next{value(i + j)};
        for (int k = 0; k < kSums; ++k) sums[k][j] += next[k];
      }
    }
    for (int k = 0; k < kSums; ++k) {
      for (int j = 0; j < kLanes; ++j) lane[k][j] = sums[k][j];
    }
    for (int j = 0; i < count; ++i, ++j) {
      const std::array<A, kSums> next{value(i)};
      for (int k = 0; k < kSums; ++k) lane[k][j] += next[k];
    }
  }

  // The k-th sum.
  inline A total(int k = 0) const { return add_lanes(lane[k]); }
};

// The same for rows of any length. Lanes take so many elements only that their rounding errors stay below a few units
// in the last place, and are added up in double, so the error does not grow with the length.
template <class A, int kSums = 1>
class LongLanes {
 public:
  template <class Value>
  inline void add(int64_t count, const Value& value) {
    double sums[kSums][kLanes];
    for (int k = 0; k < kSums; ++k) std::copy_n(sums_[k], kLanes, sums[k]);
    for (int64_t begin = 0; begin < count; begin += kPart) {
      Lanes<A, kSums> part;
      part.add(std::min(kPart, count - begin), [&value, begin](int64_t i) { return value(begin + i); });
      for (int k = 0; k < kSums; ++k) {
        for (int j = 0; j < kLanes; ++j) sums[k][j] += static_cast<double>(part.lane[k][j]);
      }
    }
    for (int k = 0; k < kSums; ++k) std::copy_n(sums[k], kLanes, sums_[k]);
  }

  // The k-th sum.
  inline A total(int k = 0) const { return static_cast<A>(add_lanes(sums_[k])); }

 private:
  static constexpr int64_t kPart = 8 * kLanes;
  double sums_[kSums][kLanes] = {};
};

// value(0) + ... + value(count - 1). `value` returns A and neither branches nor stores.
template <class A, class Value>
inline A sum_of(int64_t count, const Value& value) {
  if (count <= 32 * kLanes) {
    Lanes<A> lanes;
    lanes.add(count, value);
    return lanes.total();
  }
  LongLanes<A> lanes;
  lanes.add(count, value);
  return lanes.total();
}

// The largest of value(0), ..., value(count - 1), where NaN is ignored; -infinity when count is 0.
template <class A, class Value>
inline A maximum_of(int64_t count, const Value& value) {
  A lane[kLanes];
  for (int j = 0; j < kLanes; ++j) lane[j] = -std::numeric_limits<A>::infinity();
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      const A next = value(i + j);
      lane[j] = next > lane[j] ? next : lane[j];
    }
  }
  for (int j = 0; i < count; ++i, ++j) {
    const A next = value(i);
    lane[j] = next > lane[j] ? next : lane[j];
  }
  combine_halves<kLanes / 2>(lane, [](A a, A b) { return b > a ? b : a; });
  return lane[0];
}

}  // namespace heddle::kernels::cpu
