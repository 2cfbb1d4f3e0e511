// Building blocks shared by the forward and backward norm kernels.                     docs/layers.md#normalization
//
// A segment is the `extent` = dim / groups neighbouring features of one row that are normalized together: the whole
// row when groups == 1. Segments are numbered row * groups + group. A row group is the set of THREADS threads that
// works on one segment; a block has several row groups where segments are short. Thread `lane` of a row group holds
// the 16-byte vectors lane, lane + THREADS, lane + 2 * THREADS, ... of its segment.
#pragma once

#include <cstdint>

#include "kernels/common/cuda/activation.h"
#include "kernels/common/cuda/divider.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/reduce.h"
#include "kernels/common/cuda/vec.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/ordinary_range.h"

namespace heddle::kernels::cuda {

// Rows with 32-bit indices and strides: the address of a row is one multiply-add.
struct StridedRows {
  char* data = nullptr;
  uint32_t stride = 0;  // in bytes

  StridedRows() = default;
  explicit StridedRows(const RowsView& view)
      : data(static_cast<char*>(view.data)), stride(static_cast<uint32_t>(bytes(view))) {}
  __device__ __forceinline__ char* at(uint32_t row, uint32_t column_bytes) const {
    return data + uint64_t{row} * stride + column_bytes;
  }

  // Whether 32 bits are enough for the segments of rows of `groups` groups, and for the strides.
  template <class... Views>
  static bool fit(int64_t groups, const Views&... views) {
    return ((!views || (views.rows * groups <= INT32_MAX / 2 && bytes(views) <= INT32_MAX)) && ...);
  }

 private:
  static int64_t bytes(const RowsView& view) { return view.row_stride * static_cast<int64_t>(size_of(view.dtype)); }
};

// Index of the thread's row group. For row groups of at least a warp the value is uniform in the warp; __shfl_sync
// tells the compiler so, and it computes row addresses once a warp.
template <int THREADS, int ROW_GROUPS>
__device__ __forceinline__ int row_group_of_thread() {
  if constexpr (ROW_GROUPS == 1) return 0;
  const int row_group = threadIdx.x / THREADS;
  return THREADS >= 32 ? __shfl_sync(0xffffffffu, row_group, 0) : row_group;
}

// Barrier of the threads of one row group. Barrier 0 is left to __syncthreads().
template <int THREADS>
__device__ __forceinline__ void row_group_barrier(int row_group) {
  asm volatile("bar.sync %0, %1;" ::"r"(row_group + 1), "r"(THREADS) : "memory");
}

// Shared memory of row_group_sum: one partial sum a warp. Consecutive sums alternate between two buffers, so that one
// barrier a sum is enough.
template <class A, int THREADS, int ROW_GROUPS, int VALUES>
struct RowGroupStorage {
  static constexpr int kWarps = THREADS > 32 ? THREADS / 32 : 1;
  alignas(16) A warps[2][ROW_GROUPS][VALUES][kWarps];
};

struct NoOverlap {
  __device__ __forceinline__ void operator()() const {}
};

// value[i] = sum of value[i] over the threads of a row group, the same bits in all of them. Row groups of at most a
// warp use shuffles; larger ones shared memory and one row_group_barrier(). `buffer` alternates between 0 and 1.
// `overlap` is called once, after the barrier where there is one: its instructions hide the latency of what follows.
template <class A, int THREADS, int ROW_GROUPS, int MAX_VALUES, int VALUES, class Overlap = NoOverlap>
__device__ __forceinline__ void row_group_sum(A (&value)[VALUES],
                                              RowGroupStorage<A, THREADS, ROW_GROUPS, MAX_VALUES>& shared,
                                              int row_group, int& buffer, const Overlap& overlap = {}) {
  static_assert(VALUES <= MAX_VALUES);
  if constexpr (THREADS < 32 || (THREADS == 32 && VALUES == 1)) {
#pragma unroll
    for (int i = 0; i < VALUES; ++i) value[i] = group_sum<THREADS>(value[i]);
    overlap();
  } else if constexpr (THREADS == 32) {
    warp_all_gather(warp_reduce_scatter(value), value);
    overlap();
  } else {
    constexpr int kWarps = THREADS / 32, kLanes = lanes_per_sum<VALUES>;
    const int lane = threadIdx.x % 32, value_of_lane = lane / kLanes;
    auto& warps = shared.warps[buffer][row_group];
    const A warp_sum = warp_reduce_scatter(value);
    if (lane % kLanes == 0 && value_of_lane < VALUES) warps[value_of_lane][threadIdx.x % THREADS / 32] = warp_sum;
    row_group_barrier<THREADS>(row_group);
    overlap();
    if constexpr (kWarps >= 8) {  // lanes read different warps, then add up by shuffles
      constexpr int kReaders = kWarps < kLanes ? kWarps : kLanes;
      const A* from = &warps[min(value_of_lane, VALUES - 1)][lane % kReaders];
      A sum = from[0];
#pragma unroll
      for (int warp = kReaders; warp < kWarps; warp += kReaders) sum += from[warp];
      sum = group_sum<kReaders>(sum);
      if constexpr (VALUES == 1) {
        value[0] = sum;
      } else {
        warp_all_gather(sum, value);
      }
    } else {
#pragma unroll
      for (int i = 0; i < VALUES; ++i) {
        value[i] = warps[i][0];
#pragma unroll
        for (int warp = 1; warp < kWarps; ++warp) value[i] += warps[i][warp];
      }
    }
    buffer ^= 1;
  }
}

// Whether the mean is subtracted: known at compile time, or read from the options at run time.
enum class Center { no, yes, run_time };

// Position of the gate, known at compile time.
enum class Gate { none, pre, post };

inline Gate gate_of(const RowsView& gate, const NormOptions& options) {
  return !gate ? Gate::none : options.gate_position == GatePosition::pre ? Gate::pre : Gate::post;
}

// Scalars of a launch, computed on the host: the device needs no divisions and no conversions from double.
template <class A>
struct NormScalars {
  int64_t groups, segments;  // groups of a row, segments of all rows
  int64_t extent;            // features of a segment
  A inv_extent, eps, scale;
  OrdinaryVariance<A> ordinary;
  Divider by_groups;  // of numbers of segments

  NormScalars(const RowsView& x, const NormOptions& options)
      : groups(options.groups),
        segments(x.rows * options.groups),
        extent(x.cols / options.groups),
        inv_extent(A(1) / static_cast<A>(extent)),
        eps(static_cast<A>(options.eps)),
        scale(static_cast<A>(options.scale)),
        ordinary(options),
        by_groups(options.groups) {}
};

// act(gate) of N neighbours. The activation is chosen at run time, by one branch that all threads take together.
template <class T, int N>
__device__ __forceinline__ Vec<accumulate_t<T>, N> activate_all(Activation act, const Vec<T, N>& gate) {
  Vec<accumulate_t<T>, N> values = widen_all(gate);
  visit_activation(act, [&](auto chosen) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = activate<decltype(chosen)::value, T>(values[i]);
  });
  return values;
}

// What rounding made negative is 0; NaN stays, which max() would drop.
template <class A>
__device__ __forceinline__ A not_negative(A value) {
  return value < A(0) ? A(0) : value;
}

// 1 / sqrt(x), within 2 units in the last place.
__device__ __forceinline__ float inverse_root(float x) { return rsqrtf(x); }
__device__ __forceinline__ double inverse_root(double x) { return rsqrt(x); }

// How a segment is split over the threads of a row group.
template <int THREADS, int VECTORS>
struct RowGroupShape {
  static constexpr int kThreads = THREADS;
  static constexpr int kVectors = VECTORS;             // per thread
  static constexpr int kCapacity = THREADS * VECTORS;  // longest segment, in vectors
};

// Calls launch(shape) for the first of Shapes whose capacity holds `vectors`; false when none does.
template <class... Shapes, class Launch>
bool choose_shape(int64_t vectors, const Launch& launch) {
  bool done = false;
  const auto attempt = [&](auto shape) {
    if (done || vectors > decltype(shape)::kCapacity) return;
    launch(shape);
    done = true;
  };
  (attempt(Shapes{}), ...);
  return done;
}

// Whether every segment starts at a multiple of `width` features.
inline bool groups_vectorize(const RowsView& x, const NormOptions& options, int width) {
  return x.cols / options.groups % width == 0;
}

}  // namespace heddle::kernels::cuda
