// Cross entropy of logits (rows, classes) against class indices.                          kernels/loss/cross_entropy.h
//   forward    row_losses, maxima, rests (rows) (=), then loss and count (=) unless the losses of the rows are the
//   result backward   d_logits (=|+=), which may be the memory of the logits
// Forward reads the logits once: a block (a warp where rows are short) keeps the maximum of its row but for the target,
// and the sum of exponentials relative to it. One block then adds up the losses of the rows in a fixed order. Backward
// reads the logits once. A target that is neither ignored nor a class makes the loss and the row's gradient NaN.
#include <algorithm>
#include <cstdint>

#include "kernels/common/cuda/activation.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/reduce.h"
#include "kernels/common/cuda/vec.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/loss/cross_entropy_row.h"

namespace heddle::kernels::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
struct Exponential {
  __device__ __forceinline__ accumulate_t<T> operator()(accumulate_t<T> x) const { return exponential<T>(x); }
};

// The sums over some of the classes of a row, without its target.
template <class T>
struct Partial {
  using A = accumulate_t<T>;
  OtherClasses<A> sums;
  A classes;

  // Makes the sums relative to `maximum`, which is at least their own.
  __device__ __forceinline__ void raise(A maximum) {
    if (maximum == sums.maximum) return;
    sums.terms *= exponential<T>(sums.maximum - maximum);
    if (classes > A(0)) sums.gaps += classes * (maximum - sums.maximum);
    sums.maximum = maximum;
  }
  __device__ __forceinline__ void merge(Partial other) {
    const A maximum = sums.maximum > other.sums.maximum ? sums.maximum : other.sums.maximum;
    raise(maximum);
    other.raise(maximum);
    sums.terms += other.sums.terms;
    sums.gaps += other.sums.gaps;
    classes += other.classes;
  }
};

// Merges over the threads of a row: a warp, or the whole block. The row's first thread gets the result.
template <class T, int threads_per_row>
__device__ __forceinline__ Partial<T> merge_row(Partial<T> partial) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const auto of_other_lane = [distance](accumulate_t<T> value) {
      return __shfl_xor_sync(0xffffffffu, value, distance);
    };
    partial.merge(
        {{of_other_lane(partial.sums.maximum), of_other_lane(partial.sums.terms), of_other_lane(partial.sums.gaps)},
         of_other_lane(partial.classes)});
  }
  if constexpr (threads_per_row > 32) {
    __shared__ Partial<T> shared[threads_per_row / 32];
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = partial;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int warp = 1; warp < threads_per_row / 32; ++warp) partial.merge(shared[warp]);
    }
  }
  return partial;
}

template <class T>
struct Forward {
  RowsView logits;
  const int32_t* targets;
  accumulate_t<T>*row_losses, *maxima, *rests;
  int32_t ignore_index;
  accumulate_t<T> smoothing, z_loss;
};

// row_losses, maxima, rests (=), 0 for ignored rows.
template <class T, int width, int threads_per_row>
__global__ void __launch_bounds__(kThreads) row_losses(Forward<T> p) {
  using A = accumulate_t<T>;
  const int64_t i = blockIdx.x * int64_t{kThreads / threads_per_row} + threadIdx.x / threads_per_row;
  if (i >= p.logits.rows) return;
  const int lane = threadIdx.x % threads_per_row;
  const int32_t target = p.targets[i];
  if (target == p.ignore_index) {
    if (lane == 0) p.row_losses[i] = p.maxima[i] = p.rests[i] = A(0);
    return;
  }
  const T* z = row<const T>(p.logits, i);
  Partial<T> partial = {{-infinity<A>(), A(0), A(0)}, A(0)};
#pragma unroll 4
  for (int64_t j = int64_t{lane} * width; j < p.logits.cols; j += threads_per_row * width) {
    Vec<A, width> values = load_wide<width>(z + j);
    const int64_t place = target - j;  // of the target among these values
    A maximum = partial.sums.maximum, gaps = A(0), terms = A(0);
#pragma unroll
    for (int e = 0; e < width; ++e) {
      if (e == place) values[e] = -infinity<A>();
      maximum = values[e] > maximum ? values[e] : maximum;
    }
    partial.raise(maximum);
    partial.classes += place >= 0 && place < width ? A(width - 1) : A(width);
    if (maximum == -infinity<A>()) continue;
#pragma unroll
    for (int e = 0; e < width; ++e) {
      terms += exponential<T>(values[e] - maximum);
      gaps += e == place ? A(0) : maximum - values[e];
    }
    partial.sums.terms += terms;
    partial.sums.gaps += gaps;
  }
  partial = merge_row<T, threads_per_row>(partial);
  if (lane != 0) return;
  const A hit = target >= 0 && target < p.logits.cols ? widen(z[target]) : nan<A>();
  const CrossEntropyRow<A> result =
      finish_row(partial.sums, hit, p.logits.cols, p.smoothing, p.z_loss, Exponential<T>{});
  p.maxima[i] = result.maximum;
  p.rests[i] = result.rest;
  p.row_losses[i] = result.loss;
}

// loss (=) the sum or the mean of the losses that are not ignored, count (=) their number; one block.
template <class A>
__global__ void __launch_bounds__(1024) add_losses(const A* row_losses, const int32_t* targets, int64_t rows,
                                                   int32_t ignore_index, bool is_mean, A* loss, A* count) {
  __shared__ ReduceShared<double, 1024, 2> shared;
  double sums[2] = {0.0, 0.0};
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < rows; i += 1024) {
    sums[0] += static_cast<double>(row_losses[i]);
    sums[1] += targets[i] != ignore_index ? 1.0 : 0.0;
  }
  block_reduce<1024, 2>(sums, Sum{}, shared);
  if (threadIdx.x == 0) {
    *loss = sums[1] > 0.0 ? static_cast<A>(sums[0] / (is_mean ? sums[1] : 1.0)) : A(0);
    *count = static_cast<A>(sums[1]);
  }
}

template <class T>
struct Backward {
  RowsView logits, d_logits;
  const int32_t* targets;
  const accumulate_t<T>*maxima, *rests, *d_loss;
  const accumulate_t<T>* count;  // read for the mean
  int32_t ignore_index;
  Reduction reduction;
  accumulate_t<T> spread;  // share of every class in the label distribution, by label smoothing
  accumulate_t<T> z_loss;
  bool add;
};

// exp(z - maximum). In 16 bits an error of the exponent of 2^-18 at most is not seen.
template <class T>
__device__ __forceinline__ accumulate_t<T> term(accumulate_t<T> z, accumulate_t<T> maximum) {
  if constexpr (sizeof(T) == 2) {
    return exponential<T>(z - maximum);
  } else {
    return exponential_of_difference(z, maximum, Exponential<T>{});
  }
}

// d_logits (=|+=). Grid: (rows, splits of a row), so that few long rows fill the GPU too. Block: (threads of a row,
// rows).
template <class T, int width>
__global__ void __launch_bounds__(kThreads) logits_gradient(Backward<T> p) {
  using A = accumulate_t<T>;
  __shared__ A mean_scale;  // divided once a block: a division in double is a function call
  if (p.reduction == Reduction::mean) {
    if (threadIdx.x + threadIdx.y == 0) mean_scale = *p.count != A(0) ? *p.d_loss / *p.count : A(0);
    __syncthreads();
  }
  const int64_t i = blockIdx.x * int64_t{blockDim.y} + threadIdx.y;
  if (i >= p.logits.rows) return;
  const int64_t lane = threadIdx.x + int64_t{blockIdx.y} * blockDim.x;
  const int32_t target = p.targets[i];
  const bool ignored = target == p.ignore_index;
  const A scale = p.reduction == Reduction::mean ? mean_scale : p.d_loss[p.reduction == Reduction::none ? i : 0];
  const A maximum = p.maxima[i];
  const CrossEntropyRowGradient<A> of_row(scale, scale * p.spread, p.logits.cols, maximum, p.rests[i], p.z_loss);
  const T* z = row<const T>(p.logits, i);
  T* d_z = row<T>(p.d_logits, i);
#pragma unroll 2
  for (int64_t j = lane * width; j < p.logits.cols; j += int64_t{gridDim.y} * blockDim.x * width) {
    Vec<A, width> gradient = {};
    if (!ignored) {
      const Vec<A, width> values = load_wide<width>(z + j);
      const int64_t place = target - j;  // of the target among these values
#pragma unroll
      for (int e = 0; e < width; ++e) {
        const A own = term<T>(values[e], maximum);
        gradient[e] = e == place ? of_row.of_target(own) : of_row.of_other(own);
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
                        vector<A>(args.maxima),
                        vector<A>(args.rests),
                        args.options.ignore_index,
                        static_cast<A>(args.options.label_smoothing),
                        static_cast<A>(args.options.z_loss)};
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
}

template <class T>
void backward_as(Context& context, const CrossEntropyBackwardArgs& args) {
  using A = accumulate_t<T>;
  const int64_t rows = args.logits.rows, classes = args.logits.cols;
  if (rows == 0 || classes == 0) return;
  const Backward<T> p = {args.logits,
                         args.d_logits.view,
                         vector<const int32_t>(args.targets),
                         vector<const A>(args.maxima),
                         vector<const A>(args.rests),
                         vector<const A>(args.d_loss),
                         vector<const A>(args.count),
                         args.options.ignore_index,
                         args.options.reduction,
                         static_cast<A>(args.options.label_smoothing / static_cast<double>(classes)),
                         static_cast<A>(args.options.z_loss),
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
  if (args.options.reduction == Reduction::none) return;
  reduce_losses(context, {args.row_losses, args.targets, args.loss, args.count, args.options});
}

void reduce_losses(Context& context, const ReduceLossesArgs& args) {
  visit_floating(args.loss.dtype, [&](auto type) {
    using A = accumulate_t<decltype(type)>;
    HEDDLE_LAUNCH(context, add_losses<A>, 1, 1024, 0, vector<const A>(args.row_losses),
                  vector<const int32_t>(args.targets), args.targets.size, args.options.ignore_index,
                  args.options.reduction == Reduction::mean, vector<A>(args.loss), vector<A>(args.count));
  });
}

void cross_entropy_backward(Context& context, const CrossEntropyBackwardArgs& args) {
  visit_floating(args.logits.dtype, [&](auto type) { backward_as<decltype(type)>(context, args); });
}

}  // namespace heddle::kernels::cuda
