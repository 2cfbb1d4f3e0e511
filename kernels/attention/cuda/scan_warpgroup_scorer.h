// The scorer of scan_warpgroup.h: the warpgroup that computes what a chunk needs beside the state.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/attention/cuda/scan_warpgroup_shape.h"
#include "kernels/common/cuda/pieces.h"

namespace heddle::kernels::cuda {
namespace detail {

// OUT: the scan computes out; else the state alone.
template <class Shape, bool OUT>
class ScanScorer {
 public:
  using Shared = typename Shape::Shared;
  using Chunk = typename Shape::Chunk;

  __device__ __forceinline__ ScanScorer(const ScanArgs<float>& args, Shared& shared)
      : args_(args), shared_(shared), decay_(args, WarpgroupPlace<Shape>(args).state_head) {}

  __device__ __forceinline__ void run() {
    int stage = 0, before_last = 1;  // the stages of this chunk and of that two chunks ago
    for (unsigned t = 0;; ++t) {
      shared_.loaded[stage].wait(parity_of(t / Shape::kStages));
      fence_async_proxy();
      Chunk& chunk = shared_.chunks[stage];
      if (chunk.rows == 0) {
        shared_.ready[stage].arrive();
        return;
      }
      // The consumers have read the scores of that chunk, which lie where those of this one will.
      if (t >= 2) shared_.free[before_last].wait(parity_of((t - 2) / Shape::kStages));
      fetch_decay(chunk, stage, t % 2);
      if constexpr (OUT) {
        put_scores(chunk, stage, t % 2);
      } else {
        put_decays(chunk, stage, t % 2);
      }
      fence_async_proxy();
      shared_.ready[stage].arrive();
      if constexpr (OUT) shared_.query_free[t % 2].arrive();
      before_last = before_last == Shape::kStages - 1 ? 0 : before_last + 1;
      stage = stage == Shape::kStages - 1 ? 0 : stage + 1;
    }
  }

 private:
  // Whether the decays in shared memory are those of the chunk: with one decay for all tokens they depend on its length
  // alone.
  __device__ __forceinline__ bool has_decays(const Chunk& chunk, int stage, int parity) const {
    const auto rows = static_cast<unsigned>(chunk.rows);
    return decay_.sums == nullptr && rows == (decay_rows_ >> stage * 8 & 0xff) && rows == (sum_rows_ >> parity * 8 & 0xff);
  }
  // Loads what put_decays() needs: each of the first threads has a row, the one after them the chunk.
  __device__ __forceinline__ void fetch_decay(const Chunk& chunk, int stage, int parity) {
    if (thread_ > Shape::kRows || has_decays(chunk, stage, parity)) return;
    ScanChunk tokens;
    tokens.begin = chunk.begin;
    tokens.rows = chunk.rows;
    tokens.starts_anew = chunk.starts_anew;
    row_decay_ = RowDecay<float>(decay_, tokens, thread_ < chunk.rows ? args_.token(tokens, thread_) : chunk.begin);
  }
  __device__ __forceinline__ void put_decays(Chunk& chunk, int stage, int parity) {
    if (has_decays(chunk, stage, parity)) return;
    decay_rows_ = (decay_rows_ & ~(0xffu << stage * 8)) | static_cast<unsigned>(chunk.rows) << stage * 8;
    sum_rows_ = (sum_rows_ & ~(0xffu << parity * 8)) | static_cast<unsigned>(chunk.rows) << parity * 8;
    if (thread_ < Shape::kRows) {
      const bool is_there = thread_ < chunk.rows, from_end = args_.from_end;
      const float from_begin = is_there ? row_decay_.from_begin() : 0.0f;
      const float to_last = is_there ? row_decay_.to_last() : 0.0f;
      shared_.sums[parity][thread_] =
          !is_there ? float2{0.0f, 0.0f} : from_end ? negated(row_decay_.own) : row_decay_.own;
      chunk.in[thread_] = from_end ? to_last : from_begin;
      chunk.to[thread_] = args_.inner * (from_end ? from_begin : to_last);
    } else if (thread_ == Shape::kRows) {
      chunk.whole = decay_power(difference(row_decay_.last, row_decay_.base));
    }
  }

  // Writes the scores of row i of the queries and row j of the keys, inner exp(L_i - L_j) query_i . key_j for j <= i and
  // 0 for other j, and the queries as floats.
  __device__ __forceinline__ void put_scores(Chunk& chunk, int stage, int parity) {
    auto& to = shared_.scores[parity];
    FragmentC scores[8];
    const uint64_t query = shared_.query[parity].by_rows(0, 0), key = shared_.rows[stage].key.by_rows(0, 0);
    wgmma_fence();
#pragma unroll
    for (int d = 0; d < Shape::kKeys; d += 16) {
      wgmma<bf16, cuda::Stored::by_rows, cuda::Stored::by_rows>(scores, further(query, col_bytes(d)),
                                                                further(key, col_bytes(d)), d > 0);
    }
    wgmma_commit();
    widen_queries(shared_address(shared_.query[parity].data), shared_address(to.query.data));
    put_decays(chunk, stage, parity);
    wgmma_wait<0>();
    hold(scores);
    barrier_sync(1, 128);  // all decays are written
    const int lane = thread_ % 32, first_row = thread_ / 32 * 16, t2 = thread_ % 4 * 2;
    const float2* const sums = shared_.sums[parity];
    const float2 own[2] = {sums[first_row + lane / 4], sums[first_row + lane / 4 + 8]};
    constexpr int kPiece = sizeof(to.pieces[0]);
    const uint32_t place = shared_address(to.pieces[0].data) + (first_row + lane % 16) * 128;
    // Of the columns from 8 n on; the warp's rows see all of them, or each those up to itself.
    const auto put = [&](int n, [[maybe_unused]] auto sees_all) {
      unsigned words[2][4];  // of each piece, in the order of the matrices that are stored below
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int col = w / 2 * 8 + t2, row = lane / 4 + w % 2 * 8;
        float* const score = scores[n + w / 2].values + w % 2 * 2;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float2 exponent = difference(own[w % 2], sums[n * 8 + col + e]);
          const float weighted = score[e] * (args_.inner * fast_exp2(exponent.x + exponent.y));
          score[e] = decltype(sees_all)::value || row >= col + e ? weighted : 0.0f;
        }
        unsigned pair[2];
        split(score[0], score[1], pair);
        words[0][w] = pair[0];
        words[1][w] = pair[1];
      }
#pragma unroll
      for (int p = 0; p < 2; ++p) store_matrices<false>(place + p * kPiece + unit(n, lane), words[p]);
    };
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      if (n * 8 < first_row) {
        put(n, std::true_type{});
      } else if (n * 8 == first_row) {
        put(n, std::false_type{});
      } else {
        const unsigned zeros[4] = {};
#pragma unroll
        for (int p = 0; p < 2; ++p) store_matrices<false>(place + p * kPiece + unit(n, lane), zeros);
      }
    }
  }
  // From a row of scores that a lane gives the address of to its unit in the columns 8 n to 8 n + 15, in bytes.
  static __device__ __forceinline__ uint32_t unit(int n, int lane) { return ((n + lane / 16) ^ lane % 8) * 16; }

  // Eight lanes have the same columns of eight rows, so that neither reading nor writing meets a bank twice.
  __device__ __forceinline__ void widen_queries(uint32_t from, uint32_t to) const {
    constexpr int kUnits = Shape::kKeys / 8;
    const int swizzle = thread_ % 8, row = thread_ / 32 * 16 + swizzle, first = thread_ % 32 / 8;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int c = 0; c < kUnits; c += 4) {
        const int unit = first + c, at = (row + i * 8) * 128;
        const uint4 words = load_unit(from + unit / 8 * (64 * 128) + at + (unit % 8 ^ swizzle) * 16);
        const uint32_t panel = to + unit / 4 * (64 * 128) + at;
        const int place = unit % 4 * 2;
        store_unit(panel + (place ^ swizzle) * 16, {words.x << 16, words.y << 16, words.z << 16, words.w << 16});
        store_unit(panel + ((place + 1) ^ swizzle) * 16, {words.x & 0xffff0000u, words.y & 0xffff0000u,
                                                          words.z & 0xffff0000u, words.w & 0xffff0000u});
      }
    }
  }

  const ScanArgs<float>& args_;
  Shared& shared_;
  HeadDecay<float> decay_;
  RowDecay<float> row_decay_;  // of the thread's row of the chunk that was fetched last
  // Of the chunks whose decays, and whose sums of them, are in shared memory: 8 bits each.
  unsigned decay_rows_ = ~0u, sum_rows_ = ~0u;
  int thread_ = static_cast<int>(threadIdx.x % 128);
};

}  // namespace detail
}  // namespace heddle::kernels::cuda
