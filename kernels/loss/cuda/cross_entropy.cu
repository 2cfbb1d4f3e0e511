// Cross entropy of logits (rows, classes) against class indices.                          kernels/loss/cross_entropy.h
//   forward    row_losses, maxima, rests (rows) (=), then loss and count (=) unless the losses of the rows are the
//              result; the gradients of the rows' losses (=) where they are wanted
// Forward reads the logits once: a block (a warp where rows are short) keeps the maximum of its row but for the target,
// and the sum of exponentials relative to it. Where it also writes gradients, the block keeps the row in shared memory
// in between; a row that has no room there is read again. One block then adds up the losses of the rows in a fixed
// order. A target that is neither ignored nor a class makes the loss and the row's gradient NaN.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/reduce.h"
#include "kernels/common/cuda/vec.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/loss/cross_entropy_row.h"
#include "kernels/loss/cuda/cross_entropy_gradient.h"

namespace heddle::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowThreads = 512;  // of a row that shared memory holds

// The sums over some of the classes of a row, without its target.
template <class T>
struct Partial {
  using A = accumulate_t<T>;
  OtherClasses<A> sums;
  A share;  // the number of these classes divided by that of all, for sums.gaps

  // Makes the sums relative to `maximum`, which is at least their own.
  __device__ __forceinline__ void raise(A maximum) {
    if (maximum == sums.maximum) return;
    sums.terms *= exponential<T>(sums.maximum - maximum);
    if (share > A(0)) sums.gaps += share * half_gap(maximum, sums.maximum);
    sums.maximum = maximum;
  }
  __device__ __forceinline__ void merge(Partial other) {
    const A maximum = sums.maximum > other.sums.maximum ? sums.maximum : other.sums.maximum;
    raise(maximum);
    other.raise(maximum);
    sums.terms += other.sums.terms;
    sums.gaps += other.sums.gaps;
    share += other.share;
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
         of_other_lane(partial.share)});
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
  RowsView d_logits;  // row_losses_and_gradient only
  const int32_t* targets;
  accumulate_t<T>*row_losses, *maxima, *rests;
  int32_t ignore_index;
  accumulate_t<T> smoothing, z_loss;
  SmoothedLabel<accumulate_t<T>> label;
  accumulate_t<T> share;  // 1 / number of classes
};

// Adds `width` logits of a row to the sums, to the gaps where they are wanted (SMOOTHED). `place` as in visit_target(),
// `share` as in Forward.
template <bool SMOOTHED, class T, int width>
__device__ __forceinline__ void add_classes(Partial<T>& partial, Vec<accumulate_t<T>, width> values, int64_t place,
                                            accumulate_t<T> share) {
  using A = accumulate_t<T>;
  visit_target<width>(place, [&](int e) { values[e] = -infinity<A>(); });
  A maximum = partial.sums.maximum, terms = A(0);
#pragma unroll
  for (int e = 0; e < width; ++e) maximum = fmax(maximum, values[e]);
  partial.raise(maximum);
  const bool is_some = maximum != -infinity<A>();
  if constexpr (SMOOTHED) {
    const bool has_target = place >= 0 && place < width;
    partial.share += A(has_target ? width - 1 : width) * share;
    A gaps = A(0);
#pragma unroll
    for (int e = 0; e < width; ++e) gaps += (e == place ? A(0) : half_gap(maximum, values[e])) * share;
    if (is_some) partial.sums.gaps += gaps;
  }
  if (!is_some) return;
#pragma unroll
  for (int e = 0; e < width; ++e) terms += exponential<T>(values[e] - maximum);
  partial.sums.terms += terms;
}

// Writes row_losses, maxima and rests (=) of row i, from the sums over its other classes.
template <class T>
__device__ __forceinline__ CrossEntropyRow<accumulate_t<T>> write_loss(const Forward<T>& p, int64_t i,
                                                                       const OtherClasses<accumulate_t<T>>& others,
                                                                       accumulate_t<T> hit) {
  const auto result = finish_row(others, hit, p.logits.cols, p.smoothing, p.z_loss, Exponential<T>{});
  p.maxima[i] = result.maximum;
  p.rests[i] = result.rest;
  p.row_losses[i] = result.loss;
  return result;
}

// The logit of the target; NaN where the target is no class.
template <class T>
__device__ __forceinline__ accumulate_t<T> target_logit(const T* z, int32_t target, int64_t classes) {
  return target >= 0 && target < classes ? widen(z[target]) : nan<accumulate_t<T>>();
}

// row_losses, maxima, rests (=), 0 for ignored rows. SMOOTHED: there is label smoothing.
template <class T, int width, int threads_per_row, bool SMOOTHED>
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
    add_classes<SMOOTHED>(partial, load_wide<width>(z + j), target - j, p.share);
  }
  partial = merge_row<T, threads_per_row>(partial);
  if (lane == 0) write_loss(p, i, partial.sums, target_logit(z, target, p.logits.cols));
}

// row_losses, maxima, rests and d_logits (=), 0 for ignored rows. One block a row, which shared memory holds.
template <class T, int width, bool SMOOTHED>
__global__ void __launch_bounds__(kRowThreads, sizeof(T) == 8 ? 1 : 2) row_losses_and_gradient(Forward<T> p) {
  using A = accumulate_t<T>;
  extern __shared__ uint4 dynamic_shared[];
  __shared__ CrossEntropyRow<A> shared_result;
  T* kept = reinterpret_cast<T*>(dynamic_shared);
  const int64_t i = blockIdx.x;
  const int first = static_cast<int>(threadIdx.x) * width, classes = static_cast<int>(p.logits.cols);
  constexpr int step = kRowThreads * width;
  const int32_t target = p.targets[i];
  T* d_z = row<T>(p.d_logits, i);
  if (target == p.ignore_index) {
    if (threadIdx.x == 0) p.row_losses[i] = p.maxima[i] = p.rests[i] = A(0);
    for (int j = first; j < classes; j += step) store_narrow(d_z + j, Vec<A, width>{});
    return;
  }
  const T* z = row<const T>(p.logits, i);
  Partial<T> partial = {{-infinity<A>(), A(0), A(0)}, A(0)};
  constexpr int kAtOnce = sizeof(T) == 8 ? 1 : 4;  // vectors that are under way
#pragma unroll 1
  for (int begin = first; begin < classes; begin += kAtOnce * step) {
    Vec<T, width> values[kAtOnce];
#pragma unroll
    for (int v = 0; v < kAtOnce; ++v) {
      if (begin + v * step < classes) values[v] = load<width>(z + begin + v * step);
    }
#pragma unroll
    for (int v = 0; v < kAtOnce; ++v) {
      const int j = begin + v * step;
      if (j >= classes) break;
      store(kept + j, values[v]);  // read by this thread alone
      add_classes<SMOOTHED>(partial, widen_all(values[v]), int64_t{target} - j, p.share);
    }
  }
  partial = merge_row<T, kRowThreads>(partial);
  if (threadIdx.x == 0) shared_result = write_loss(p, i, partial.sums, target_logit(z, target, classes));
  __syncthreads();
  const CrossEntropyRow<A> result = shared_result;
  const CrossEntropyRowGradient<A> of_row(A(1), p.label, classes, result.maximum, result.rest, p.z_loss);
#pragma unroll 2
  for (int j = first; j < classes; j += step) {
    store_narrow(d_z + j,
                 gradient_of<T, width>(of_row, load_wide<width>(kept + j), result.maximum, int64_t{target} - j));
  }
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

// Calls launch(std::bool_constant) with whether there is label smoothing.
template <class T, class Launch>
void visit_smoothing(const Forward<T>& p, const Launch& launch) {
  p.smoothing != 0 ? launch(std::true_type{}) : launch(std::false_type{});
}

// Launches row_losses_and_gradient where shared memory holds a row and the rows are long enough for a block each.
template <class T>
bool launch_in_one_read(Context& context, const Forward<T>& p) {
  if (p.logits.cols <= 1024) return false;
  bool is_launched = false;
  with_width<T>(can_vectorize_all(vector_width<T>, p.logits, p.d_logits), [&](auto chosen) {
    constexpr int width = decltype(chosen)::value;
    const size_t bytes = static_cast<size_t>(p.logits.cols) * sizeof(T);
    visit_smoothing(p, [&](auto smoothed) {
      const auto kernel = row_losses_and_gradient<T, width, smoothed()>;
      if (resident_blocks(context, kernel, kRowThreads, bytes) == 0) return;
      HEDDLE_LAUNCH(context, kernel, static_cast<unsigned>(p.logits.rows), kRowThreads, bytes, p);
      is_launched = true;
    });
  });
  return is_launched;
}

template <class T>
void forward_as(Context& context, const CrossEntropyForwardArgs& args) {
  using A = accumulate_t<T>;
  const int64_t rows = args.logits.rows, classes = args.logits.cols;
  if (rows == 0) return;
  const Forward<T> p = {args.logits,
                        args.d_logits,
                        vector<const int32_t>(args.targets),
                        vector<A>(args.row_losses),
                        vector<A>(args.maxima),
                        vector<A>(args.rests),
                        args.options.ignore_index,
                        static_cast<A>(args.options.label_smoothing),
                        static_cast<A>(args.options.z_loss),
                        SmoothedLabel<A>::of(args.options.label_smoothing, classes),
                        A(1) / static_cast<A>(classes)};
  if (args.d_logits && launch_in_one_read(context, p)) return;
  with_width<T>(can_vectorize(args.logits, vector_width<T>), [&](auto chosen) {
    constexpr int width = decltype(chosen)::value;
    visit_smoothing(p, [&](auto smoothed) {
      if (classes <= 1024) {
        const auto blocks = static_cast<unsigned>(ceil_div(rows, kThreads / 32));
        HEDDLE_LAUNCH(context, (row_losses<T, width, 32, smoothed()>), blocks, kThreads, 0, p);
      } else {
        HEDDLE_LAUNCH(context, (row_losses<T, width, kThreads, smoothed()>), static_cast<unsigned>(rows), kThreads, 0,
                      p);
      }
    });
  });
  if (!args.d_logits) return;
  CrossEntropyOptions of_rows = args.options;
  of_rows.reduction = Reduction::none;
  cross_entropy_backward(context, {.logits = args.logits,
                                   .targets = args.targets,
                                   .maxima = args.maxima,
                                   .rests = args.rests,
                                   .count = {},
                                   .d_loss = {},
                                   .d_logits = {args.d_logits},
                                   .options = of_rows});
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

}  // namespace heddle::kernels::cuda
