// Load steps of the norm backward kernel: which items a row group works on, the prefetching of their inputs into shared
// memory, and the reads from there. K is a BackwardTraits.
//
// Inputs are copied by cp.async, 16 bytes at a time, into a ring of `stages` stages. Every thread copies the vectors
// that it reads itself later, so that no barrier is needed, and the latency of device memory is hidden whatever the
// options are. Dynamic shared memory: the weight (weight_bytes), then stages of (inputs, row groups, VECTORS, THREADS)
// vectors.
#pragma once

#include <cstdint>

#include "kernels/common/cuda/async.h"
#include "kernels/norm/cuda/norm_backward_plan.h"
#include "kernels/norm/cuda/norm_backward_tensors.h"

namespace heddle::kernels::cuda {

// Maps the items of BackwardPlan to rows and features.
template <class K>
struct BackwardItems {
  int groups, extent;
  int lane;
  int lane_extent;  // features from the thread's first one to the end of the segment; may be negative
  Divider by_groups;

  // Whether vector v of the thread lies inside the segment.
  __device__ __forceinline__ bool has(int v) const { return v * K::kThreads * K::kWidth < lane_extent; }
  __device__ __forceinline__ int segment(int item) const {
    return K::kHasSums ? item * groups + static_cast<int>(blockIdx.y) : item;
  }

  // The row, and in it the thread's first feature. Its further vectors follow at distances of THREADS * WIDTH.
  struct Place {
    int row, column;
  };
  __device__ __forceinline__ Place place(int item) const {
    const int first = lane * K::kWidth;
    if constexpr (K::kHasSums) return {item, static_cast<int>(blockIdx.y) * extent + first};
    if (groups == 1) return {item, first};
    const int row = static_cast<int>(by_groups.quotient(item));
    return {row, (item - row * groups) * extent + first};
  }
};

// Waits until the oldest of `stages` groups of copies has arrived.
__device__ __forceinline__ void wait_for_oldest(int stages) {
  static_assert(kMaxStages == 3);
  if (stages == 2) {
    __pipeline_wait_prior(1);
  } else if (stages == 1) {
    __pipeline_wait_prior(0);
  } else {
    __pipeline_wait_prior(2);
  }
}

// Issues the copies of one item after another. The copies of an item are one group: those for the first pass, then
// those for the second. Beyond the last item the group is empty, so that the number of groups in flight stays the same.
template <class K>
struct Prefetcher {
  using T = typename K::T;
  using A = typename K::A;
  const NormBackwardArgs& args;
  const BackwardTensors& tensors;
  const BackwardPlan& plan;
  const BackwardItems<K>& items;
  typename K::StatisticsArray& statistics;
  int end;                  // of the block's items
  uint32_t stages_address;  // of the thread's first vector in stage 0
  uint32_t stage_bytes;
  bool center;
  // Whether mean and inv_std are prefetched too. Otherwise inv_std is read when the item is processed.
  bool copies_statistics;

  __device__ __forceinline__ uint32_t stage_address(int stage) const {
    uint32_t address = stages_address + stage * stage_bytes;
    // Works around ptxas 13.0, which makes illegal copies when it adds a uniform register to this one.
    hide_from_compiler(address);
    return address;
  }

  using Place = typename BackwardItems<K>::Place;
  __device__ __forceinline__ void copy_input(int input, const Place& place, uint32_t to) const {
    const auto* from = reinterpret_cast<const T*>(tensors.inputs[input].at(place.row, place.column * sizeof(T)));
    hide_from_compiler(from);  // the vectors are then at constant offsets from one pointer
#pragma unroll
    for (int v = 0; v < K::kVectors; ++v) {
      if (!items.has(v)) continue;
      copy_async(to + input * K::kInputBytes + v * K::kVectorBytes, from + v * K::kThreads * K::kWidth, plan.read);
    }
  }

  __device__ __forceinline__ void copy_statistics(int item, int stage) const {
    const uint32_t to = shared_address(statistics[stage][threadIdx.x / K::kStatisticsThreads]);
    if (center) copy_async_float(to, vector<const A>(args.mean) + items.segment(item));
    copy_async_float(to + sizeof(A), vector<const A>(args.inv_std) + items.segment(item));
  }

  // Copies what the first pass over an item reads.
  __device__ __forceinline__ void first_pass(int item, int stage) const {
    if (item >= end) return;
    if (copies_statistics && threadIdx.x % K::kStatisticsThreads == 0) copy_statistics(item, stage);
    const uint32_t to = stage_address(stage);
    const Place place = items.place(item);
    copy_input(0, place, to);  // x and d_y
    copy_input(1, place, to);
    if (tensors.second_pass > 2) copy_input(2, place, to);
    if (tensors.second_pass > 3) copy_input(3, place, to);
  }

  // Copies what only the second pass reads, and ends the group of the item.
  __device__ __forceinline__ void second_pass(int item, int stage) const {
    if (item < end && tensors.second_pass < tensors.count) {
      const uint32_t to = stage_address(stage);
      const Place place = items.place(item);
#pragma unroll 1
      for (int input = tensors.second_pass; input < tensors.count; ++input) copy_input(input, place, to);
    }
    __pipeline_commit();
  }

  // Prefetches the first `stages` items of a row group.
  __device__ __forceinline__ void fill(int item, int step, int stages) const {
    for (int stage = 0; stage < stages; ++stage) {
      first_pass(item + stage * step, stage);
      second_pass(item + stage * step, stage);
    }
  }
};

// Issues the loads of the weight of the block's group: into `loaded` where registers keep it, else into shared memory.
// Without a weight both get ones.
template <class K>
__device__ __forceinline__ void load_weight(const NormBackwardArgs& args, const BackwardItems<K>& items, uint4* shared,
                                            typename K::ParameterVec (&loaded)[K::kVectors]) {
  using P = typename K::P;
  constexpr int kPart = vector_width<P>;  // of one load; a vector takes several where P is wider than T
  using Part = Vec<P, kPart>;
  const P one = narrow<P>(typename K::A(1));
  const P* from = vector<const P>(args.weight) + int64_t{blockIdx.y} * items.extent;
  if constexpr (K::kKeepsWeight) {
#pragma unroll
    for (int v = 0; v < K::kVectors; ++v) {
      const P* part = from + (items.lane + v * K::kThreads) * K::kWidth;
#pragma unroll
      for (int i = 0; i < K::kWidth / kPart; ++i) {
        reinterpret_cast<Part*>(&loaded[v])[i] = load_if<kPart>(args.weight && items.has(v), part + i * kPart, one);
      }
    }
  } else {
    auto* to = reinterpret_cast<P*>(shared);
    Part ones;
#pragma unroll
    for (int i = 0; i < kPart; ++i) ones[i] = one;
    for (int at = threadIdx.x * kPart; at < items.extent; at += K::kBlockThreads * kPart) {
      if (args.weight) {
        copy_async(shared_address(to + at), from + at);
      } else {
        store(to + at, ones);
      }
    }
  }
}

// kept = loaded, converted where the weight is kept in the type of arithmetic. This waits for the loads.
template <class K>
__device__ __forceinline__ void keep_weight(const typename K::ParameterVec (&loaded)[K::kVectors],
                                            typename K::WeightVec (&kept)[K::kVectors]) {
#pragma unroll
  for (int v = 0; v < K::kVectors; ++v) {
    if constexpr (K::kKeepsWideWeight) {
      kept[v] = widen_all(loaded[v]);
    } else {
      kept[v] = loaded[v];
    }
  }
}

// A segment in shared memory, and its statistics.
template <class K>
struct SegmentInputs {
  using T = typename K::T;
  using A = typename K::A;
  const NormBackwardArgs& args;
  typename K::WeightVec (&kept_weight)[K::kVectors];
  uint32_t weight_address;           // of the thread's first vector of the weight in shared memory
  uint32_t address;                  // of the thread's first vector of x
  int residual_offset, gate_offset;  // in bytes from there; negative when absent
  int column;                        // of the thread's first feature in the row
  A mean, inv_std;

  __device__ __forceinline__ SegmentInputs(const NormBackwardArgs& args, const BackwardTensors& tensors,
                                           typename K::WeightVec (&kept_weight)[K::kVectors], uint32_t weight_address,
                                           uint32_t address, int column, A mean, A inv_std)
      : args(args),
        kept_weight(kept_weight),
        weight_address(weight_address),
        address(address),
        residual_offset(tensors.residual * K::kInputBytes),
        gate_offset(tensors.gate * K::kInputBytes),
        column(column),
        mean(mean),
        inv_std(inv_std) {}

  __device__ __forceinline__ typename K::StorageVec vector_at(int offset, int v) const {
    return load_shared<T>(address + offset + v * K::kVectorBytes);
  }

  // x, or x + residual rounded to the storage type, as the forward pass has it.
  __device__ __forceinline__ typename K::WideVec r(int v) const {
    typename K::WideVec r = widen_all(vector_at(0, v));
    if (residual_offset < 0) return r;
    const typename K::WideVec residual = widen_all(vector_at(residual_offset, v));
#pragma unroll
    for (int i = 0; i < K::kWidth; ++i) r[i] += residual[i];
    return widen_all(narrow_all<T>(r));
  }
  __device__ __forceinline__ typename K::WideVec d_y(int v) const { return widen_all(vector_at(K::kInputBytes, v)); }
  __device__ __forceinline__ typename K::WideVec gate(int v) const { return widen_all(vector_at(gate_offset, v)); }

  __device__ __forceinline__ typename K::WideVec shared_weight(int v) const {
    using P = typename K::P;
    const uint32_t from = weight_address + v * K::kThreads * K::kParameterBytes;
    if constexpr (sizeof(P) == sizeof(T)) {
      return widen_all(load_shared<P>(from));
    } else {
      typename K::WideVec weight;
#pragma unroll
      for (int i = 0; i < K::kParameterBytes / 16; ++i) {
        const Vec<P, vector_width<P>> part = load_shared<P>(from + i * 16);
#pragma unroll
        for (int k = 0; k < vector_width<P>; ++k) weight[i * vector_width<P> + k] = part[k];
      }
      return weight;
    }
  }
  __device__ __forceinline__ typename K::WideVec weight(int v) const {
    if constexpr (K::kKeepsWideWeight) {
      return kept_weight[v];
    } else if constexpr (K::kKeepsWeight) {
      hide_from_compiler(kept_weight[v]);
      return widen_all(kept_weight[v]);
    } else if constexpr (K::kHasSums) {
      return shared_weight(v);
    } else {
      if (!K::kHasFormsForFlags && !args.weight) {
        typename K::WideVec ones;
#pragma unroll
        for (int i = 0; i < K::kWidth; ++i) ones[i] = typename K::A(1);
        return ones;
      }
      return load_wide<K::kWidth>(vector<const typename K::P>(args.weight) + column + v * K::kThreads * K::kWidth);
    }
  }
};

// Reads the statistics of a segment that the Prefetcher brought: inv_std, and mean when `center`. One thread copied
// them for its warp, hence the barriers: the first makes them visible to the others, the second lets the stage be
// overwritten.
template <class K>
__device__ __forceinline__ void read_statistics(const typename K::StatisticsArray& statistics, int stage, bool center,
                                                typename K::A& mean, typename K::A& inv_std) {
  __syncwarp();
  const typename K::A* own = statistics[stage][threadIdx.x / K::kStatisticsThreads];
  if (center) mean = own[0];
  inv_std = own[1];
  __syncwarp();
}

}  // namespace heddle::kernels::cuda
