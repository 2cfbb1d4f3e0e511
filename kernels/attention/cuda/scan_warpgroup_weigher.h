// The weighers of scan_warpgroup.h: the warps that compute, for each chunk, the keys times their weights in the state.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/scan_warpgroup_shape.h"
#include "kernels/common/cuda/mma.h"

namespace heddle::kernels::cuda {
namespace detail {

template <class Shape>
class KeyWeigher {
 public:
  using Shared = typename Shape::Shared;
  using Chunk = typename Shape::Chunk;
  using Keys = typename Shape::Keys;

  // `warp`: which of the weighers it is.
  __device__ __forceinline__ KeyWeigher(const ScanArgs<float>& args, Shared& shared, int warp)
      : args_(args), shared_(shared), warp_(warp) {}

  __device__ __forceinline__ void run() {
    int stage = 0;
    unsigned parity = 0;
    for (int t = 0;; ++t) {
      const int pair = t % 2;
      shared_.loaded[stage].wait(parity);
      const Chunk& chunk = shared_.chunks[stage];
      if (chunk.rows > 0) {
        if constexpr (Shape::kWeightedStages == 1) {
          shared_.weighted_free.wait((t + 1) % 2);
        } else {
          shared_.free[pair].wait((t / 2 + 1) % 2);
        }
        put(chunk, shared_.key[pair], shared_.weighted[pair % Shape::kWeightedStages]);
        fence_async_proxy();
      }
      arrive(shared_.ready[pair]);
      if (chunk.rows == 0) return;
      stage = stage == 2 ? 0 : stage + 1;
      if (stage == 0) parity ^= 1;
    }
  }

 private:
  static constexpr int kUnits = Shape::kKeys / 8, kRowsOfWarp = 32 / kUnits, kSteps = Shape::kRows / kRowsOfWarp,
                       kBatch = 2;

  // Two steps at a time, so that the second is loaded while the first is computed.
  __device__ __forceinline__ void put(const Chunk& chunk, const Keys& key, typename Shape::WeightedKeys& to) const {
    const uint32_t from = shared_address(key.data), high_to = shared_address(to.pieces[0].data);
    const int rows = chunk.rows;
    const bool from_end = args_.from_end;
    const float2 last = chunk.sums[rows - 1];
#pragma unroll 1
    for (int first = warp_; first < kSteps; first += kBatch * Shape::kWeighers) {
      uint32_t place[kBatch];
      float weights[kBatch];
      uint4 words[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int row = (first + i * Shape::kWeighers) * kRowsOfWarp + lane_ / kUnits, unit = lane_ % kUnits;
        place[i] = unit / 8 * (Shape::kRows * 128) + row * 128 + ((unit % 8) ^ (row % 8)) * 16;
        weights[i] = 0.0f;
        words[i] = {};  // of rows beyond the chunk, which may hold what is not finite
        if (row < rows) {
          const float2 own = chunk.sums[row];
          weights[i] = args_.inner * (from_end ? power_of(own) : power_between(last, own));
          words[i] = load_words(from + place[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const Weight weight(weights[i]);
        uint4 high, low;
        weight.apply(words[i].x, high.x, low.x);
        weight.apply(words[i].y, high.y, low.y);
        weight.apply(words[i].z, high.z, low.z);
        weight.apply(words[i].w, high.w, low.w);
        if (first + i * Shape::kWeighers < kSteps) {
          store_shared(high_to + place[i], high);
          store_shared(high_to + Keys::kBytes + place[i], low);
        }
      }
    }
  }

  // A number as two bfloat16, each twice in a word.
  struct Weight {
    unsigned high, low;

    __device__ __forceinline__ explicit Weight(float weight) : high(pack<bf16>(weight, weight)) {
      const float rest = weight - unpack<bf16>(high).x;
      low = pack<bf16>(rest, rest);
    }
    // The pieces of two numbers times the weight. The product with the higher part has 16 bits, so that what its
    // rounding leaves is exact.
    __device__ __forceinline__ void apply(unsigned word, unsigned& piece, unsigned& rest) const {
      piece = multiply_add(word, high, 0x80008000u);
      rest = multiply_add(word, low, multiply_add(word, high, piece ^ 0x80008000u));
    }
  };
  static __device__ __forceinline__ unsigned multiply_add(unsigned a, unsigned b, unsigned c) {
    unsigned result;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
  }

  const ScanArgs<float>& args_;
  Shared& shared_;
  int warp_, lane_ = static_cast<int>(threadIdx.x % 32);
};

}  // namespace detail
}  // namespace heddle::kernels::cuda
