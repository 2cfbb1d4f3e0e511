// Division of groups of features by one number each.                               kernels/dense/guarded_divide.h
//   forward   y (=)       backward   d_x, which may be the memory of d_y, and d_divisor (=|+=)
#include <cstdint>

#include "kernels/common/cuda/reduce.h"
#include "kernels/dense/cuda/groups.h"
#include "kernels/dense/guarded_divide.h"

namespace heddle::kernels::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kGroupThreads) forward_groups(GuardedDivideForwardArgs args) {
  using A = accumulate_t<T>;
  const WarpGroup group(args.x, args.divisor.cols);
  if (!group.is_in(args.x)) return;
  const T* x = row<const T>(args.x, group.row);
  T* y = row<T>(args.y, group.row);
  const GuardedDivisor<A> divisor(widen(row<const T>(args.divisor, group.row)[group.group]), args.eps);
  group.for_each([&](int64_t i) { y[i] = narrow<T>(divisor.divide(widen(x[i]))); });
}

template <class T>
__global__ void __launch_bounds__(kGroupThreads) backward_groups(GuardedDivideBackwardArgs args) {
  using A = accumulate_t<T>;
  const WarpGroup group(args.y, args.divisor.cols);
  if (!group.is_in(args.y)) return;
  const T* y = row<const T>(args.y, group.row);
  const T* d_y = row<const T>(args.d_y, group.row);
  const GuardedDivisor<A> divisor(widen(row<const T>(args.divisor, group.row)[group.group]), args.eps);
  double sum = 0.0;
  group.for_each([&](int64_t i) {
    const A upstream = widen(d_y[i]);
    sum += static_cast<double>(upstream) * static_cast<double>(widen(y[i]));
    if (args.d_x) store_value(row<T>(args.d_x.view, group.row) + i, divisor.divide(upstream), args.d_x.mode);
  });
  sum = group_sum(sum);
  if (!args.d_divisor || threadIdx.x % 32 != 0) return;
  store_value(row<T>(args.d_divisor.view, group.row) + group.group,
              divisor.is_below ? A(0) : static_cast<A>(-sum / divisor.exact), args.d_divisor.mode);
}

}  // namespace

void guarded_divide_forward(Context& context, const GuardedDivideForwardArgs& args) {
  if (args.x.rows == 0 || args.divisor.cols == 0) return;
  visit_floating(args.x.dtype, [&](auto type) {
    HEDDLE_LAUNCH(context, forward_groups<decltype(type)>, grid_for_groups(args.x, args.divisor.cols), kGroupThreads, 0,
                  args);
  });
}

void guarded_divide_backward(Context& context, const GuardedDivideBackwardArgs& args) {
  if (args.y.rows == 0 || args.divisor.cols == 0) return;
  visit_floating(args.y.dtype, [&](auto type) {
    HEDDLE_LAUNCH(context, backward_groups<decltype(type)>, grid_for_groups(args.y, args.divisor.cols), kGroupThreads,
                  0, args);
  });
}

}  // namespace heddle::kernels::cuda
