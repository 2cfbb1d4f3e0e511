// The loader of scan_warpgroup.h: the warp that walks the chunks and lets the copy engine fetch their rows. It is what
// all others wait for in the end, so it computes nothing else.
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
    int stage = 0;
    for (int t = 0;; ++t) {
      const int pair = t % 2;
      // The key of chunk t - 2 has been read; consumers are done with chunk t - 3, as they have read a later value.
      shared_.ready[pair].wait((t / 2 + 1) % 2);
      const ScanChunk next = walk_.next();
      SharedBarrier& loaded = shared_.loaded[stage];
      if (lane_ == 0) {
        publish(chunk, next, shared_.chunks[stage]);
        if (chunk.rows > 0) {
          copy_keys(chunk, stage, pair);
        } else {
          loaded.arrive();
        }
      }
      if (chunk.rows == 0) {
        loaded.arrive();
        return;
      }
      if (scan_.args.sums != nullptr) {
        copy_sums(chunk, shared_.chunks[stage]);
        arrive_after_copies(loaded);
      } else {
        loaded.arrive();
      }
      shared_.value_free.wait((t + 1) % 2);
      if (lane_ == 0) {
        SharedBarrier& barrier = shared_.value_loaded[pair];
        barrier.arrive_and_expect(Shape::Values::kBytes);
        copy_features(shared_.value, scan_.value, barrier, batch_, key_head_, token(chunk), first_value_);
      }
      chunk = next;
      stage = stage == 2 ? 0 : stage + 1;
    }
  }

 private:
  __device__ __forceinline__ ScanLoader(const WarpgroupScan& scan, Shared& shared, const WarpgroupPlace<Shape>& place)
      : scan_(scan),
        shared_(shared),
        batch_(static_cast<int>(place.batch)),
        head_(static_cast<int>(place.head)),
        key_head_(static_cast<int>(place.head / scan.args.group)),
        first_value_(static_cast<int>(place.first_value)),
        sums_(scan.args.sums + place.state_head * scan.args.query.length),
        walk_(scan.args, scan.args.span(), place.state_head, Shape::kRows) {}

  static __device__ __forceinline__ int token(const ScanChunk& chunk) { return static_cast<int>(chunk.begin); }

  __device__ __forceinline__ void copy_keys(const ScanChunk& chunk, int stage, int pair) {
    SharedBarrier& barrier = shared_.loaded[stage];
    barrier.arrive_and_expect(OUT ? 2 * Shape::Keys::kBytes : Shape::Keys::kBytes);
    copy_features(shared_.key[pair], scan_.key, barrier, batch_, key_head_, token(chunk), 0);
    if constexpr (OUT) copy_features(shared_.query[stage], scan_.query, barrier, batch_, head_, token(chunk), 0);
  }

  __device__ __forceinline__ void publish(const ScanChunk& chunk, const ScanChunk& next, Chunk& to) {
    to.begin = token(chunk);
    to.rows = chunk.rows;
    to.starts_anew = chunk.starts_anew;
    // What comes before, in time, a token at which the state starts anew knows nothing of what comes after.
    to.is_forgotten = scan_.args.from_end ? chunk.starts_anew : next.starts_anew;
  }

  // Sums of log decays, which count from the begin of the chunk: it is that of a window or a token at which the state
  // starts anew. Rows that are not there get the last one again.
  __device__ __forceinline__ void copy_sums(const ScanChunk& chunk, Chunk& to) {
    const int begin = token(chunk);
#pragma unroll
    for (int row = lane_; row < Shape::kRows; row += 32) {
      copy_async_pair(shared_address(to.sums + row), sums_ + begin + min(row, chunk.rows - 1));
    }
  }

  // Starts to copy two floats.
  static __device__ __forceinline__ void copy_async_pair(uint32_t to, const float2* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from) : "memory");
  }
  // Arrives when all copies of this thread are done.
  static __device__ __forceinline__ void arrive_after_copies(SharedBarrier& barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier.address()) : "memory");
  }

  const WarpgroupScan& scan_;
  Shared& shared_;
  int batch_, head_, key_head_, first_value_;
  const float2* sums_;
  ChunkWalk<float, int> walk_;
  int lane_ = static_cast<int>(threadIdx.x % 32);
};

}  // namespace detail
}  // namespace heddle::kernels::cuda
