// Out of a part of the features of query and key, as scan_warpgroup.h keeps it in args.partial_out: a row of tokens for
// each value feature.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/scan_warpgroup_shape.h"

namespace heddle::kernels::cuda {
namespace detail {

// Those of a thread of a consumer: `feature` and that 8 further on, counted from the first one of the block, and of
// both the tokens `token` and the one after it of every eight of a chunk.
template <class Shape>
class PartialRows {
 public:
  using Chunk = typename Shape::Chunk;

  __device__ __forceinline__ PartialRows(const ScanArgs<float>& args, const WarpgroupPlace<Shape>& place,
                                         unsigned feature, unsigned token)
      : args_(args), place_(place), feature_(feature), token_(token) {}

  // Starts to bring those of a whole chunk to L2: each thread 32 tokens of one feature.
  __device__ __forceinline__ void fetch(const Chunk& chunk) const {
    const int thread = opaque(static_cast<int>(threadIdx.x - 128));
    const int64_t feature = place_.first_value + thread / 2;
    if (chunk.rows < Shape::kRows || feature >= args_.value.dim) return;
    asm volatile("prefetch.global.L2 [%0];" ::"l"(row(feature) + chunk.begin + thread % 2 * 32));
  }
  __device__ __forceinline__ void load(const Chunk& chunk, FragmentC (&to)[8]) const {
#pragma unroll
    for (int n = 0; n < 8; ++n) to[n] = FragmentC{};
    if (chunk.rows == Shape::kRows) {
      for_each_pair(chunk, [&](int n, int half, const float* place) {
        const float2 pair = *reinterpret_cast<const float2*>(place);
        to[n].values[half * 2] = pair.x;
        to[n].values[half * 2 + 1] = pair.y;
      });
    } else {
      for_each_pair(chunk, [&](int n, int half, const float* place) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (is_there(chunk, n, e)) to[n].values[half * 2 + e] = place[e];
        }
      });
    }
  }
  __device__ __forceinline__ void put(const Chunk& chunk, const FragmentC (&out)[8]) const {
    if (chunk.rows == Shape::kRows) {
      for_each_pair(chunk, [&](int n, int half, float* place) {
        *reinterpret_cast<float2*>(place) = {out[n].values[half * 2], out[n].values[half * 2 + 1]};
      });
    } else {
      for_each_pair(chunk, [&](int n, int half, float* place) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (is_there(chunk, n, e)) place[e] = out[n].values[half * 2 + e];
        }
      });
    }
  }

 private:
  // Calls visit(n, half, place) for the thread's features that are there; place is that of its first token of the
  // eight from 8 n on.
  template <class Visit>
  __device__ __forceinline__ void for_each_pair(const Chunk& chunk, const Visit& visit) const {
    const int first = opaque(static_cast<int>(place_.first_value + feature_));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (first + half * 8 >= args_.value.dim) break;
      float* const places = row(first + half * 8) + chunk.begin + token_;
#pragma unroll
      for (int n = 0; n < 8; ++n) visit(n, half, places + n * 8);
    }
  }
  __device__ __forceinline__ bool is_there(const Chunk& chunk, int n, int e) const {
    return n * 8 + static_cast<int>(token_) + e < chunk.rows;
  }
  __device__ __forceinline__ float* row(int64_t feature) const {
    const int64_t head_index = place_.batch * args_.query.heads + place_.head;
    return args_.partial_out +
           (head_index * args_.value.dim + feature) * (parts_of(args_.query.length, kWindow) * kWindow);
  }

  const ScanArgs<float>& args_;
  const WarpgroupPlace<Shape>& place_;
  unsigned feature_, token_;
};

}  // namespace detail
}  // namespace heddle::kernels::cuda
