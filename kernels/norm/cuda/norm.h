// What the forward and backward kernels of the norm family share.                      docs/layers.md#normalization
// A unit is one group of one row: `extent` = dim / groups neighbouring features that are normalized together. A team of
// TEAM threads works on a unit; several teams share a block where units are short.
#pragma once

#include "kernels/common/cuda/activation.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/reduce.h"
#include "kernels/common/cuda/vec.h"
#include "kernels/norm/norm.h"

namespace heddle::kernels::cuda {

// Rows that 32 bits count: one multiplication finds the address of a row.
struct StridedRows {
  char* data = nullptr;
  uint32_t stride = 0;  // in bytes

  StridedRows() = default;
  explicit StridedRows(const RowsView& view)
      : data(static_cast<char*>(view.data)), stride(static_cast<uint32_t>(bytes(view))) {}
  __device__ __forceinline__ char* at(uint32_t row, uint32_t column_bytes) const {
    return data + uint64_t{row} * stride + column_bytes;
  }

  // Whether 32 bits are enough for the units of rows of `groups` groups, and for the strides.
  template <class... Views>
  static bool fit(int64_t groups, const Views&... views) {
    return ((!views || (views.rows * groups <= INT32_MAX / 2 && bytes(views) <= INT32_MAX)) && ...);
  }

 private:
  static int64_t bytes(const RowsView& view) { return view.row_stride * static_cast<int64_t>(size_of(view.dtype)); }
};

// Sums over a team. Teams of a warp or less exchange by shuffles; larger ones through shared memory and a barrier of
// their own, with two buffers in turn so that one barrier a sum is enough. Every thread gets the same bits.
template <class A, int TEAM, int TEAMS, int VALUES>
struct TeamSums {
  static constexpr int kWarps = TEAM > 32 ? TEAM / 32 : 1;
  alignas(16) A warps[2][TEAMS][VALUES][kWarps];
};

// The team of a thread. That all threads of a warp have the same is told to the compiler where it is so: addresses of
// rows are then worked out once for the warp.
template <int TEAM, int TEAMS>
__device__ __forceinline__ int team_of_thread() {
  if constexpr (TEAMS == 1) return 0;
  const int team = threadIdx.x / TEAM;
  return TEAM >= 32 ? __shfl_sync(0xffffffffu, team, 0) : team;
}

template <int TEAM>
__device__ __forceinline__ void team_barrier(int team) {
  asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "r"(TEAM) : "memory");
}

struct Nothing {
  __device__ __forceinline__ void operator()() const {}
};
// `meanwhile` is called once, after the barrier of larger teams: what it does hides the latency of what follows.
template <class A, int TEAM, int TEAMS, int MOST, int VALUES, class Meanwhile = Nothing>
__device__ __forceinline__ void team_sum(A (&value)[VALUES], TeamSums<A, TEAM, TEAMS, MOST>& shared, int team,
                                         int& turn, const Meanwhile& meanwhile = {}) {
  static_assert(VALUES <= MOST);
  if constexpr (TEAM < 32 || (TEAM == 32 && VALUES == 1)) {
#pragma unroll
    for (int i = 0; i < VALUES; ++i) value[i] = group_sum<TEAM>(value[i]);
    meanwhile();
  } else if constexpr (TEAM == 32) {
    warp_all_gather(warp_reduce_scatter(value), value);
    meanwhile();
  } else {
    constexpr int kWarps = TEAM / 32, kLanes = lanes_per_sum<VALUES>;
    const int lane = threadIdx.x % 32, value_of_lane = lane / kLanes;
    auto& warps = shared.warps[turn][team];
    const A own = warp_reduce_scatter(value);
    if (lane % kLanes == 0 && value_of_lane < VALUES) warps[value_of_lane][threadIdx.x % TEAM / 32] = own;
    team_barrier<TEAM>(team);
    meanwhile();
    if constexpr (kWarps >= 8) {
      constexpr int kAcross = kWarps < kLanes ? kWarps : kLanes;
      const A* from = &warps[min(value_of_lane, VALUES - 1)][lane % kAcross];
      A sum = from[0];
#pragma unroll
      for (int warp = kAcross; warp < kWarps; warp += kAcross) sum += from[warp];
      sum = group_sum<kAcross>(sum);
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
    turn ^= 1;
  }
}

// Whether a mean is subtracted: known when compiling, or asked for at run time.
enum class Center { no, yes, ask };

// Where the gate of a kernel stands.
enum class Gate { none, pre, post };

inline Gate gate_of(const RowsView& gate, const NormOptions& options) {
  return !gate ? Gate::none : options.gate_position == GatePosition::pre ? Gate::pre : Gate::post;
}

// What threads would otherwise work out for each unit, divisions and conversions from double: worked out on the host.
template <class A>
struct NormNumbers {
  int64_t groups, units;  // of a row, in all
  int64_t extent;
  A per_extent, eps, scale;

  NormNumbers(const RowsView& x, const NormOptions& options)
      : groups(options.groups),
        units(x.rows * options.groups),
        extent(x.cols / options.groups),
        per_extent(A(1) / static_cast<A>(extent)),
        eps(static_cast<A>(options.eps)),
        scale(static_cast<A>(options.scale)) {}
};

// act(gate) of N neighbours; the activation is chosen at run time, by one branch that all threads take together.
template <class T, int N>
__device__ __forceinline__ Vec<accumulate_t<T>, N> activate_all(Activation act, const Vec<T, N>& gate) {
  Vec<accumulate_t<T>, N> values = widen_all(gate);
  visit_activation(act, [&](auto chosen) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = activate<decltype(chosen)::value, T>(values[i]);
  });
  return values;
}

// 1 / sqrt(x), within 2 units in the last place.
__device__ __forceinline__ float inverse_root(float x) { return rsqrtf(x); }
__device__ __forceinline__ double inverse_root(double x) { return rsqrt(x); }

// How a unit of `vectors` vectors is split: the smallest team that holds it.
template <int TEAM_, int VECTORS_>
struct TeamShape {
  static constexpr int kTeam = TEAM_;        // threads
  static constexpr int kVectors = VECTORS_;  // vectors a thread
  static constexpr int kCapacity = TEAM_ * VECTORS_;
};

// Calls launch(shape) for the first of Shapes that holds `vectors`; false when none does.
template <class... Shapes, class Launch>
bool choose_team(int64_t vectors, const Launch& launch) {
  bool done = false;
  const auto attempt = [&](auto shape) {
    if (done || vectors > decltype(shape)::kCapacity) return;
    launch(shape);
    done = true;
  };
  (attempt(Shapes{}), ...);
  return done;
}

// Whether the groups of a row, too, start at multiples of the vector.
inline bool groups_vectorize(const RowsView& x, const NormOptions& options, int width) {
  return x.cols / options.groups % width == 0;
}

}  // namespace heddle::kernels::cuda
