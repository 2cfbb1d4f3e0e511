#include "kernels/dense/guarded_divide.h"

#include <cstdint>

#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/math.h"
#include "kernels/common/cpu/types.h"
#include "kernels/dense/cpu/groups.h"

namespace heddle::kernels::cpu {
namespace {

// to (=) numbers / divisor
template <class A>
void divide(const GuardedDivisor<A>& divisor, const A* numbers, int64_t count, A* to) {
  if (divisor.fits) {
    HEDDLE_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) to[i] = numbers[i] / divisor.rounded;
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = divisor.divide(numbers[i]);
  }
}

}  // namespace

void guarded_divide_forward(Context& context, const GuardedDivideForwardArgs& args) {
  visit_floating(args.x.dtype, [&](auto type) {
    using T = decltype(type);
    using A = accumulate_t<T>;
    const int64_t size = args.x.cols / args.divisor.cols;
    parallel_groups(context, args.x, args.divisor.cols, [&](int64_t index, int64_t group, int64_t first) {
      const T* x = row<const T>(args.x, index) + first;
      T* y = row<T>(args.y, index) + first;
      const GuardedDivisor<A> divisor(static_cast<A>(row<const T>(args.divisor, index)[group]), args.eps);
      for_each_chunk(size, [&](int64_t begin, int64_t count) {
        Buffer<A> x_buffer, y_buffer;
        const A* from = load_chunk(x + begin, count, x_buffer);
        A* to = target_chunk(y + begin, GradientMode::overwrite, y_buffer);
        divide(divisor, from, count, to);
        store_chunk(y + begin, to, count, GradientMode::overwrite);
      });
    });
  });
}

void guarded_divide_backward(Context& context, const GuardedDivideBackwardArgs& args) {
  visit_floating(args.y.dtype, [&](auto type) {
    using T = decltype(type);
    using A = accumulate_t<T>;
    const int64_t size = args.y.cols / args.divisor.cols;
    parallel_groups(context, args.y, args.divisor.cols, [&](int64_t index, int64_t group, int64_t first) {
      const T* y = row<const T>(args.y, index) + first;
      const T* d_y = row<const T>(args.d_y, index) + first;
      T* d_x = args.d_x ? row<T>(args.d_x.view, index) + first : nullptr;
      const GuardedDivisor<A> divisor(static_cast<A>(row<const T>(args.divisor, index)[group]), args.eps);
      double sum = 0.0;
      for_each_chunk(size, [&](int64_t begin, int64_t count) {
        Buffer<A> y_buffer, d_y_buffer, d_x_buffer;
        const A* values = load_chunk(y + begin, count, y_buffer);
        const A* upstream = load_chunk(d_y + begin, count, d_y_buffer);
        sum += sum_of<double>(
            count, [&](int64_t i) { return static_cast<double>(upstream[i]) * static_cast<double>(values[i]); });
        if (!args.d_x) return;
        A* to = target_chunk(d_x + begin, args.d_x.mode, d_x_buffer);
        divide(divisor, upstream, count, to);
        store_chunk(d_x + begin, to, count, args.d_x.mode);
      });
      if (!args.d_divisor) return;
      const A d_divisor = divisor.is_below ? A(0) : static_cast<A>(-sum / divisor.exact);
      store(row<T>(args.d_divisor.view, index) + group, d_divisor, args.d_divisor.mode);
    });
  });
}

}  // namespace heddle::kernels::cpu
