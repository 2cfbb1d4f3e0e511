// How the norm backward shares out its units: what its kernel knows when compiling, and what the host chooses.
#pragma once

#include "kernels/norm/cuda/norm.h"

namespace heddle::kernels::cuda {

enum class Sums { none, weight, weight_and_bias };  // as many as the number says

// Units that a team has under way at once, at most.
constexpr int kMostStages = 3;

// How the kernel goes over its units, chosen by the host.
struct RowsPlan {
  int count;   // of the units; with sums over rows, of the rows
  int each;    // from the first unit of a block to that of the next
  int span;    // from the first unit of a block to the end of its units
  int step;    // from a unit of a team to its next
  int stages;  // units under way
  // Whether the next unit is asked for before the sums over this one are known, where registers keep this one.
  bool is_early;
  EvictionPriority read, written;
};

// Whether registers hold a thread's part of the weight, and between the two passes over a unit what the first worked
// out. Others read and compute it again.
__host__ __device__ constexpr bool keeps_elements(int team, int vectors, Sums sums, Gate gate) {
  return sums != Sums::none && (vectors == 1 || (vectors == 2 && team == 256 && gate == Gate::none));
}

// Teams of a block: 256 threads, or 512 where registers hold no third block of 256: half as many rows of partials.
__host__ __device__ constexpr int block_teams(int team, int vectors, Sums sums, Gate gate) {
  const int threads = vectors > 1 && keeps_elements(team, vectors, sums, gate) ? 512 : 256;
  return team < threads ? threads / team : 1;
}

// Blocks that a multiprocessor holds by registers, at least.
__host__ __device__ constexpr int backward_blocks(int team, int vectors, Sums sums, Gate gate) {
  if (sums == Sums::none || team * block_teams(team, vectors, sums, gate) > 256) return 1;
  const bool is_small = gate == Gate::none || (sums == Sums::weight && team == 256);  // measured: nothing spills
  return vectors == 1 && is_small ? 3 : 2;
}

// Whether the one block on a multiprocessor, bound by instructions, keeps p - mean where registers allow it.
__host__ __device__ constexpr bool is_alone(int team, int vectors, Sums sums, Gate gate, Center center) {
  return sums != Sums::none && gate == Gate::none && team == 512 &&
         (vectors > 2 || (vectors == 2 && center == Center::yes));
}

// Bytes of shared memory that a block keeps the weight in.
template <class T>
__host__ __device__ constexpr int64_t weight_bytes(int team, int vectors, Sums sums, Gate gate, int64_t extent) {
  const bool is_shared = sums != Sums::none && !keeps_elements(team, vectors, sums, gate);
  return is_shared ? extent * static_cast<int64_t>(sizeof(T)) : 0;
}

}  // namespace heddle::kernels::cuda
