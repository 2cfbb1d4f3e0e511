// The norm forward kernel for segments that fit a row group. kernels/norm/norm.h has the formula.
// Writes (=) y, r, mean and inv_std.
// Bytes: x, residual and gate are read once, y and r are written once.
//
// A segment stays in registers in its storage type and is widened again for each pass (mean, squares, output). That
// takes half of the registers, so that more segments wait for memory at once. All loads are issued before the first
// use. Threads beyond the end of a segment read its last vector and leave it out of the sums, so that no load waits for
// a condition. A segment whose variance has left the ordinary range is computed again from memory, by wide_group.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/common/cuda/async.h"
#include "kernels/norm/cuda/norm.h"
#include "kernels/norm/cuda/wide_team.h"

namespace heddle::kernels::cuda {

// The tensors as large as x of a forward pass.
struct ForwardTensors {
  StridedRows x, residual, gate, y, r;

  explicit ForwardTensors(const NormForwardArgs& args)
      : x(args.x), residual(args.residual), gate(args.gate), y(args.y), r(args.r) {}
  static bool fit(const NormForwardArgs& args) {
    return StridedRows::fit(args.options.groups, args.x, args.residual, args.gate, args.y, args.r);
  }
};

// A RowGroupShape, the threads of a block, and the minimum number of blocks on a multiprocessor, which bounds the
// registers of a thread.
template <int THREADS, int VECTORS, int MIN_BLOCKS, int BLOCK_THREADS = std::max(THREADS, 256)>
struct ForwardShape : RowGroupShape<THREADS, VECTORS> {
  static constexpr int kBlockThreads = BLOCK_THREADS;
  static constexpr int kMinBlocks = MIN_BLOCKS;
  static constexpr int kRowGroups = BLOCK_THREADS / THREADS;
  // Whether a block copies weight and bias into shared memory once for its row groups, when groups == 1. Longer
  // segments leave them to the first-level cache.
  static constexpr bool kSharesParameters = RowGroupShape<THREADS, VECTORS>::kCapacity < 2048;
};

// What one instance of the kernel knows at compile time. FULL: segments fill their row group, and nothing checks for
// their end. P is the storage type of weight and bias.
template <class T_, class Shape_, Gate GATE, bool RESIDUAL, bool FULL, Center CENTER, class P_ = T_>
struct ForwardTraits {
  using T = T_;
  using P = P_;
  using A = accumulate_t<T>;
  using Shape = Shape_;
  static constexpr int kThreads = Shape::kThreads, kVectors = Shape::kVectors, kWidth = vector_width<T>;
  // float takes more registers in short segments, for exact exponentials and quotients, and fewer in long ones.
  static constexpr bool kIsLong = GATE == Gate::post && Shape::kThreads == 512;
  static constexpr int kMinBlocks =
      sizeof(T) == 4 ? std::clamp(Shape::kMinBlocks, kIsLong ? 2 : 1, 5) : Shape::kMinBlocks;
  static constexpr Gate kGate = GATE;
  static constexpr bool kHasGate = GATE != Gate::none, kHasResidual = RESIDUAL, kFull = FULL;
  // In full precision, weight and bias are left to the first-level cache.
  static constexpr bool kSharesParameters = Shape::kSharesParameters && sizeof(P) == sizeof(T);
  static constexpr Center kCenter = CENTER;

  using StorageVec = Vec<T, kWidth>;
  using WideVec = Vec<A, kWidth>;
};

// Where a thread's segment lies in memory, and what part of it the thread holds.
template <class K>
struct ForwardSegment {
  int lane, vectors;  // vectors of the segment
  int row, first;     // first feature of the segment in the row

  // Whether vector v of the thread lies inside the segment, and its first feature in the segment.
  __device__ __forceinline__ bool has(int v) const { return K::kFull || lane + v * K::kThreads < vectors; }
  __device__ __forceinline__ int offset(int v) const {
    return (K::kFull ? lane + v * K::kThreads : min(lane + v * K::kThreads, vectors - 1)) * K::kWidth;
  }
  __device__ __forceinline__ typename K::T* in(const StridedRows& view) const {
    return reinterpret_cast<typename K::T*>(view.at(row, first * static_cast<int>(sizeof(typename K::T))));
  }
  __device__ __forceinline__ void load(const StridedRows& view, typename K::StorageVec (&to)[K::kVectors]) const {
    const typename K::T* from = in(view);
#pragma unroll
    for (int v = 0; v < K::kVectors; ++v) to[v] = load_stream<K::kWidth>(from + offset(v));
  }
};

// What a thread holds of its segment.
template <class K>
struct ForwardValues {
  typename K::StorageVec r[K::kVectors];                   // x, then x + residual
  typename K::WideVec act[K::kHasGate ? K::kVectors : 1];  // act(gate); p = r * act(gate) when the gate is pre

  __device__ __forceinline__ typename K::WideVec p(int v) const {
    if constexpr (K::kGate == Gate::pre) {
      return act[v];
    } else {
      return widen_all(r[v]);
    }
  }
};

// Copies weight and bias, `vectors` vectors each, into shared memory. The copies are awaited by the caller.
template <class K>
__device__ __forceinline__ void copy_parameters(const NormForwardArgs& args, int vectors, uint4* shared) {
  const auto copy = [&](const VectorView& view, uint32_t to) {
    if (!view) return;
    for (int at = threadIdx.x; at < vectors; at += K::Shape::kBlockThreads) {
      copy_async(to + at * 16, vector<const typename K::T>(view) + at * K::kWidth);
    }
  };
  copy(args.weight, shared_address(shared));
  copy(args.bias, shared_address(shared + vectors));
  __pipeline_commit();
}

// r += residual, rounded to the storage type; writes r to memory where it is wanted.
template <class K>
__device__ __forceinline__ void add_residual(const ForwardSegment<K>& segment, bool active, const StridedRows& r_rows,
                                             const typename K::StorageVec (&residual)[K::kVectors],
                                             typename K::StorageVec (&r)[K::kVectors]) {
  typename K::T* to = segment.in(r_rows);
#pragma unroll
  for (int v = 0; v < K::kVectors; ++v) {
    typename K::WideVec sum = widen_all(r[v]);
    const typename K::WideVec more = widen_all(residual[v]);
#pragma unroll
    for (int i = 0; i < K::kWidth; ++i) sum[i] += more[i];
    r[v] = narrow_all<typename K::T>(sum);
    if (r_rows.data && active && segment.has(v)) store(to + segment.offset(v), r[v]);
  }
}

// Sets values.act.
template <class K>
__device__ __forceinline__ void activate_gate(const NormForwardArgs& args,
                                              const typename K::StorageVec (&gate)[K::kVectors],
                                              ForwardValues<K>& values) {
#pragma unroll
  for (int v = 0; v < K::kVectors; ++v) {
    values.act[v] = activate_all(args.options.gate_act, gate[v]);
    if constexpr (K::kGate == Gate::pre) {
      const typename K::WideVec r = widen_all(values.r[v]);
#pragma unroll
      for (int i = 0; i < K::kWidth; ++i) values.act[v][i] *= r[i];
    }
  }
}

// Means over a segment.
template <class K>
struct SegmentMeans {
  using A = typename K::A;
  using Storage = RowGroupStorage<A, K::kThreads, K::Shape::kRowGroups, 2>;
  const ForwardSegment<K>& segment;
  ForwardValues<K>& values;
  Storage& storage;
  int row_group;
  int& buffer;
  const NormScalars<A>& scalars;

  // means[k] = mean over the segment of the k-th number of each element; add(p, sums) adds those of p to `sums`.
  template <int COUNT, class Add>
  __device__ __forceinline__ void operator()(A (&means)[COUNT], const Add& add) const {
#pragma unroll
    for (int v = 0; v < K::kVectors; ++v) {
      const typename K::WideVec p = values.p(v);
      A sums[COUNT] = {};
#pragma unroll
      for (int i = 0; i < K::kWidth; ++i) add(p[i], sums);
      if (segment.has(v)) {
#pragma unroll
        for (int k = 0; k < COUNT; ++k) means[k] += sums[k];
      }
    }
    row_group_sum(means, storage, row_group, buffer);
#pragma unroll
    for (int k = 0; k < COUNT; ++k) means[k] *= scalars.inv_extent;
      // The next pass widens r again instead of keeping the wide values in registers.
#pragma unroll
    for (int v = 0; v < K::kVectors; ++v) hide_from_compiler(values.r[v]);
  }
};

// The mean as it was rounded, and the mean of p - mean: what rounding left.
template <class A>
struct SegmentStatistics {
  A mean, shift, variance;
};

// One pass is enough for the variance while the mean is not larger than the deviations. Else a second pass takes them
// from the rounded mean.
template <class K>
__device__ __forceinline__ SegmentStatistics<typename K::A> compute_statistics(const SegmentMeans<K>& mean_of,
                                                                               bool center) {
  using A = typename K::A;
  A mean = A(0), shift = A(0), variance;
  if (center) {
    A moments[2] = {};
    mean_of(moments, [](A p, A(&sums)[2]) {
      sums[0] += p;
      sums[1] += p * p;
    });
    mean = moments[0];
    variance = moments[1] - mean * mean;
    const bool again = !(mean * mean <= variance);  // the same in all threads of a row group
    if (K::kThreads < 32 ? __any_sync(0xffffffffu, again) : again) {
      A deviations[2] = {};
      mean_of(deviations, [mean](A p, A(&sums)[2]) {
        const A q = p - mean;
        sums[0] += q;
        sums[1] += q * q;
      });
      if (again) {
        shift = deviations[0];
        variance = not_negative(deviations[1] - shift * shift);
      }
    }
  } else {
    A squares[1] = {};
    mean_of(squares, [](A p, A(&sums)[1]) { sums[0] += p * p; });
    variance = squares[0];
  }
  return {mean, shift, variance};
}

// y = normalized(p) * weight + bias, times act(gate) when the gate is post. `shared` holds weight and bias when
// is_shared.
template <class K, class Normalized>
__device__ __forceinline__ void write_y(const NormForwardArgs& args, const ForwardSegment<K>& segment,
                                        const ForwardValues<K>& values, const uint4* shared, bool is_shared,
                                        typename K::T* to, const Normalized& normalized) {
#pragma unroll
  for (int v = 0; v < K::kVectors; ++v) {
    if (!segment.has(v)) continue;
    typename K::WideVec y = values.p(v);
#pragma unroll
    for (int i = 0; i < K::kWidth; ++i) y[i] = normalized(y[i]);
    const auto parameter = [&](const VectorView& view, const uint4* shared) {
      if (!is_shared) {
        return load_wide<K::kWidth>(vector<const typename K::P>(view) + segment.first + segment.offset(v));
      }
      return widen_all(*reinterpret_cast<const typename K::StorageVec*>(shared + segment.lane + v * K::kThreads));
    };
    if (args.weight) {
      const typename K::WideVec weight = parameter(args.weight, shared);
#pragma unroll
      for (int i = 0; i < K::kWidth; ++i) y[i] *= weight[i];
    }
    if (args.bias) {
      const typename K::WideVec bias = parameter(args.bias, shared + segment.vectors);
#pragma unroll
      for (int i = 0; i < K::kWidth; ++i) y[i] += bias[i];
    }
    if constexpr (K::kGate == Gate::post) {
#pragma unroll
      for (int i = 0; i < K::kWidth; ++i) y[i] *= values.act[v][i];
    }
    store_narrow(to + segment.offset(v), y);
  }
}

// K is a ForwardTraits. Grid: row groups for all segments. Dynamic shared memory: weight and bias when they are shared.
template <class K>
__global__ void __launch_bounds__(K::Shape::kBlockThreads, K::kMinBlocks)
    norm_forward_rows(const __grid_constant__ NormForwardArgs args, const __grid_constant__ ForwardTensors tensors,
                      const __grid_constant__ NormScalars<typename K::A> scalars) {
  using A = typename K::A;
  const bool center = K::kCenter == Center::run_time ? args.options.center : K::kCenter == Center::yes;
  extern __shared__ uint4 parameters[];
  __shared__ typename SegmentMeans<K>::Storage sum_storage;
  const int row_group = row_group_of_thread<K::kThreads, K::Shape::kRowGroups>();
  const int lane = threadIdx.x % K::kThreads;
  const int own = static_cast<int>(blockIdx.x) * K::Shape::kRowGroups + row_group;
  const int segments = static_cast<int>(scalars.segments);
  const bool active = own < segments;
  const int index = active ? own : segments - 1;
  const int groups = static_cast<int>(scalars.groups);
  int row_index = index;
  if constexpr (K::kThreads < 64) {
    if (groups != 1) row_index = static_cast<int>(scalars.by_groups.quotient(index));
  } else {  // long segments have no registers to spare, and a division is little beside their work
    row_index = groups == 1 ? index : index / groups;
  }
  const int extent = static_cast<int>(scalars.extent), vectors = extent / K::kWidth;
  const int first = groups == 1 ? 0 : (index - row_index * groups) * extent;
  const ForwardSegment<K> segment{lane, vectors, row_index, first};
  int buffer = 0;

  ForwardValues<K> values;
  [[maybe_unused]] typename K::StorageVec gate[K::kVectors], residual[K::kVectors];
  segment.load(tensors.x, values.r);
  if constexpr (K::kHasGate) segment.load(tensors.gate, gate);
  if constexpr (K::kHasResidual) segment.load(tensors.residual, residual);
  const bool is_shared = K::kSharesParameters && groups == 1 && (args.weight || args.bias);
  if (is_shared) copy_parameters<K>(args, vectors, parameters);
  if constexpr (K::kHasResidual) add_residual(segment, active, tensors.r, residual, values.r);
  if constexpr (K::kHasGate) activate_gate(args, gate, values);

  const SegmentMeans<K> mean_of{segment, values, sum_storage, row_group, buffer, scalars};
  const SegmentStatistics<A> statistics = compute_statistics(mean_of, center);
  if (is_shared) {
    __pipeline_wait_prior(0);
    __syncthreads();
  }
  const A variance = statistics.variance + scalars.eps;
  const bool is_wide = !scalars.ordinary.holds(variance, statistics.shift);  // the same in all threads of a row group
  if (active && !is_wide) {
    const A inv_std = inverse_root(variance);
    if (lane == 0) {
      if (args.inv_std) vector<A>(args.inv_std)[index] = inv_std;
      if (args.mean) vector<A>(args.mean)[index] = statistics.mean + statistics.shift;
    }
    const A factor = inv_std * scalars.scale;
    typename K::T* const y = segment.in(tensors.y);
    if (center) {
      const A mean = statistics.mean, offset = statistics.shift * factor;
      write_y(args, segment, values, parameters, is_shared, y, [&](A p) { return (p - mean) * factor - offset; });
    } else {
      write_y(args, segment, values, parameters, is_shared, y, [&](A p) { return p * factor; });
    }
  }
  if (any_row_group_of_warp<K::kThreads>(is_wide)) {
    using Team = WideTeam<K::kThreads, K::Shape::kRowGroups>;
    __shared__ typename Team::Storage wide_storage;
    int wide_buffer = 0;
    const Team team{wide_storage, wide_buffer, row_group, lane, is_wide && active};
    normalize_wide<typename K::T, typename K::P>(args, team, {row_index, first, extent, index});
  }
}

// Host: whether norm_forward_rows can take these arguments, if a row group holds the segments.
template <class T>
bool vectorizes(const NormForwardArgs& args) {
  constexpr int kWidth = vector_width<T>;
  return ForwardTensors::fit(args) && groups_vectorize(args.x, args.options, kWidth) &&
         can_vectorize_all(kWidth, args.x, args.residual, args.gate, args.y, args.r, args.weight, args.bias);
}

}  // namespace heddle::kernels::cuda
