// What the kernels of the LRPE family share: pairs of features, and who works on what.
#pragma once

#include "kernels/cuda/detail/activation.h"
#include "kernels/cuda/detail/angle.h"
#include "kernels/cuda/detail/launch.h"
#include "kernels/cuda/detail/reduce.h"
#include "kernels/cuda/detail/vec.h"

namespace heddle::kernels::cuda {

// WIDTH pairs of features that are rotated together, pair i in (first[i], second[i]).
template <class A, int WIDTH>
struct Pairs {
  A first[WIDTH], second[WIDTH];
};

// The two vectors of a row that hold pairs k .. k + WIDTH - 1: (k, k + half) or, interleaved, (2k, 2k + 1).
template <class T, int WIDTH>
struct PairVectors {
  Vec<T, WIDTH> low, high;
};

template <bool INTERLEAVED, int WIDTH>
__device__ __forceinline__ int low_offset(int k) {
  return INTERLEAVED ? 2 * k : k;
}
template <bool INTERLEAVED, int WIDTH>
__device__ __forceinline__ int high_offset(int k, int half) {
  return INTERLEAVED ? 2 * k + WIDTH : k + half;
}

template <bool INTERLEAVED, int WIDTH, class T>
__device__ __forceinline__ PairVectors<T, WIDTH> load_pairs(const T* row, int k, int half) {
  return {load<WIDTH, Reuse::stream>(row + low_offset<INTERLEAVED, WIDTH>(k)),
          load<WIDTH, Reuse::stream>(row + high_offset<INTERLEAVED, WIDTH>(k, half))};
}

// Element i of the first (second) members of the pairs, of the 2 WIDTH elements low, high.
template <bool INTERLEAVED, int WIDTH>
__device__ __forceinline__ constexpr int element_of(int i, bool second) {
  return INTERLEAVED ? 2 * i + (second ? 1 : 0) : i + (second ? WIDTH : 0);
}

template <bool INTERLEAVED, class T, int WIDTH>
__device__ __forceinline__ Pairs<accumulate_t<T>, WIDTH> widen_pairs(const PairVectors<T, WIDTH>& v) {
  Pairs<accumulate_t<T>, WIDTH> p;
  const auto element = [&](int e) { return widen(e < WIDTH ? v.low[e] : v.high[e - WIDTH]); };
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    p.first[i] = element(element_of<INTERLEAVED, WIDTH>(i, false));
    p.second[i] = element(element_of<INTERLEAVED, WIDTH>(i, true));
  }
  return p;
}

template <bool INTERLEAVED, class T, class A, int WIDTH>
__device__ __forceinline__ void store_pairs(T* row, int k, int half, const Pairs<A, WIDTH>& p) {
  PairVectors<T, WIDTH> v;
  const auto put = [&](int e, A value) { (e < WIDTH ? v.low[e] : v.high[e - WIDTH]) = narrow<T>(value); };
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    put(element_of<INTERLEAVED, WIDTH>(i, false), p.first[i]);
    put(element_of<INTERLEAVED, WIDTH>(i, true), p.second[i]);
  }
  store<Reuse::stream>(row + low_offset<INTERLEAVED, WIDTH>(k), v.low);
  store<Reuse::stream>(row + high_offset<INTERLEAVED, WIDTH>(k, half), v.high);
}

// Over groups of `width` neighbouring lanes, a power of two up to 32 known at run time. All lanes take part.
template <class A, class Op>
__device__ __forceinline__ A lanes_reduce(A value, int width, Op op) {
  for (int distance = width / 2; distance > 0; distance /= 2) {
    value = op(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}

// How the vector kernels cut the work. An item is (position, head of theta, vector of pairs), the last fastest; its
// thread goes over `replicas`: the batch, and the heads as well when they share theta.
struct LrpeWork {
  int64_t items = 0;
  int64_t replicas = 0;
  int64_t replicas_per_block = 0;  // a multiple of the unrolling
  int64_t heads_of_items = 1;      // heads of theta
  int vectors = 0;                 // of pairs in a row
  unsigned blocks = 0, parts = 0;  // the grid

  static constexpr int kThreads = 256;
  static constexpr int kUnroll = 4;

  LrpeWork(Context& context, const HeadsView& x, int64_t theta_heads, int width) {
    heads_of_items = theta_heads;
    vectors = static_cast<int>(x.dim / 2 / width);
    items = x.length * heads_of_items * vectors;
    replicas = x.batch * (x.heads / theta_heads);
    blocks = static_cast<unsigned>(ceil_div(items, kThreads));
    // Enough blocks for the chip before sines are shared further.
    const int64_t wanted = int64_t{context.properties().multiprocessors} * 4;
    const int64_t most_parts = ceil_div(replicas, kUnroll);
    parts =
        static_cast<unsigned>(std::clamp<int64_t>(ceil_div(wanted, blocks), 1, std::min<int64_t>(most_parts, 65535)));
    replicas_per_block = ceil_div(ceil_div(replicas, parts), kUnroll) * kUnroll;
  }
  dim3 grid() const { return dim3(blocks, parts); }
};

// The place of one thread in that work. A thread beyond the end has the last place and is not active: it reads with the
// others, so that no load waits for a condition, and stores nothing.
struct LrpeItem {
  bool active;
  int64_t position;
  int64_t theta_head;
  int k;  // first pair

  __device__ __forceinline__ LrpeItem(const LrpeWork& work, int width) {
    const int64_t own = int64_t{blockIdx.x} * LrpeWork::kThreads + threadIdx.x;
    active = own < work.items;
    const int64_t index = active ? own : work.items - 1;
    if (work.items <= 0x7fffffff) {  // division of 32 bits where it is enough
      const auto small = static_cast<uint32_t>(index);
      const uint32_t rest = small / work.vectors;
      k = static_cast<int>(small - rest * work.vectors) * width;
      position = rest / static_cast<uint32_t>(work.heads_of_items);
      theta_head = rest - position * work.heads_of_items;
    } else {
      const int64_t rest = index / work.vectors;
      k = static_cast<int>(index - rest * work.vectors) * width;
      position = rest / work.heads_of_items;
      theta_head = rest - position * work.heads_of_items;
    }
  }
};

// The row (batch, position, head) of replica r.
template <class T>
__device__ __forceinline__ T* replica_row(const HeadsView& view, const LrpeItem& item, int64_t theta_heads,
                                          int64_t replica) {
  if (theta_heads > 1 || view.heads == 1) return head<T>(view, replica, item.position, item.theta_head);
  const int64_t batch = replica / view.heads;
  return head<T>(view, batch, item.position, replica - batch * view.heads);
}

// The angle of pair k of a head: 0 beyond the E angles there are.
template <class T>
__device__ __forceinline__ Angle<T> angle_of(const RowsView& theta, int64_t theta_head, int64_t k) {
  using A = accumulate_t<T>;
  return Angle<T>::of(k < theta.cols ? row<const A>(theta, theta_head)[k] : A(0));
}

}  // namespace heddle::kernels::cuda
