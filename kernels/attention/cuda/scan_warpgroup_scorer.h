// The scorer of scan_warpgroup.h: the warpgroup that computes the scores of each chunk.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/scan_warpgroup_shape.h"
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
        arrive(shared_.ready[pair]);
        return;
      }
      if (chunk.rows < Shape::kRows) clear_rows(chunk.rows, pair, t / 2 % 2);
      put_decays(shared_.chunks[stage]);
      if constexpr (OUT) {
        FragmentC scores[8];
        start_scores(shared_.query[stage], shared_.key[pair], scores);
        const Weights weights = weights_of(chunk);
        shared_.free[pair].wait((t / 2 + 1) % 2);
        wgmma_wait<0>();
        hold(scores);
        put_scores(weights, scores, shared_.scores[pair]);
        fence_async_proxy();
      }
      arrive(shared_.ready[pair]);
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
    barrier_sync(1, 128 + 32 * Shape::kWeighers);
  }

  // The weights that consumers need.
  __device__ __forceinline__ void put_decays(Chunk& chunk) const {
    const float2 last = chunk.sums[chunk.rows - 1];
    if (thread_ < Shape::kRows) {
      const float2 own = chunk.sums[thread_];
      chunk.in[thread_] = args_.from_end ? power_between(last, own) : power_of(own);
    } else if (thread_ == Shape::kRows) {
      chunk.whole = decay_power(last);
    }
  }

  // --- Scores: inner exp(L_i - L_j) query_i . key_j for each j that i sees, and 0 for other j ---

  // Those of other j are never written again.
  __device__ __forceinline__ void clear_scores() {
    const uint32_t scores = shared_address(shared_.scores);
    for (int at = thread_ * 16; at < static_cast<int>(sizeof(shared_.scores)); at += 128 * 16) {
      store_shared(scores + at, uint4{});
    }
    barrier_sync(2 + Shape::kGroups, 128);
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

  // The weights of the thread's scores. Where all of the warp's rows see a column, its weight is the product of two
  // factors, one of the row and one of the column: exponents from a row of the warp that lies between them, so that
  // none is positive.
  struct Weights {
    float rows[2], cols[8][2];  // of both halves of the rows, of two columns of each tile
    float diagonal[2][2][2];    // (half, tile, column) of the two tiles of which rows see some columns
  };
  __device__ __forceinline__ Weights weights_of(const Chunk& chunk) const {
    const int thread = opaque(thread_), lane = thread % 32, first_row = thread / 32 * 16, t2 = thread % 4 * 2;
    const float sign = args_.from_end ? -1.0f : 1.0f;
    const auto power = [sign](float2 row, float2 col) {
      const float2 exponent = difference(row, col);
      return fast_exp2(sign * (exponent.x + exponent.y));
    };
    const float2 own[2] = {chunk.sums[first_row + lane / 4], chunk.sums[first_row + lane / 4 + 8]};
    const float2 between = chunk.sums[first_row + (args_.from_end ? 15 : 0)];
    Weights weights;
#pragma unroll
    for (int half = 0; half < 2; ++half) weights.rows[half] = args_.inner * power(own[half], between);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float4 pair = *reinterpret_cast<const float4*>(chunk.sums + n * 8 + t2);
      weights.cols[n][0] = power(between, {pair.x, pair.y});
      weights.cols[n][1] = power(between, {pair.z, pair.w});
    }
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const float4 pair = *reinterpret_cast<const float4*>(chunk.sums + first_row + tile * 8 + t2);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        weights.diagonal[half][tile][0] = args_.inner * power(own[half], {pair.x, pair.y});
        weights.diagonal[half][tile][1] = args_.inner * power(own[half], {pair.z, pair.w});
      }
    }
    return weights;
  }

  __device__ __forceinline__ void put_scores(const Weights& weights, FragmentC (&scores)[8],
                                             typename Shape::Scores& to) const {
    const int thread = opaque(thread_), lane = thread % 32, first_row = thread / 32 * 16, t2 = thread % 4 * 2;
    const bool from_end = args_.from_end;
    const uint32_t place = shared_address(to.pieces[0].data) + (first_row + lane % 16) * 128;
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      if (n * 8 == first_row) {
        put_tiles(scores + n, place + unit(n, lane), [&](int half, int tile, int e, float score) {
          const int row = lane / 4 + half * 8, col = tile * 8 + t2 + e;
          return (from_end ? row <= col : row >= col) ? score * weights.diagonal[half][tile][e] : 0.0f;
        });
      } else if ((n * 8 < first_row) != from_end) {
        put_tiles(scores + n, place + unit(n, lane), [&](int half, int tile, int e, float score) {
          return score * (weights.rows[half] * weights.cols[n + tile][e]);
        });
      }
    }
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
      split<2, true>(weighted(half, tile, 0, score[0]), weighted(half, tile, 1, score[1]), words);
      high[w] = words[0];
      low[w] = words[1];
    }
    store_matrices(to, high);
    store_matrices(to + kPiece, low);
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
