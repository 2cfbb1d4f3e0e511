// Products of sizes that users choose, which may be beyond any integer.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>

namespace heddle {

// The product of the factors, or nullopt when an int64 cannot hold it. A factor of 0 makes it 0, whatever the others
// are; without factors it is 1.
inline std::optional<std::int64_t> checked_product(std::span<const std::int64_t> factors) {
  std::int64_t product = 1;
  bool overflows = false, is_zero = false;
  for (const std::int64_t factor : factors) {
    overflows |= __builtin_mul_overflow(product, factor, &product);
    is_zero |= factor == 0;
  }
  if (is_zero) return 0;
  if (overflows) return std::nullopt;
  return product;
}
inline std::optional<std::int64_t> checked_product(std::initializer_list<std::int64_t> factors) {
  return checked_product(std::span(factors.begin(), factors.size()));
}

}  // namespace heddle
