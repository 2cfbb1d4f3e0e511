// Counter-based random numbers: Philox4x32-10. The n-th number of (seed, stream) is a function of its position alone,
// so it is the same on every device, for any number of threads, and after a resume.
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11.
#pragma once

#include <array>
#include <cstdint>

#include "core/runtime/host_device.h"
#include "core/tensor/tensor.h"

namespace heddle {

// Independent sequences of one seed. A parameter or sampler adds its own number in the upper half of `stream`.
enum class RandomStream : uint32_t { parameters = 1, data = 2, dropout = 3, sampling = 4, test = 5, seeds = 6 };

struct PhiloxBlock {
  uint32_t words[4];
};

// Four random words for one position of one sequence.
HEDDLE_HOST_DEVICE inline PhiloxBlock philox(uint64_t seed, uint64_t stream, uint64_t position) {
  uint32_t c0 = static_cast<uint32_t>(position), c1 = static_cast<uint32_t>(position >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The seed number `position` of those derived from `seed`: independent of all sequences of `seed`.
HEDDLE_HOST_DEVICE inline uint64_t derived_seed(uint64_t seed, uint64_t position) {
  const PhiloxBlock block = philox(seed, static_cast<uint64_t>(RandomStream::seeds), position);
  return block.words[0] | uint64_t{block.words[1]} << 32;
}

// In [0, 1), a multiple of 2^-24.
HEDDLE_HOST_DEVICE inline float to_uniform(uint32_t word) {
  return static_cast<float>(word >> 8) * (1.0f / 16777216.0f);
}

// A sequence with a position: what a sampler or a data order keeps, and what a checkpoint stores.
class Random {
 public:
  Random(uint64_t seed, RandomStream stream, uint32_t substream = 0)
      : seed_(seed), stream_(static_cast<uint64_t>(stream) | uint64_t{substream} << 32) {}

  uint64_t position() const { return position_; }
  void seek(uint64_t position) { position_ = position; }

  uint32_t next_word();
  float next_uniform() { return to_uniform(next_word()); }
  // Uniform in [0, bound), without bias; bound > 0.
  uint64_t next_below(uint64_t bound);
  // Standard normal (Box-Muller, in double).
  double next_normal();

 private:
  uint64_t seed_;
  uint64_t stream_;
  uint64_t position_ = 0;  // counted in words
  // The block that the last word was of; no position has the number that it begins with.
  uint64_t block_number_ = ~uint64_t{0};
  PhiloxBlock block_ = {};
};

// Fill a floating tensor of any device: the numbers are made on the host, so they are the same everywhere. On meta
// nothing is done. Deterministic for a given position of `random`, which moves on by the numbers used.
void fill_normal(Context& context, const Tensor& tensor, Random& random, double mean, double standard_deviation);
void fill_uniform(Context& context, const Tensor& tensor, Random& random, double low, double high);

}  // namespace heddle
