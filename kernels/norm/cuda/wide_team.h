// A row group of the GPU as the Team of wide_group.h.
#pragma once

#include <cstdint>

#include "kernels/norm/cuda/norm.h"
#include "kernels/norm/wide_group.h"

namespace heddle::kernels::cuda {

// All threads of a warp call it together. Where `writes` is false a row group only takes part in the exchanges.
template <int THREADS, int ROW_GROUPS>
struct WideTeam {
  using Storage = RowGroupStorage<double, THREADS, ROW_GROUPS, 1>;
  Storage& storage;
  int& buffer;  // of the storage; 0 at first, the same variable for all teams of this storage
  int row_group, lane;
  bool writes = true;

  template <class T>
  __device__ double load(T element) const {
    return static_cast<double>(widen(element));
  }
  template <class T>
  __device__ T narrow(double number) const {
    return cuda::narrow<T>(static_cast<accumulate_t<T>>(number));
  }
  template <class T>
  __device__ Activated<double> activate(Activation act, T gate) const {
    Activated<double> result{};
    visit_activation(act, [&](auto chosen) {
      const auto both = activate_with_derivative<decltype(chosen)::value, T>(widen(gate));
      result = {both.value, both.derivative};
    });
    return result;
  }
  template <int N, class Value>
  __device__ Numbers<N> sum(int64_t count, const Value& value) const {
    Numbers<N> result{};
#pragma unroll 1
    for (int64_t c = lane; c < count; c += THREADS) {
      const Numbers<N> next = value(c);
#pragma unroll
      for (int k = 0; k < N; ++k) result.values[k] += next.values[k];
    }
#pragma unroll
    for (int k = 0; k < N; ++k) {  // one by one takes fewer registers
      double value[1] = {result.values[k]};
      row_group_sum(value, storage, row_group, buffer);
      result.values[k] = value[0];
    }
    return result;
  }
  template <class Value>
  __device__ double maximum(int64_t count, const Value& value) const {
    constexpr int kLanes = THREADS < 32 ? THREADS : 32, kWarps = THREADS / kLanes;
    double result = 0.0;  // values are magnitudes
    for (int64_t c = lane; c < count; c += THREADS) result = Max{}(result, value(c));
    result = group_max<kLanes>(result);
    if constexpr (kWarps > 1) {
      auto& warps = storage.warps[buffer][row_group][0];
      if (lane % 32 == 0) warps[lane / 32] = result;
      row_group_barrier<THREADS>(row_group);
      for (int warp = 0; warp < kWarps; ++warp) result = Max{}(result, warps[warp]);
      buffer ^= 1;
    }
    return result;
  }
  template <class Visit>
  __device__ void for_each(int64_t count, const Visit& visit) const {
    if (!writes) return;
#pragma unroll 1
    for (int64_t c = lane; c < count; c += THREADS) visit(c);
  }
  __device__ double inverse(int64_t count) const { return __drcp_rn(static_cast<double>(count)); }
  __device__ double inverse_root(double number) const { return cuda::inverse_root(number); }
  __device__ bool is_leader() const { return writes && lane == 0; }
};

// Whether a condition, the same in all threads of a row group, holds in any row group of the warp: a branch that all
// threads of a warp take together.
template <int THREADS>
__device__ __forceinline__ bool any_row_group_of_warp(bool condition) {
  return THREADS < 32 ? __any_sync(0xffffffffu, condition) : condition;
}

}  // namespace heddle::kernels::cuda
