// The loader of scan_warpgroup.h: one warp, which walks the chunks and copies their rows to shared memory.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/scan_warpgroup_shape.h"

namespace heddle::kernels::cuda {
namespace detail {

// Copies rows of one head into a matrix; rows beyond the chunk's and features beyond the view's become 0.
template <int COLS>
class SwizzledCopier {
 public:
  __device__ __forceinline__ SwizzledCopier(const HeadsView& view, int64_t batch, int64_t head_index, int64_t offset,
                                            bool from_end) {
    const unsigned lane = threadIdx.x % 32, col = lane % kUnits * 8;
    row_ = static_cast<int>(lane / kUnits);
    first_ = head<const bf16>(view, batch, 0, head_index) + offset + col + (from_end ? -row_ : row_) * view.length_stride;
    is_there_ = offset + col < view.dim;
    is_whole_ = view.dim - offset >= COLS;
    to_ = unit_offset(static_cast<unsigned>(row_), col);
  }

  // `token` is that of row 0.
  __device__ __forceinline__ void copy(const HeadsView& view, bool from_end, int64_t token, int rows,
                                       SwizzledMatrix<bf16, 64, COLS>& matrix) const {
    const int64_t step = (from_end ? -kRowsAtOnce : kRowsAtOnce) * view.length_stride;
    const bf16* from = first_ + token * view.length_stride;
    const uint32_t to = shared_address(matrix.data) + to_;
    if (rows == 64 && is_whole_) {
#pragma unroll
      for (int r = 0; r < 64; r += kRowsAtOnce, from += step) copy_async(place(to, r), from);
    } else {
#pragma unroll 1
      for (int r = 0; r < 64; r += kRowsAtOnce, from += step) {
        copy_async_if(is_there_ && row_ + r < rows, place(to, r), from);
      }
    }
  }

 private:
  static constexpr int kUnits = COLS / 8, kRowsAtOnce = 32 / kUnits;

  // The address r rows further on. row_ and r have no bits in common, and neither have their places in the swizzle.
  static __device__ __forceinline__ uint32_t place(uint32_t to, int r) { return (to + r * 128) ^ (r % 8 * 16); }

  const bf16* first_;
  uint32_t to_;
  int row_;
  bool is_there_, is_whole_;
};

// OUT: the scan computes out; else the state alone.
template <class Shape, bool OUT>
class ScanLoader {
 public:
  using Shared = typename Shape::Shared;
  static constexpr int kArrivals = 33;  // at `loaded`: of 32 lanes when they have copied, and of what is published

  __device__ __forceinline__ ScanLoader(const ScanArgs<float>& args, Shared& shared)
      : ScanLoader(args, shared, WarpgroupPlace<Shape>(args)) {}

  __device__ __forceinline__ void run() {
    ScanChunk chunk = walk_.next();
    int stage = 0;
    for (unsigned t = 0;; ++t) {
      const ScanChunk next = chunk.rows > 0 ? walk_.next() : ScanChunk{};
      if (t >= Shape::kStages) shared_.free[stage].wait(parity_of(t / Shape::kStages - 1));
      if (chunk.rows > 0) load(chunk, stage, t);
      arrive_when_copied(shared_.loaded[stage]);
      if (threadIdx.x % 32 == 0) {
        publish(chunk, next, shared_.chunks[stage]);
        shared_.loaded[stage].arrive();
      }
      if (chunk.rows == 0) return;
      chunk = next;
      stage = stage == Shape::kStages - 1 ? 0 : stage + 1;
    }
  }

 private:
  __device__ __forceinline__ ScanLoader(const ScanArgs<float>& args, Shared& shared, const WarpgroupPlace<Shape>& place)
      : args_(args),
        shared_(shared),
        query_(args.query, place.batch, place.head, 0, args.from_end),
        key_(args.key, place.batch, place.head / args.group, 0, args.from_end),
        value_(args.value, place.batch, place.head / args.group, place.first_value, args.from_end),
        walk_(args, args.span(), place.state_head, Shape::kRows) {}

  __device__ __forceinline__ void load(const ScanChunk& chunk, int stage, unsigned t) {
    const int64_t token = args_.token(chunk, 0);
    auto& rows = shared_.rows[stage];
    key_.copy(args_.key, args_.from_end, token, chunk.rows, rows.key);
    value_.copy(args_.value, args_.from_end, token, chunk.rows, rows.value);
    if constexpr (OUT) {
      if (t >= 2) shared_.query_free[t % 2].wait(parity_of(t / 2 - 1));
      query_.copy(args_.query, args_.from_end, token, chunk.rows, shared_.query[t % 2]);
    }
  }

  // Arrives for this thread once its copies so far have ended.
  static __device__ __forceinline__ void arrive_when_copied(const SharedBarrier& barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier.address()) : "memory");
  }

  __device__ __forceinline__ void publish(const ScanChunk& chunk, const ScanChunk& next,
                                          typename Shape::Chunk& to) const {
    to.begin = chunk.begin;
    to.rows = chunk.rows;
    to.starts_anew = chunk.starts_anew;
    // What comes before, in time, a token at which the state starts anew knows nothing of what comes after.
    to.is_forgotten = args_.from_end ? chunk.starts_anew : next.starts_anew;
  }

  const ScanArgs<float>& args_;
  Shared& shared_;
  SwizzledCopier<Shape::kKeys> query_, key_;
  SwizzledCopier<Shape::kValues> value_;
  ChunkWalk<float> walk_;
};

}  // namespace detail
}  // namespace heddle::kernels::cuda
