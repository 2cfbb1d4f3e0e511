// The loader of scan_warpgroup.h: the warp that walks the chunks, computes their decays and lets the copy engine fetch
// their rows.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/scan_warpgroup_shape.h"

namespace heddle::kernels::cuda {
namespace detail {

// OUT: the scan computes out; else the state alone.
template <class Shape, bool OUT>
class ScanLoader {
 public:
  using Shared = typename Shape::Shared;
  using Chunk = typename Shape::Chunk;

  __device__ __forceinline__ ScanLoader(const WarpgroupScan& scan, Shared& shared)
      : ScanLoader(scan, shared, WarpgroupPlace<Shape>(scan.args)) {}

  __device__ __forceinline__ void run() {
    ScanChunk chunk = walk_.next();
    fetch_decays(chunk, 0);
    int stage = 0;
    for (int t = 0;; ++t) {
      const ScanChunk next = walk_.next();
      const int pair = t % 2;
      // The scorer has read the key of chunk t - 2; consumers are done with chunk t - 3, as they have read a later value.
      shared_.ready[pair].wait((t / 2 + 1) % 2);
      put_decays(chunk, stage);
      if (lane_ == 0) {
        publish(chunk, next, shared_.chunks[stage]);
        if (chunk.rows > 0) copy_keys(chunk, stage, pair);
      }
      if (lane_ != 0 || chunk.rows == 0) shared_.loaded[stage].arrive();
      if (chunk.rows == 0) return;
      const int following = stage == 2 ? 0 : stage + 1;
      fetch_decays(next, following);
      shared_.value_free.wait((t + 1) % 2);
      if (lane_ == 0) {
        SharedBarrier& barrier = shared_.value_loaded[pair];
        barrier.arrive_and_expect(Shape::Values::kBytes);
        copy_panels(shared_.value, scan_.value, barrier, batch_, key_head_, static_cast<int>(chunk.begin), first_value_);
      }
      chunk = next;
      stage = following;
    }
  }

 private:
  static constexpr int kRowsOfLane = Shape::kRows / 32;

  __device__ __forceinline__ ScanLoader(const WarpgroupScan& scan, Shared& shared, const WarpgroupPlace<Shape>& place)
      : scan_(scan),
        shared_(shared),
        batch_(static_cast<int>(place.batch)),
        head_(static_cast<int>(place.head)),
        key_head_(static_cast<int>(place.head / scan.args.group)),
        first_value_(static_cast<int>(place.first_value)),
        decay_(scan.args, place.state_head),
        walk_(scan.args, scan.args.span(), place.state_head, Shape::kRows) {}

  __device__ __forceinline__ void copy_keys(const ScanChunk& chunk, int stage, int pair) {
    SharedBarrier& barrier = shared_.loaded[stage];
    const int token = static_cast<int>(chunk.begin);
    barrier.arrive_and_expect(OUT ? 2 * Shape::Keys::kBytes : Shape::Keys::kBytes);
    copy_panels(shared_.key[pair], scan_.key, barrier, batch_, key_head_, token, 0);
    if constexpr (OUT) copy_panels(shared_.query[stage], scan_.query, barrier, batch_, head_, token, 0);
  }

  __device__ __forceinline__ void publish(const ScanChunk& chunk, const ScanChunk& next, Chunk& to) {
    to.begin = chunk.begin;
    to.rows = chunk.rows;
    to.starts_anew = chunk.starts_anew;
    // What comes before, in time, a token at which the state starts anew knows nothing of what comes after.
    to.is_forgotten = scan_.args.from_end ? chunk.starts_anew : next.starts_anew;
  }

  // Whether the decays in shared memory are those of the chunk: with one decay for all tokens they depend on its length
  // alone.
  __device__ __forceinline__ bool has_decays(const ScanChunk& chunk, int stage) const {
    return chunk.rows == 0 || (decay_.sums == nullptr && chunk.rows == (decay_rows_ >> stage * 8 & 0xff));
  }
  // Loads what put_decays() needs.
  __device__ __forceinline__ void fetch_decays(const ScanChunk& chunk, int stage) {
    if (has_decays(chunk, stage)) return;
#pragma unroll
    for (int i = 0; i < kRowsOfLane; ++i) {
      row_decays_[i] = RowDecay<float>(decay_, chunk, chunk.begin + min(lane_ + i * 32, chunk.rows - 1));
    }
  }
  __device__ __forceinline__ void put_decays(const ScanChunk& chunk, int stage) {
    if (has_decays(chunk, stage)) return;
    decay_rows_ = (decay_rows_ & ~(0xff << stage * 8)) | chunk.rows << stage * 8;
    Chunk& to = shared_.chunks[stage];
    const bool from_end = scan_.args.from_end;
#pragma unroll
    for (int i = 0; i < kRowsOfLane; ++i) {
      const RowDecay<float>& decay = row_decays_[i];
      const int row = lane_ + i * 32;
      const bool is_there = row < chunk.rows;
      const float from_begin = is_there ? decay.from_begin() : 0.0f, to_last = is_there ? decay.to_last() : 0.0f;
      to.sums[row] = from_end ? negated(decay.own) : decay.own;  // of rows that are not there: that of the last
      to.in[row] = from_end ? to_last : from_begin;
      to.to[row] = scan_.args.inner * (from_end ? from_begin : to_last);
    }
    if (lane_ == 0) to.whole = static_cast<float>(row_decays_[0].whole());
  }

  const WarpgroupScan& scan_;
  Shared& shared_;
  int batch_, head_, key_head_, first_value_;
  HeadDecay<float> decay_;
  ChunkWalk<float> walk_;
  RowDecay<float> row_decays_[kRowsOfLane];  // of the chunk that was fetched last
  unsigned decay_rows_ = ~0u;                // of the chunks whose decays are in shared memory, 8 bits each
  int lane_ = static_cast<int>(threadIdx.x % 32);
};

}  // namespace detail
}  // namespace heddle::kernels::cuda
