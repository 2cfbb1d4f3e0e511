// theta / 2 pi modulo 1 for large theta, exactly: the range reduction of Payne and Hanek in integers.
// Source: M. Payne and R. Hanek, "Radian reduction for trigonometric functions", SIGNUM Newsletter 18 (1983).
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/common/types.h"

namespace heddle::kernels {

// From here on thetas are reduced by far_revolutions(); below, products with 1 / 2 pi in double are right.
inline constexpr float kFarTheta = 0x1p40f;

// theta / 2 pi modulo 1 in units of 2^-64, for kFarTheta <= |theta| < infinity; the error is below 2 units. `bits` are
// those of theta = m 2^e. m is an integer, so bits of 1 / 2 pi whose product with 2^e is an integer do not count: m is
// multiplied by the 96 bits that follow.
HEDDLE_HOST_DEVICE_INLINE uint64_t far_revolutions(uint32_t bits) {
  constexpr uint64_t kFirst = 0x28be60db9391054a, kSecond = 0x7f09d5f47d4d3770;  // 1 / 2 pi = 0.28be60db...
  constexpr uint64_t kThird = 0x36d8a5664f10e410, kFourth = 0x7f9458eaf7aef158;
  const int e = static_cast<int>((bits >> 23) & 0xffu) - 150;
  const uint64_t m = (bits & 0x7fffffu) | 0x800000u;
  const uint64_t a = e < 64 ? kFirst : kSecond, b = e < 64 ? kSecond : kThird, c = e < 64 ? kThird : kFourth;
  const int shift = e % 64;
  const uint64_t upper = shift == 0 ? a : a << shift | b >> (64 - shift);
  const uint64_t lower = shift == 0 ? b : b << shift | c >> (64 - shift);
  const uint64_t fraction = m * upper + ((m * (lower >> 32)) >> 32);
  return (bits >> 31) != 0 ? 0 - fraction : fraction;
}

}  // namespace heddle::kernels
