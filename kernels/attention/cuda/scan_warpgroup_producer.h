// The producer of scan_warpgroup.h: the warpgroup that walks the chunks, copies their rows to shared memory and
// computes their scores and decays.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>
#include <type_traits>

#include "kernels/attention/cuda/scan_warpgroup_shape.h"
#include "kernels/common/cuda/activation.h"
#include "kernels/common/cuda/pieces.h"

namespace heddle::kernels::cuda {
namespace detail {

// Copies rows of one head into a matrix; rows beyond the chunk's and features beyond the view's become 0.
template <int COLS>
class SwizzledCopier {
 public:
  __device__ __forceinline__ SwizzledCopier(const HeadsView& view, int64_t batch, int64_t head_index, int64_t offset,
                                            bool from_end)
      : step_(view.length_stride) {
    const int col = threadIdx.x % kUnits * 8;
    row_ = threadIdx.x % 128u / kUnits;
    from_ = head<const bf16>(view, batch, 0, head_index) + offset + col;
    if (from_end) step_ = -step_;
    is_there_ = offset + col < view.dim;
    to_ = col / 64 * (64 * 128) + row_ * 128 + ((col % 64 / 8) ^ (row_ % 8)) * 16;
  }

  // `token` is that of row 0.
  __device__ __forceinline__ void copy(int64_t token, int rows, SwizzledMatrix<bf16, 64, COLS>& matrix) const {
    const bf16* from = from_ + token * (step_ < 0 ? -step_ : step_) + row_ * step_;
    const uint32_t to = shared_address(matrix.data) + to_;
#pragma unroll
    for (int r = 0; r < 64; r += kRowsAtOnce, from += int64_t{kRowsAtOnce} * step_) {
      copy_async_if(is_there_ && row_ + r < rows, to + r * 128, from);
    }
  }

 private:
  static constexpr unsigned kUnits = COLS / 8, kRowsAtOnce = 128 / kUnits;
  static_assert(kRowsAtOnce % 8 == 0);

  const bf16* from_;
  int64_t step_;  // from a row to the next
  int row_, to_;
  bool is_there_;
};

// OUT: the scan computes out; else the state alone.
template <class Shape, bool OUT>
class ScanProducer {
 public:
  using Shared = typename Shape::Shared;

  __device__ __forceinline__ ScanProducer(const ScanArgs<float>& args, Shared& shared)
      : ScanProducer(args, shared, WarpgroupPlace<Shape>(args)) {}

  __device__ __forceinline__ void run() {
    ScanChunk chunk = walk_.next();
    load(chunk, 0);
    ScanChunk next = walk_.next();
    load(next, 1);
    fetch_decay(chunk, 0);
    int stage = 0;
    for (int t = 0;; ++t) {
      if (thread_ == 0) publish(chunk, next, stage);
      if (chunk.rows == 0) {
        shared_.ready[stage].arrive();
        return;
      }
      __pipeline_wait_prior(1);  // of the copies, those of the next chunk may still be under way
      put_decays(chunk, stage);
      fence_async_proxy();
      barrier_sync(1, 128);
      if constexpr (OUT) put_scores(stage, shared_.scores[t % 2]);
      fence_async_proxy();
      shared_.ready[stage].arrive();
      const int following = stage == 2 ? 0 : stage + 1, after_that = 3 - stage - following;
      fetch_decay(next, following);
      const ScanChunk later = walk_.next();
      if (t > 0) shared_.free[after_that].wait((t - 1) / Shape::kStages % 2);
      load(later, after_that);
      chunk = next;
      next = later;
      stage = following;
    }
  }

 private:
  __device__ __forceinline__ ScanProducer(const ScanArgs<float>& args, Shared& shared,
                                          const WarpgroupPlace<Shape>& place)
      : args_(args),
        shared_(shared),
        query_(args.query, place.batch, place.head, 0, args.from_end),
        key_(args.key, place.batch, place.head / args.group, 0, args.from_end),
        value_(args.value, place.batch, place.head / args.group, place.first_value, args.from_end),
        decay_(args, place.state_head),
        walk_(args, args.span(), place.state_head, Shape::kRows) {}

  __device__ __forceinline__ void load(const ScanChunk& chunk, int stage) {
    if (chunk.rows > 0) {
      const int64_t token = args_.token(chunk, 0);
      auto& rows = shared_.rows[stage];
      if constexpr (OUT) query_.copy(token, chunk.rows, rows.query);
      key_.copy(token, chunk.rows, rows.key);
      value_.copy(token, chunk.rows, rows.value);
    }
    __pipeline_commit();
  }

  __device__ __forceinline__ void publish(const ScanChunk& chunk, const ScanChunk& next, int stage) {
    auto& to = shared_.chunks[stage];
    to.begin = chunk.begin;
    to.rows = chunk.rows;
    to.starts_anew = chunk.starts_anew;
    // What comes before, in time, a token at which the state starts anew knows nothing of what comes after.
    to.is_forgotten = args_.from_end ? chunk.starts_anew : next.starts_anew;
  }

  // Whether the decays in shared memory are those of the chunk: with one decay for all tokens they depend on its length
  // alone.
  __device__ __forceinline__ bool has_decays(const ScanChunk& chunk, int stage) const {
    return decay_.sums == nullptr && chunk.rows == (decay_rows_ >> stage * 8 & 0xff);
  }
  // Loads what put_decays() needs.
  __device__ __forceinline__ void fetch_decay(const ScanChunk& chunk, int stage) {
    if (chunk.rows == 0 || has_decays(chunk, stage) || thread_ > Shape::kRows) return;
    row_decay_ = RowDecay<float>(decay_, chunk, thread_ < chunk.rows ? args_.token(chunk, thread_) : chunk.begin);
  }
  __device__ __forceinline__ void put_decays(const ScanChunk& chunk, int stage) {
    if (has_decays(chunk, stage)) return;
    decay_rows_ = (decay_rows_ & ~(0xff << stage * 8)) | chunk.rows << stage * 8;
    auto& to = shared_.chunks[stage];
    if (thread_ < Shape::kRows) {
      const bool is_there = thread_ < chunk.rows, from_end = args_.from_end;
      const float from_begin = is_there ? row_decay_.from_begin() : 0.0f;
      const float to_last = is_there ? row_decay_.to_last() : 0.0f;
      to.sums[thread_] = !is_there ? float2{0.0f, 0.0f} : from_end ? negated(row_decay_.own) : row_decay_.own;
      to.in[thread_] = from_end ? to_last : from_begin;
      to.to[thread_] = args_.inner * (from_end ? from_begin : to_last);
    } else if (thread_ == Shape::kRows) {
      to.whole = decay_power(difference(row_decay_.last, row_decay_.base));
    }
  }

  // inner exp(L_i - L_j) query_i . key_j for j <= i, and 0 for other j.
  __device__ __forceinline__ void put_scores(int stage, typename Shape::Scores& to) const {
    const auto& rows = shared_.rows[stage];
    FragmentC scores[8];
    const uint64_t query = rows.query.by_rows(0, 0), key = rows.key.by_rows(0, 0);
    wgmma_fence();
#pragma unroll
    for (int d = 0; d < Shape::kKeys; d += 16) {
      wgmma<bf16, cuda::Stored::by_rows, cuda::Stored::by_rows>(scores, further(query, col_bytes(d)),
                                                                further(key, col_bytes(d)), d > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    hold(scores);
    const unsigned thread = threadIdx.x;
    const int lane = thread % 32, first_row = thread / 32 * 16, t2 = thread % 4 * 2;
    constexpr int kPiece = sizeof(to.pieces[0]);
    const uint32_t place = shared_address(to.pieces[0].data) + (first_row + lane % 16) * 128;
    const float2* const sums = shared_.chunks[stage].sums;
    const float2 own[2] = {sums[first_row + lane / 4], sums[first_row + lane / 4 + 8]};
    // Those of row tile n and the warp's rows; all rows SEE all columns, or each those up to itself.
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
  static __device__ __forceinline__ uint32_t unit(int n, int lane) {
    return (static_cast<unsigned>(n + lane / 16) ^ lane % 8) * 16;
  }

  const ScanArgs<float>& args_;
  Shared& shared_;
  SwizzledCopier<Shape::kKeys> query_, key_;
  SwizzledCopier<Shape::kValues> value_;
  HeadDecay<float> decay_;
  ChunkWalk<float> walk_;
  RowDecay<float> row_decay_;  // of the thread's row of the chunk that was fetched last
  unsigned decay_rows_ = ~0u;  // of the chunks whose decays are in shared memory, 8 bits each
  int thread_ = static_cast<int>(threadIdx.x);
};

}  // namespace detail
}  // namespace heddle::kernels::cuda
