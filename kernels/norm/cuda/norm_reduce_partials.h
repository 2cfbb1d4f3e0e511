// Sums over rows of the norm backward, d_weight and d_bias. A block of the first kernel writes (=) its partial sums as
// a row of `partials`; norm_reduce_partials adds the rows up in the order of the blocks and writes (=) or adds to (+=)
// d_weight and d_bias. Results are the same bits every time.
#pragma once

#include <cstdint>

#include "kernels/norm/cuda/norm.h"

namespace heddle::kernels::cuda {

// row[c] = factor * sum[c] for the columns of the thread's vectors, vector v of WIDTH columns beginning at
// (lane + v * THREADS) * WIDTH. Where a vector takes 32 bytes, neighbouring lanes exchange halves of theirs, so that a
// pair of lanes writes each of its two vectors, a whole sector of 32 bytes, in one instruction. Only the first THREADS
// threads of a block call it: the others of their warp may be elsewhere.
template <int THREADS, class A, int VECTORS, int WIDTH>
__device__ __forceinline__ void write_partials(A* row, const A (&sum)[VECTORS][WIDTH], A factor, int lane, int extent) {
  using Quad = Vec<A, 4>;
  static_assert(WIDTH == 4 || WIDTH == 8);
  constexpr unsigned kCallers = THREADS < 32 ? (1u << THREADS % 32) - 1u : 0xffffffffu;
#pragma unroll
  for (int v = 0; v < VECTORS; ++v) {
    Quad quads[WIDTH / 4];
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) quads[i / 4][i % 4] = sum[v][i] * factor;
    int column = (lane + v * THREADS) * WIDTH;
    if constexpr (WIDTH == 8) {
      const bool is_odd = lane % 2 == 1;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const A received = __shfl_xor_sync(kCallers, is_odd ? quads[0][i] : quads[1][i], 1);
        quads[0][i] = is_odd ? received : quads[0][i];
        quads[1][i] = is_odd ? quads[1][i] : received;
      }
      if (is_odd) column -= 4;  // the second half of the neighbour's vector, then of its own
    }
#pragma unroll
    for (int i = 0; i < WIDTH / 4; ++i) {
      if (column + i * 8 < extent) store(row + column + i * 8, quads[i]);
    }
  }
}

// How norm_reduce_partials is split: a block sums up 32 columns, and a thread WIDTH neighbouring ones of them in every
// kReaders-th row. A thread has kRowsInFlight rows in flight. A multiprocessor has room for a block as soon as one
// block of the kernel before it ends.
template <int WIDTH>
struct ReduceShape {
  static constexpr int kThreads = 512, kColumns = 32;
  static constexpr int kThreadsPerRow = kColumns / WIDTH, kReaders = kThreads / kThreadsPerRow;
  static constexpr int kRowsInFlight = WIDTH > 1 ? 7 : 13;
};

template <class O, class A>
struct ParameterGradient {
  const A* partials;  // (rows, cols)
  O* destination;     // (cols)
  bool add;           // GradientMode::accumulate
};
template <class O, class A>
struct ReduceArgs {
  ParameterGradient<O, A> gradients[2];  // one for each y index of the grid
  int64_t stride, cols;                  // of partials, in elements
  int rows;
};

// Sum of the rows reader, reader + kReaders, ... of `from`, WIDTH columns of them.
template <int WIDTH, class A>
__device__ __forceinline__ Vec<A, WIDTH> sum_rows(const A* from, int reader, int rows, int64_t stride) {
  using S = ReduceShape<WIDTH>;
  Vec<A, WIDTH> sum{};
  for (int base = reader; base < rows; base += S::kReaders * S::kRowsInFlight) {
    Vec<A, WIDTH> loaded[S::kRowsInFlight] = {};
#pragma unroll
    for (int i = 0; i < S::kRowsInFlight; ++i) {
      const int r = base + i * S::kReaders;
      if (r < rows) loaded[i] = load<WIDTH>(from + r * stride);
    }
#pragma unroll
    for (int i = 0; i < S::kRowsInFlight; ++i) {
#pragma unroll
      for (int c = 0; c < WIDTH; ++c) sum[c] += loaded[i][c];
    }
  }
  return sum;
}

// destination (=|+=) sum over the rows of partials. Grid: (tiles of 32 columns, gradients).
template <class O, class A, int WIDTH>
__global__ void __launch_bounds__(ReduceShape<WIDTH>::kThreads)
    norm_reduce_partials(const __grid_constant__ ReduceArgs<O, A> args) {
  using S = ReduceShape<WIDTH>;
  constexpr int kWarps = S::kThreads / 32;
  __shared__ A warps[kWarps][S::kColumns];
  const ParameterGradient<O, A>& gradient = args.gradients[blockIdx.y];
  const int64_t first = int64_t{blockIdx.x} * S::kColumns;
  const bool writes = threadIdx.x < S::kColumns && first + threadIdx.x < args.cols;
  O* const to = gradient.destination + first + threadIdx.x;
  const A old = gradient.add && writes ? static_cast<A>(widen(*to)) : A(0);
  const int column = static_cast<int>(threadIdx.x) % S::kThreadsPerRow * WIDTH;
  const int reader = static_cast<int>(threadIdx.x) / S::kThreadsPerRow;
  Vec<A, WIDTH> sum{};
  grid_dependency_wait();
  if (first + column < args.cols) {
    sum = sum_rows<WIDTH>(gradient.partials + first + column, reader, args.rows, args.stride);
  }
#pragma unroll
  for (int c = 0; c < WIDTH; ++c) {
#pragma unroll
    for (int distance = S::kThreadsPerRow; distance < 32; distance *= 2) {
      sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], distance);
    }
    if (threadIdx.x % 32 < S::kThreadsPerRow) warps[threadIdx.x / 32][column + c] = sum[c];
  }
  __syncthreads();
  if (!writes) return;
  A total = old;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) total += warps[warp][threadIdx.x];
  *to = narrow<O>(total);
}

// d_weight and d_bias (=|+=) the sums over the first `rows` rows of args.partials: one launch, or one each where their
// dtypes differ.
template <class T>
void reduce_partials(Context& context, const NormBackwardArgs& args, int rows) {
  using A = accumulate_t<T>;
  const auto* partials = static_cast<const A*>(args.partials.data);
  const auto launch = [&](DType dtype, bool weight, bool bias) {
    visit_same_or_accumulate<T>(dtype, args.x.dtype, [&](auto type) {
      using O = decltype(type);
      ReduceArgs<O, A> reduce{.gradients = {}, .stride = args.partials.row_stride, .cols = args.x.cols, .rows = rows};
      unsigned count = 0;
      const auto add = [&](const A* from, const VectorDestination& to) {
        reduce.gradients[count++] = {from, vector<O>(to.view), to.mode == GradientMode::accumulate};
      };
      if (weight) add(partials, args.d_weight);
      if (bias) add(partials + args.x.cols, args.d_bias);
      with_width<A>(
          can_vectorize(args.partials, vector_width<A>) && args.x.cols % vector_width<A> == 0, [&](auto width) {
            constexpr int kWidth = decltype(width)::value;
            using S = ReduceShape<kWidth>;
            const dim3 grid(static_cast<unsigned>(ceil_div(args.x.cols, S::kColumns)), count);
            HEDDLE_LAUNCH_DEPENDENT(context, (norm_reduce_partials<O, A, kWidth>), grid, S::kThreads, 0, reduce);
          });
    });
  };
  const DType weight = args.d_weight.view.dtype, bias = args.d_bias.view.dtype;
  if (args.d_weight && args.d_bias && weight == bias) {
    launch(weight, true, true);
  } else {
    if (args.d_weight) launch(weight, true, false);
    if (args.d_bias) launch(bias, false, true);
  }
}

}  // namespace heddle::kernels::cuda
