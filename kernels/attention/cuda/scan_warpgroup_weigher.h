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
        if (chunk.rows < Shape::kRows) barrier_sync(1, 128 + 32 * Shape::kWeighers);  // the scorer has cleared rows
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
  // A warp takes every kWeighers-th block of 8 rows, and so many rows of it at a time that each lane has one unit.
  static constexpr int kUnits = Shape::kKeys / 8, kRowsAtOnce = 32 / kUnits, kSteps = 8 / kRowsAtOnce,
                       kBlocks = Shape::kRows / 8;

  __device__ __forceinline__ void put(const Chunk& chunk, const Keys& key, typename Shape::WeightedKeys& to) const {
    // Each lane computes the weight of one of the warp's rows.
    const Weight weight = weight_of(chunk, (lane_ / 8 * Shape::kWeighers + warp_) * 8 + lane_ % 8);
    const int unit = lane_ % kUnits, first_row = lane_ / kUnits;
    const uint32_t panel = unit / 8 * (Shape::kRows * 128) + first_row * 128;
    const uint32_t from = shared_address(key.data) + panel, high_to = shared_address(to.pieces[0].data) + panel;
    int lane = first_row;  // that has the weight
#pragma unroll 1
    for (int block = warp_; block < kBlocks; block += Shape::kWeighers, lane += 8) {
      uint4 words[kSteps];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) words[i] = load_words(from + block * 1024 + place(i, unit, first_row));
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        Weight of_row;
        of_row.high = __shfl_sync(0xffffffffu, weight.high, lane + i * kRowsAtOnce);
        of_row.low = __shfl_sync(0xffffffffu, weight.low, lane + i * kRowsAtOnce);
        uint4 high, low;
        of_row.apply(words[i].x, high.x, low.x);
        of_row.apply(words[i].y, high.y, low.y);
        of_row.apply(words[i].z, high.z, low.z);
        of_row.apply(words[i].w, high.w, low.w);
        const uint32_t at = high_to + block * 1024 + place(i, unit, first_row);
        store_shared(at, high);
        store_shared(at + Keys::kBytes, low);
      }
    }
  }
  // From the first of the lane's rows in a block to its unit in the one of step i, in bytes.
  static __device__ __forceinline__ uint32_t place(int i, int unit, int first_row) {
    const int row = i * kRowsAtOnce;
    return row * 128 + ((unit % 8) ^ (row + first_row)) * 16;
  }

  // A number as two bfloat16, each twice in a word.
  struct Weight {
    unsigned high, low;

    // The pieces of two numbers times the weight. The product with the higher part has 16 bits, so that what its
    // rounding leaves is exact.
    __device__ __forceinline__ void apply(unsigned word, unsigned& piece, unsigned& rest) const {
      piece = multiply_add(word, high, 0x80008000u);
      rest = multiply_add(word, low, multiply_add(word, high, negated(piece)));
    }
  };
  // 0 for rows beyond the chunk, of which the scorer has made 0.
  __device__ __forceinline__ Weight weight_of(const Chunk& chunk, int row) const {
    if (row >= chunk.rows) return {0, 0};
    const float2 own = chunk.sums[row], last = chunk.sums[chunk.rows - 1];
    const float weight = args_.inner * (args_.from_end ? power_of(own) : power_between(last, own));
    const unsigned high = pack<bf16>(weight, weight);
    const float rest = weight - unpack<bf16>(high).x;
    return {high, pack<bf16>(rest, rest)};
  }
  static __device__ __forceinline__ unsigned negated(unsigned a) {
    unsigned result;
    asm("neg.bf16x2 %0, %1;" : "=r"(result) : "r"(a));
    return result;
  }
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
