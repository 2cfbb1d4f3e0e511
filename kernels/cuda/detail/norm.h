// What the forward and backward kernels of the norm family share.                      docs/layers.md#normalization
// A unit is one group of one row: `extent` = dim / groups neighbouring features that are normalized together. A team of
// TEAM threads works on a unit; several teams share a block where units are short.
#pragma once

#include "kernels/cuda/detail/activation.h"
#include "kernels/cuda/detail/launch.h"
#include "kernels/cuda/detail/reduce.h"
#include "kernels/cuda/detail/vec.h"
#include "kernels/norm.h"

namespace heddle::kernels::cuda {

// Sums over a team. Teams of a warp or less exchange by shuffles; larger ones through shared memory and a barrier of
// their own, with two buffers in turn so that one barrier a sum is enough. Every thread gets the same bits.
template <class A, int TEAM, int TEAMS, int VALUES>
struct TeamSums {
  static constexpr int kWarps = TEAM > 32 ? TEAM / 32 : 1;
  A warps[2][TEAMS][VALUES][kWarps];
};

template <int TEAM>
__device__ __forceinline__ void team_barrier(int team) {
  asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "r"(TEAM) : "memory");
}

template <class A, int TEAM, int TEAMS, int VALUES>
__device__ __forceinline__ void team_sum(A (&value)[VALUES], TeamSums<A, TEAM, TEAMS, VALUES>& shared, int team,
                                         int& turn) {
  constexpr int kLanes = TEAM < 32 ? TEAM : 32;
#pragma unroll
  for (int i = 0; i < VALUES; ++i) value[i] = group_sum<kLanes>(value[i]);
  if constexpr (TEAM > 32) {
    if (threadIdx.x % 32 == 0) {
#pragma unroll
      for (int i = 0; i < VALUES; ++i) shared.warps[turn][team][i][threadIdx.x % TEAM / 32] = value[i];
    }
    team_barrier<TEAM>(team);
#pragma unroll
    for (int i = 0; i < VALUES; ++i) {
      value[i] = shared.warps[turn][team][i][0];
#pragma unroll
      for (int warp = 1; warp < TEAM / 32; ++warp) value[i] += shared.warps[turn][team][i][warp];
    }
    turn ^= 1;
  }
}

// act(x), chosen at run time: the branch is the same for all threads.
template <class T, class A>
__device__ __forceinline__ A activated(Activation act, A x) {
  A result = x;
  visit_activation(act, [&](auto chosen) { result = activate<decltype(chosen)::value, T>(x); });
  return result;
}

template <class T, class A>
__device__ __forceinline__ Activated<A> activated_with_derivative(Activation act, A x) {
  Activated<A> result{x, A(1)};
  visit_activation(act, [&](auto chosen) { result = activate_with_derivative<decltype(chosen)::value, T>(x); });
  return result;
}

template <class A>
__device__ __forceinline__ A inverse_root(A mean_square, double eps) {
  return A(1) / sqrt(mean_square + static_cast<A>(eps));
}

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
