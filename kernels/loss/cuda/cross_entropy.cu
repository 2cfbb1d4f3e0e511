// Mean cross entropy of logits against class indices.                                          kernels/cross_entropy.h
// Forward: a block (a warp for short rows) reads its row once, keeping the largest number and the sum of exponentials
// relative to it; one block then adds the losses of rows in a fixed order (=). Backward: one read of the logits, one
// write or addition of d_logits, which may be the logits themselves. A target that is neither ignored nor a class
// makes the loss NaN.
#include "kernels/common/cuda/activation.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/reduce.h"
#include "kernels/common/cuda/vec.h"
#include "kernels/loss/cross_entropy.h"

namespace heddle::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// Of some of the numbers z of a row: the largest, sum exp(z - largest), sum z.
template <class T>
struct Partial {
  using A = accumulate_t<T>;
  A largest, exponentials, plain;
};

template <class T>
struct Merge {
  __device__ __forceinline__ Partial<T> operator()(const Partial<T>& a, const Partial<T>& b) const {
    using A = accumulate_t<T>;
    const A largest = a.largest > b.largest ? a.largest : b.largest;
    if (largest == -infinity<A>()) return {largest, A(0), a.plain + b.plain};
    return {largest,
            a.exponentials * exponential<T>(a.largest - largest) + b.exponentials * exponential<T>(b.largest - largest),
            a.plain + b.plain};
  }
};

// Over the threads of a row: a warp, or all of the block. The result is that of the row's first thread.
template <class T, int threads_per_row>
__device__ __forceinline__ Partial<T> merge_row(Partial<T> part) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const Partial<T> other = {__shfl_xor_sync(0xffffffffu, part.largest, distance),
                              __shfl_xor_sync(0xffffffffu, part.exponentials, distance),
                              __shfl_xor_sync(0xffffffffu, part.plain, distance)};
    part = Merge<T>{}(part, other);
  }
  if constexpr (threads_per_row > 32) {
    __shared__ Partial<T> shared[threads_per_row / 32];
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = part;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int warp = 1; warp < threads_per_row / 32; ++warp) part = Merge<T>{}(part, shared[warp]);
    }
  }
  return part;
}

template <class T>
struct Forward {
  RowsView logits;
  const int32_t* targets;
  accumulate_t<T>*row_losses, *log_sum_exp;
  int32_t ignore_index;
  accumulate_t<T> smoothing;
};

template <class T, int width, int threads_per_row>
__global__ void __launch_bounds__(kThreads) row_losses(Forward<T> p) {
  using A = accumulate_t<T>;
  const int64_t i = blockIdx.x * int64_t{kThreads / threads_per_row} + threadIdx.x / threads_per_row;
  if (i >= p.logits.rows) return;
  const int lane = threadIdx.x % threads_per_row;
  const int32_t target = p.targets[i];
  if (target == p.ignore_index) {
    if (lane == 0) p.row_losses[i] = p.log_sum_exp[i] = A(0);
    return;
  }
  const T* z = row<const T>(p.logits, i);
  Partial<T> part = {-infinity<A>(), A(0), A(0)};
#pragma unroll 4
  for (int64_t j = int64_t{lane} * width; j < p.logits.cols; j += threads_per_row * width) {
    const Vec<A, width> values = load_wide<width>(z + j);
    A largest = part.largest;
#pragma unroll
    for (int e = 0; e < width; ++e) largest = values[e] > largest ? values[e] : largest;
    if (largest == -infinity<A>()) continue;
    A sum = part.exponentials * exponential<T>(part.largest - largest);
#pragma unroll
    for (int e = 0; e < width; ++e) {
      sum += exponential<T>(values[e] - largest);
      part.plain += values[e];
    }
    part.largest = largest;
    part.exponentials = sum;
  }
  part = merge_row<T, threads_per_row>(part);
  if (lane != 0) return;
  // The terms of the loss are small where the loss is; their sum with the largest logit is not.
  const A spread = logarithm(part.exponentials);
  const A hit = target >= 0 && target < p.logits.cols ? widen(z[target]) : nan<A>();
  A loss = (part.largest - hit) + spread;
  if (p.smoothing != A(0)) loss += p.smoothing * (hit - part.plain / static_cast<A>(p.logits.cols));
  p.log_sum_exp[i] = part.largest + spread;
  p.row_losses[i] = loss;
}

template <class A>
__global__ void __launch_bounds__(1024)
    mean_loss(const A* row_losses, const int32_t* targets, int64_t rows, int32_t ignore_index, A* loss, A* count) {
  __shared__ ReduceShared<double, 1024, 2> shared;
  double sums[2] = {0.0, 0.0};
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < rows; i += 1024) {
    sums[0] += static_cast<double>(row_losses[i]);
    sums[1] += targets[i] != ignore_index ? 1.0 : 0.0;
  }
  block_reduce<1024, 2>(sums, Sum{}, shared);
  if (threadIdx.x == 0) {
    *loss = sums[1] > 0.0 ? static_cast<A>(sums[0] / sums[1]) : A(0);
    *count = static_cast<A>(sums[1]);
  }
}

template <class T>
struct Backward {
  RowsView logits, d_logits;
  const int32_t* targets;
  const accumulate_t<T>*log_sum_exp, *count, *d_loss;
  int32_t ignore_index;
  accumulate_t<T> hit, spread;  // what the target and what every class gets, as parts of the row's weight
  bool add;
};

// Grid: (rows, pieces of a row), so that few long rows fill the GPU too. Blocks: (threads of a row, rows).
template <class T, int width>
__global__ void __launch_bounds__(kThreads) logits_gradient(Backward<T> p) {
  using A = accumulate_t<T>;
  __shared__ A weight_of_row;  // one division a block: in double it is a call
  if (threadIdx.x + threadIdx.y == 0) weight_of_row = *p.count != A(0) ? *p.d_loss / *p.count : A(0);
  __syncthreads();
  const A weight = weight_of_row;
  const int64_t i = blockIdx.x * int64_t{blockDim.y} + threadIdx.y;
  if (i >= p.logits.rows) return;
  const int64_t lane = threadIdx.x + int64_t{blockIdx.y} * blockDim.x;
  const int32_t target = p.targets[i];
  const bool ignored = target == p.ignore_index || *p.count == A(0);
  const A spread = weight * p.spread;
  const A hit = weight * p.hit;
  const A normalizer = p.log_sum_exp[i];
  const T* z = row<const T>(p.logits, i);
  T* d_z = row<T>(p.d_logits, i);
#pragma unroll 2
  for (int64_t j = lane * width; j < p.logits.cols; j += int64_t{gridDim.y} * blockDim.x * width) {
    Vec<A, width> gradient = {};
    if (!ignored) {
      const Vec<A, width> values = load_wide<width>(z + j);
#pragma unroll
      for (int e = 0; e < width; ++e) {
        gradient[e] = weight * exponential<T>(values[e] - normalizer) - spread - (j + e == target ? hit : A(0));
      }
    }
    store_or_add(d_z + j, gradient, p.add);
  }
}

template <class T>
void forward_as(Context& context, const CrossEntropyForwardArgs& args) {
  using A = accumulate_t<T>;
  const int64_t rows = args.logits.rows;
  const Forward<T> p = {args.logits,
                        vector<const int32_t>(args.targets),
                        vector<A>(args.row_losses),
                        vector<A>(args.log_sum_exp),
                        args.options.ignore_index,
                        static_cast<A>(args.options.label_smoothing)};
  if (rows > 0) {
    with_width<T>(can_vectorize(args.logits, vector_width<T>), [&](auto chosen) {
      constexpr int width = decltype(chosen)::value;
      if (args.logits.cols <= 1024) {
        const auto blocks = static_cast<unsigned>(ceil_div(rows, kThreads / 32));
        HEDDLE_LAUNCH(context, (row_losses<T, width, 32>), blocks, kThreads, 0, p);
      } else {
        HEDDLE_LAUNCH(context, (row_losses<T, width, kThreads>), static_cast<unsigned>(rows), kThreads, 0, p);
      }
    });
  }
  HEDDLE_LAUNCH(context, mean_loss<A>, 1, 1024, 0, vector<const A>(args.row_losses), p.targets, rows,
                args.options.ignore_index, vector<A>(args.loss), vector<A>(args.count));
}

template <class T>
void backward_as(Context& context, const CrossEntropyBackwardArgs& args) {
  using A = accumulate_t<T>;
  const int64_t rows = args.logits.rows, classes = args.logits.cols;
  if (rows == 0 || classes == 0) return;
  const Backward<T> p = {args.logits,
                         args.d_logits.view,
                         vector<const int32_t>(args.targets),
                         vector<const A>(args.log_sum_exp),
                         vector<const A>(args.count),
                         vector<const A>(args.d_loss),
                         args.options.ignore_index,
                         static_cast<A>(1.0 - args.options.label_smoothing),
                         static_cast<A>(args.options.label_smoothing / static_cast<double>(classes)),
                         args.d_logits.mode == GradientMode::accumulate};
  const bool aligned = can_vectorize_all(vector_width<T>, args.logits, args.d_logits.view);
  with_width<T>(aligned, [&](auto chosen) {
    constexpr int width = decltype(chosen)::value;
    const int64_t vectors = ceil_div(classes, width);
    const int rows_per_block = vectors <= 32 ? 8 : vectors <= 128 ? 2 : 1;
    const dim3 grid(static_cast<unsigned>(ceil_div(rows, rows_per_block)),
                    static_cast<unsigned>(std::min<int64_t>(ceil_div(vectors, 4 * kThreads), 64)));
    HEDDLE_LAUNCH(context, (logits_gradient<T, width>), grid, dim3(kThreads / rows_per_block, rows_per_block), 0, p);
  });
}

}  // namespace

void cross_entropy_forward(Context& context, const CrossEntropyForwardArgs& args) {
  visit_floating(args.logits.dtype, [&](auto type) { forward_as<decltype(type)>(context, args); });
}

void cross_entropy_backward(Context& context, const CrossEntropyBackwardArgs& args) {
  visit_floating(args.logits.dtype, [&](auto type) { backward_as<decltype(type)>(context, args); });
}

}  // namespace heddle::kernels::cuda
