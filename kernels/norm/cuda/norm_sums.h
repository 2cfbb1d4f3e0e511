// Sums over rows of the norm backward, d_weight and d_bias: a block leaves its own as a row of partials, and a second
// kernel adds the rows up in the order of the blocks.
#pragma once

#include "kernels/norm/cuda/norm.h"

namespace heddle::kernels::cuda {

// row[c] = factor * sum of the columns of a thread's vectors, which begin at (lane + v * TEAM) * WIDTH. Neighbouring
// lanes exchange halves of their vectors, so that 32 bytes are written together (16 at once took 4 us more, of 24).
template <int TEAM, class A, int VECTORS, int WIDTH>
__device__ __forceinline__ void write_sums(A* row, const A (&sum)[VECTORS][WIDTH], A factor, int lane, int extent) {
  using Quad = Vec<A, 4>;
  static_assert(WIDTH == 4 || WIDTH == 8);
#pragma unroll
  for (int v = 0; v < VECTORS; ++v) {
    Quad quads[WIDTH / 4];
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) quads[i / 4][i % 4] = sum[v][i] * factor;
    int column = (lane + v * TEAM) * WIDTH;
    if constexpr (WIDTH == 8) {
      const bool is_odd = lane % 2 == 1;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const A taken = __shfl_xor_sync(0xffffffffu, is_odd ? quads[0][i] : quads[1][i], 1);
        quads[0][i] = is_odd ? taken : quads[0][i];
        quads[1][i] = is_odd ? quads[1][i] : taken;
      }
      if (is_odd) column -= 4;  // the second half of the neighbour's vector, then of its own
    }
#pragma unroll
    for (int i = 0; i < WIDTH / 4; ++i) {
      if (column + i * 8 < extent) store(row + column + i * 8, quads[i]);
    }
  }
}

// destination (=|+=) sum over the rows of partials. A block owns 32 columns, a line of L2, and a thread WIDTH
// neighbouring ones in every kReaders-th row; what it reads is under way together. One block of the kernel before it
// that ends makes room for a block. The y index of a block is that of its sums.
template <int WIDTH>
struct Finish {
  static constexpr int kThreads = 512, kColumns = 32, kAcross = kColumns / WIDTH, kReaders = kThreads / kAcross;
  static constexpr int kAhead = WIDTH > 1 ? 7 : 13;  // rows of a thread
};

template <class O, class A>
struct FinishedSums {
  const A* partials;  // (rows, cols)
  O* destination;     // (cols)
  bool add;
};
template <class O, class A>
struct FinishArgs {
  FinishedSums<O, A> sums[2];
  int64_t stride, cols;
  int rows;
};

template <class O, class A, int WIDTH>
__global__ void __launch_bounds__(Finish<WIDTH>::kThreads) norm_finish(const __grid_constant__ FinishArgs<O, A> args) {
  using F = Finish<WIDTH>;
  constexpr int kWarps = F::kThreads / 32;
  __shared__ A shared[kWarps][F::kColumns];
  const FinishedSums<O, A>& own = args.sums[blockIdx.y];
  const int64_t first = int64_t{blockIdx.x} * F::kColumns;
  const bool writes = threadIdx.x < F::kColumns && first + threadIdx.x < args.cols;
  O* const to = own.destination + first + threadIdx.x;
  const A old = own.add && writes ? static_cast<A>(widen(*to)) : A(0);
  const int place = static_cast<int>(threadIdx.x) % F::kAcross * WIDTH;
  const int reader = static_cast<int>(threadIdx.x) / F::kAcross;
  Vec<A, WIDTH> sum{};
  grid_dependency_wait();
  if (first + place < args.cols) {
    const A* from = own.partials + first + place;
    for (int base = reader; base < args.rows; base += F::kReaders * F::kAhead) {
      Vec<A, WIDTH> parts[F::kAhead] = {};
#pragma unroll
      for (int i = 0; i < F::kAhead; ++i) {
        const int r = base + i * F::kReaders;
        if (r < args.rows) parts[i] = load<WIDTH>(from + r * args.stride);
      }
#pragma unroll
      for (int i = 0; i < F::kAhead; ++i) {
#pragma unroll
        for (int c = 0; c < WIDTH; ++c) sum[c] += parts[i][c];
      }
    }
  }
#pragma unroll
  for (int c = 0; c < WIDTH; ++c) {
#pragma unroll
    for (int distance = F::kAcross; distance < 32; distance *= 2) {
      sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], distance);
    }
    if (threadIdx.x % 32 < F::kAcross) shared[threadIdx.x / 32][place + c] = sum[c];
  }
  __syncthreads();
  if (!writes) return;
  A total = old;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) total += shared[warp][threadIdx.x];
  *to = narrow<O>(total);
}

template <class T>
void finish(Context& context, const NormBackwardArgs& args, int rows) {
  using A = accumulate_t<T>;
  const auto* partials = static_cast<const A*>(args.partials.data);
  const auto launch = [&](DType dtype, bool weight, bool bias) {
    visit_same_or_accumulate<T>(dtype, args.x.dtype, [&](auto type) {
      using O = decltype(type);
      FinishArgs<O, A> finish{.sums = {}, .stride = args.partials.row_stride, .cols = args.x.cols, .rows = rows};
      unsigned count = 0;
      const auto add = [&](const A* from, const VectorDestination& to) {
        finish.sums[count++] = {from, vector<O>(to.view), to.mode == GradientMode::accumulate};
      };
      if (weight) add(partials, args.d_weight);
      if (bias) add(partials + args.x.cols, args.d_bias);
      with_width<A>(
          can_vectorize(args.partials, vector_width<A>) && args.x.cols % vector_width<A> == 0, [&](auto width) {
            using F = Finish<decltype(width)::value>;
            const dim3 grid(static_cast<unsigned>(ceil_div(args.x.cols, F::kColumns)), count);
            HEDDLE_LAUNCH_DEPENDENT(context, (norm_finish<O, A, decltype(width)::value>), grid, F::kThreads, 0, finish);
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
