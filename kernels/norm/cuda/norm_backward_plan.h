// What the norm backward kernel knows at compile time (BackwardTraits) and what the host chooses for a launch
// (BackwardPlan).
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/norm/cuda/norm.h"

namespace heddle::kernels::cuda {

// Which sums over rows a launch computes: d_weight, d_bias. The value is their number.
enum class ParameterSums { none, weight, weight_and_bias };

// Maximum number of pipeline stages (segments in flight per row group).
constexpr int kMaxStages = 3;

// How a launch walks over its items. Without parameter sums an item is a segment. With them an item is a row, and the
// block's y index is the group that it works on, so that a thread keeps the same columns for all rows.
struct BackwardPlan {
  int items;         // in all, for each y index
  int block_stride;  // from the first item of a block to that of the next
  int block_span;    // from the first item of a block to the end of its items
  int step;          // from an item of a row group to its next
  int stages;        // segments in flight per row group
  // Whether the next segment is prefetched before the sums over this one are known. Only kernels that keep the elements
  // in registers do so: the others still need the stage.
  bool prefetch_during_sum;
  EvictionPriority read, written;  // L2 eviction policies
};

// What one instance of the kernel knows at compile time. THREADS and VECTORS are those of RowGroupShape; P is the
// storage type of weight and bias. Which values registers hold was chosen by measuring; docs/notes/norm.md.
template <class T_, int THREADS, int VECTORS, ParameterSums SUMS, Gate GATE, Center CENTER, class P_ = T_>
struct BackwardTraits {
  using T = T_;
  using P = P_;
  using A = accumulate_t<T>;
  static constexpr int kThreads = THREADS, kVectors = VECTORS, kWidth = vector_width<T>;
  static constexpr Gate kGate = GATE;
  static constexpr Center kCenter = CENTER;
  static constexpr int kSums = static_cast<int>(SUMS);
  static constexpr bool kHasSums = SUMS != ParameterSums::none;

  // Whether registers hold the thread's part of the weight, for all rows; and, between the two passes over a segment,
  // the elements that the first pass computed. Otherwise the second pass reads and computes them again.
  static constexpr bool kKeepsWeight =
      kHasSums && (VECTORS == 1 || (VECTORS == 2 && THREADS == 256 && GATE == Gate::none));
  static constexpr bool kKeepsElements = kKeepsWeight || (!kHasSums && VECTORS == 1);
  // 256 threads, or 512 where registers hold no third block of 256; the larger block writes half as many rows of
  // partial sums.
  static constexpr int kMinBlockThreads = kKeepsWeight && VECTORS > 1 ? 512 : 256;
  static constexpr int kBlockThreads = std::max(THREADS, kMinBlockThreads);
  static constexpr int kRowGroups = kBlockThreads / THREADS;
  // Minimum number of blocks on a multiprocessor, which bounds the registers of a thread. No choice makes it spill.
  static constexpr int min_blocks() {
    const bool has_one_sum = SUMS == ParameterSums::weight, is_centered = CENTER != Center::no;
    const bool is_float = sizeof(T) == 4;
    if (!kHasSums) {
      if (GATE == Gate::none) return 1024 / kBlockThreads;
      return VECTORS > 1 ? 1 : is_float && !(GATE == Gate::pre && THREADS == 32) ? 3 : 2;
    }
    if (kBlockThreads > 256) {
      if (THREADS < 512 || VECTORS != 2) return 1;
      const bool is_plain = GATE == Gate::none && !is_centered;
      return is_plain ? (has_one_sum || is_float ? 2 : 1) : is_float && has_one_sum && GATE == Gate::pre ? 2 : 1;
    }
    if (VECTORS > 1) return THREADS < 256 && GATE == Gate::none && has_one_sum ? 3 : 2;
    if (GATE == Gate::none || (GATE == Gate::post && !is_centered)) return 3;
    return has_one_sum && (GATE == Gate::post || !is_centered || THREADS == 256) ? 3 : 2;
  }
  static constexpr int kMinBlocks = min_blocks();
  // Whether the kernel runs one block on a multiprocessor and is bound by instructions rather than by memory.
  static constexpr bool kInstructionBound =
      kHasSums && GATE == Gate::none && THREADS == 512 && (VECTORS > 2 || (VECTORS == 2 && CENTER == Center::yes));

  // Distances in shared memory: from one vector of a thread to its next, from one input of a stage to the next.
  static constexpr int kVectorBytes = THREADS * 16, kInputBytes = kRowGroups * VECTORS * kVectorBytes;
  static constexpr int kParameterBytes = kWidth * static_cast<int>(sizeof(P));  // of the weight of one vector

  // The weight is kept in the type of arithmetic; otherwise in the storage type, which takes fewer registers.
  static constexpr bool kKeepsWideWeight = kKeepsWeight && GATE == Gate::none && VECTORS == 1;
  // Only the costly part of a gate's activation is kept.
  static constexpr bool kKeepsCore =
      !kKeepsElements && GATE != Gate::none && SUMS != ParameterSums::weight_and_bias && THREADS < 512;
  // Only p - mean is kept.
  static constexpr bool kKeepsDeviation = kInstructionBound && VECTORS < 4;
  // Loop counters and addresses are held in registers instead of being computed again; a gate leaves none for them.
  static constexpr bool kHoldsCounters = kKeepsWeight && GATE == Gate::none;
  static constexpr bool kHoldsAddresses = GATE == Gate::none;
  // The kernel branches on the activation once, around all rows, instead of in each row.
  static constexpr bool kBranchesOnce = GATE == Gate::post && kKeepsWeight && THREADS == 256;
  // Whether the passes exist for each of the flags `center` and `weighted`. Where the gate comes first and there are no
  // parameter sums they are too long for it, and subtract a mean of 0 and multiply by a weight of 1 instead: 0.66 of
  // the time. Where the gate comes last that takes up to 1.15 times as long.
  static constexpr bool kHasFormsForFlags = kHasSums || GATE != Gate::pre;
  // Vectors that the second pass works on together.
  static constexpr int kTileVectors = kKeepsElements ? VECTORS : 1;

  // Threads that share one copy of a segment's statistics.
  static constexpr int kStatisticsThreads = THREADS < 32 ? THREADS : 32;

  // Bytes of shared memory that hold the weight of a block: none where registers do, nor without parameter sums, where
  // neighbouring segments may belong to different groups.
  __host__ __device__ static constexpr int64_t weight_bytes(int64_t extent) {
    return kHasSums && !kKeepsWeight ? extent * static_cast<int64_t>(sizeof(P)) : 0;
  }

  using StorageVec = Vec<T, kWidth>;
  using WideVec = Vec<A, kWidth>;
  using ParameterVec = Vec<P, kWidth>;  // as weight and bias are stored
  using WeightVec = Vec<std::conditional_t<kKeepsWideWeight, A, P>, kWidth>;
  using ParameterSumArray = A[kHasSums ? kSums : 1][VECTORS][kWidth];
  using SumStorage = RowGroupStorage<A, THREADS, kRowGroups, 3>;
  using StatisticsArray = A[kMaxStages][kBlockThreads / kStatisticsThreads][2];
};

}  // namespace heddle::kernels::cuda
