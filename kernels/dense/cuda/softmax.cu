// Softmax of groups of features.                                                          kernels/dense/softmax.h
//   forward   y (=)       backward   d_x (=|+=), which may be the memory of d_y
// A warp reads its group three times, from the cache after the first: for the maximum, for the sums, for the result.
#include <cmath>
#include <cstdint>

#include "kernels/common/cuda/activation.h"
#include "kernels/common/cuda/reduce.h"
#include "kernels/dense/cuda/groups.h"
#include "kernels/dense/softmax.h"

namespace heddle::kernels::cuda {
namespace {

// The softmax of a warp's group is exp(x - maximum) * factor.
template <class T>
struct WarpSoftmax {
  using A = accumulate_t<T>;
  A maximum, factor;

  __device__ __forceinline__ WarpSoftmax(const WarpGroup& group, const T* x) {
    A largest = -INFINITY, sum = 0;
    group.for_each([&](int64_t i) { largest = Max{}(largest, widen(x[i])); });
    maximum = group_max(largest);
    group.for_each([&](int64_t i) { sum += exponential<T>(widen(x[i]) - maximum); });
    factor = A(1) / group_sum(sum);
  }
  __device__ __forceinline__ A operator()(T x) const { return exponential<T>(widen(x) - maximum) * factor; }
};

template <class T>
__global__ void __launch_bounds__(kGroupThreads) forward_groups(SoftmaxForwardArgs args) {
  const WarpGroup group(args.x, args.groups);
  if (!group.is_in(args.x)) return;
  const T* x = row<const T>(args.x, group.row);
  T* y = row<T>(args.y, group.row);
  const WarpSoftmax<T> softmax(group, x);
  group.for_each([&](int64_t i) { y[i] = narrow<T>(softmax(x[i])); });
}

template <class T>
__global__ void __launch_bounds__(kGroupThreads) backward_groups(SoftmaxBackwardArgs args) {
  const WarpGroup group(args.x, args.groups);
  if (!group.is_in(args.x)) return;
  const T* x = row<const T>(args.x, group.row);
  const T* d_y = row<const T>(args.d_y, group.row);
  T* d_x = row<T>(args.d_x.view, group.row);
  const WarpSoftmax<T> softmax(group, x);
  accumulate_t<T> dot = 0;
  group.for_each([&](int64_t i) { dot += softmax(x[i]) * widen(d_y[i]); });
  dot = group_sum(dot);
  group.for_each([&](int64_t i) { store_value(d_x + i, softmax(x[i]) * (widen(d_y[i]) - dot), args.d_x.mode); });
}

}  // namespace

void softmax_forward(Context& context, const SoftmaxForwardArgs& args) {
  if (args.x.rows == 0) return;
  visit_floating(args.x.dtype, [&](auto type) {
    HEDDLE_LAUNCH(context, forward_groups<decltype(type)>, grid_for_groups(args.x, args.groups), kGroupThreads, 0,
                  args);
  });
}

void softmax_backward(Context& context, const SoftmaxBackwardArgs& args) {
  if (args.x.rows == 0) return;
  visit_floating(args.x.dtype, [&](auto type) {
    HEDDLE_LAUNCH(context, backward_groups<decltype(type)>, grid_for_groups(args.x, args.groups), kGroupThreads, 0,
                  args);
  });
}

}  // namespace heddle::kernels::cuda
