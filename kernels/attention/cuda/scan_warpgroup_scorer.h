// The scorer of scan_warpgroup.h: the warpgroup that computes, for each chunk, the scores and the keys times their
// weights in the state.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/attention/cuda/scan_warpgroup_shape.h"
#include "kernels/common/cuda/activation.h"
#include "kernels/common/cuda/pieces.h"

namespace heddle::kernels::cuda {
namespace detail {

// OUT: the scan computes out; else there are no scores.
template <class Shape, bool OUT>
class ScanScorer {
 public:
  using Shared = typename Shape::Shared;
  using Chunk = typename Shape::Chunk;
  using Keys = typename Shape::Keys;

  __device__ __forceinline__ ScanScorer(const ScanArgs<float>& args, Shared& shared) : args_(args), shared_(shared) {}

  __device__ __forceinline__ void run() {
    if constexpr (OUT) clear_scores();
    int stage = 0;
    unsigned parity = 0;
    for (int t = 0;; ++t) {
      const int pair = t % 2;
      shared_.loaded[stage].wait(parity);
      const Chunk& chunk = shared_.chunks[stage];
      if (chunk.rows == 0) {
        shared_.ready[pair].arrive();
        return;
      }
      if (chunk.rows < Shape::kRows) clear_rows(chunk.rows, pair, t / 2 % 2);
      const Keys& key = shared_.key[pair];
      FragmentC scores[8];
      if constexpr (OUT) start_scores(shared_.query[stage], key, scores);
      shared_.free[pair].wait((t / 2 + 1) % 2);
      if constexpr (Shape::kWeightedStages == 2) put_weighted(chunk, key, shared_.weighted[pair]);
      if constexpr (OUT) {
        wgmma_wait<0>();
        hold(scores);
        put_scores(chunk, scores, shared_.scores[pair]);
      }
      if constexpr (Shape::kWeightedStages == 1) {
        shared_.weighted_free.wait((t + 1) % 2);
        put_weighted(chunk, key, shared_.weighted[0]);
      }
      fence_async_proxy();
      shared_.ready[pair].arrive();
      stage = stage == 2 ? 0 : stage + 1;
      if (stage == 0) parity ^= 1;
    }
  }

 private:
  // Zeros in place of the rows beyond the chunk: nothing that is not finite may enter a product, not even times 0.
  __device__ __forceinline__ void clear_rows(int rows, int pair, unsigned parity) {
    shared_.value_loaded[pair].wait(parity);
    const uint32_t key = shared_address(shared_.key[pair].data), value = shared_address(shared_.value.data);
#pragma unroll 1
    for (int row = rows + thread_ / 8; row < Shape::kRows; row += 16) {
#pragma unroll 1
      for (int panel = 0; panel < Shape::kKeys; panel += 64) {
        store_shared(key + col_bytes(panel) + row * 128 + thread_ % 8 * 16, uint4{});
      }
#pragma unroll 1
      for (int panel = 0; panel < Shape::kValues; panel += 64) {
        store_shared(value + col_bytes(panel) + row * 128 + thread_ % 8 * 16, uint4{});
      }
    }
    fence_async_proxy();
    barrier_sync(1, 128);
  }

  // The pieces of the keys times their weights in the state.
  __device__ __forceinline__ void put_weighted(const Chunk& chunk, const Keys& key,
                                               typename Shape::WeightedKeys& to) const {
    constexpr int kUnits = Shape::kKeys / 8, kRowsAtOnce = 128 / kUnits;
    static_assert(kRowsAtOnce % 8 == 0);
    const int row = thread_ / kUnits, unit = thread_ % kUnits;
    const uint32_t place = unit / 8 * (Shape::kRows * 128) + row * 128 + ((unit % 8) ^ (row % 8)) * 16;
    const uint32_t from = shared_address(key.data) + place, high_to = shared_address(to.pieces[0].data) + place;
#pragma unroll
    for (int r = 0; r < Shape::kRows; r += kRowsAtOnce) {
      const float weight = chunk.to[row + r];
      const uint4 words = load_words(from + r * 128);
      uint4 high, low;
      weigh(words.x, weight, high.x, low.x);
      weigh(words.y, weight, high.y, low.y);
      weigh(words.z, weight, high.z, low.z);
      weigh(words.w, weight, high.w, low.w);
      store_shared(high_to + r * 128, high);
      store_shared(high_to + Keys::kBytes + r * 128, low);
    }
  }
  static __device__ __forceinline__ void weigh(unsigned word, float weight, unsigned& high, unsigned& low) {
    const float2 pair = unpack<bf16>(word);
    unsigned words[2];
    split<2, true>(pair.x * weight, pair.y * weight, words);
    high = words[0];
    low = words[1];
  }

  // --- Scores: inner exp(L_i - L_j) query_i . key_j for each j that i sees, and 0 for other j ---

  // Those of other j are never written again.
  __device__ __forceinline__ void clear_scores() {
    const uint32_t scores = shared_address(shared_.scores);
    for (int at = thread_ * 16; at < static_cast<int>(sizeof(shared_.scores)); at += 128 * 16) {
      store_shared(scores + at, uint4{});
    }
    barrier_sync(1, 128);
  }

  __device__ __forceinline__ void start_scores(const Keys& queries, const Keys& keys, FragmentC (&scores)[8]) const {
    const uint64_t query = queries.by_rows(0, 0), key = keys.by_rows(0, 0);
    wgmma_fence();
#pragma unroll
    for (int d = 0; d < Shape::kKeys; d += 16) {
      wgmma<bf16, cuda::Stored::by_rows, cuda::Stored::by_rows>(scores, further(query, col_bytes(d)),
                                                                further(key, col_bytes(d)), d > 0);
    }
    wgmma_commit();
  }

  // Where all of the warp's rows see a column, its weight is the product of two factors, one of the row and one of the
  // column: exponents from a row of the warp that lies between them, so that none is positive.
  __device__ __forceinline__ void put_scores(const Chunk& chunk, FragmentC (&scores)[8],
                                             typename Shape::Scores& to) const {
    const int lane = thread_ % 32, first_row = thread_ / 32 * 16, t2 = thread_ % 4 * 2;
    const bool from_end = args_.from_end;
    const uint32_t place = shared_address(to.pieces[0].data) + (first_row + lane % 16) * 128;
    const float2 own[2] = {chunk.sums[first_row + lane / 4], chunk.sums[first_row + lane / 4 + 8]};
    const float2 between = chunk.sums[first_row + (from_end ? 15 : 0)];
    const float row_factors[2] = {args_.inner * power(own[0], between), args_.inner * power(own[1], between)};
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      if (n * 8 == first_row) {
        put_tiles(scores + n, place + unit(n, lane), [&](int half, int tile, int e, float score) {
          const int row = lane / 4 + half * 8, col = tile * 8 + t2 + e;
          const float weight = args_.inner * power(own[half], chunk.sums[first_row + col]);
          return (from_end ? row <= col : row >= col) ? score * weight : 0.0f;
        });
      } else if ((n * 8 < first_row) != from_end) {
        float factors[2][2];
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
          for (int e = 0; e < 2; ++e) factors[tile][e] = power(between, chunk.sums[n * 8 + tile * 8 + t2 + e]);
        }
        put_tiles(scores + n, place + unit(n, lane), [&](int half, int tile, int e, float score) {
          return score * (row_factors[half] * factors[tile][e]);
        });
      }
    }
  }
  static __device__ __forceinline__ float power(float2 a, float2 b) {
    const float2 exponent = difference(a, b);
    return fast_exp2(exponent.x + exponent.y);
  }
  // The pieces of weighted(half of the rows, tile, which of two columns, score) for two tiles of scores.
  template <class Weighted>
  static __device__ __forceinline__ void put_tiles(const FragmentC* scores, uint32_t to, const Weighted& weighted) {
    constexpr int kPiece = sizeof(typename Shape::Scores) / 2;
    unsigned high[4], low[4];  // in the order of the matrices that are stored below
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const int half = w % 2, tile = w / 2;
      const float* const score = scores[tile].values + half * 2;
      unsigned words[2];
      split(weighted(half, tile, 0, score[0]), weighted(half, tile, 1, score[1]), words);
      high[w] = words[0];
      low[w] = words[1];
    }
    store_matrices<false>(to, high);
    store_matrices<false>(to + kPiece, low);
  }
  // From a row of scores that a lane gives the address of to its unit in the columns 8 n to 8 n + 15, in bytes.
  static __device__ __forceinline__ uint32_t unit(int n, int lane) {
    return (static_cast<unsigned>(n + lane / 16) ^ lane % 8) * 16;
  }

  const ScanArgs<float>& args_;
  Shared& shared_;
  int thread_ = static_cast<int>(threadIdx.x);
};

}  // namespace detail
}  // namespace heddle::kernels::cuda
