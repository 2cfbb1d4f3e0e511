// Division by a divisor that is the same for a whole launch: the host prepares it, and the device then divides by a
// multiplication and a shift instead of about twenty instructions.
#pragma once

#include <bit>
#include <cstdint>

namespace heddle::kernels::cuda {

// Divides numbers below 2^31 by a divisor from 1 to 2^31 - 1 (Granlund and Montgomery 1994). With
// 2^(bits - 1) < divisor <= 2^bits the multiplier is 2^(31 + bits) / divisor, rounded up by less than 1. The product is
// therefore too large by less than n < 2^31, which is too little to reach the next quotient.
struct Divider {
  uint32_t divisor = 1, multiplier = 1u << 31;
  uint32_t shift = 31;

  Divider() = default;
  explicit Divider(int64_t by) : divisor(static_cast<uint32_t>(by)) {
    shift = 31 + static_cast<uint32_t>(std::bit_width(divisor - 1));
    multiplier = static_cast<uint32_t>(((uint64_t{1} << shift) + divisor - 1) / divisor);
  }
  __device__ __forceinline__ uint32_t quotient(uint32_t n) const {
    return static_cast<uint32_t>((uint64_t{n} * multiplier) >> shift);
  }
};

}  // namespace heddle::kernels::cuda
