// A shuffled order without a list of it: the image of an index is computed without the others.
#pragma once

#include <bit>
#include <cstdint>

#include "core/tensor/random.h"

namespace heddle {

// A pseudo-random permutation of [0, size), chosen by `key`: a Feistel network of four Philox rounds on the next even
// power of two, applied until the image is in range (less than four times on average). index < size.
// Source: Black, Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.
inline uint64_t permute(uint64_t index, uint64_t size, uint64_t key) {
  const int half = (std::bit_width(size - 1) + 1) / 2;
  const uint64_t mask = (uint64_t{1} << half) - 1;
  do {
    uint64_t left = index >> half, right = index & mask;
    for (uint64_t round = 0; round < 4; ++round) {
      const uint64_t mixed = left ^ (philox(key, round, right).words[0] & mask);
      left = right;
      right = mixed;
    }
    index = left << half | right;
  } while (index >= size);
  return index;
}

}  // namespace heddle
