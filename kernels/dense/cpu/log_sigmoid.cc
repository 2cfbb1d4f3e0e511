#include "kernels/dense/log_sigmoid.h"

#include <cstdint>

#include "kernels/common/cpu/parallel.h"
#include "kernels/common/cpu/types.h"
#include "kernels/dense/log_sigmoid_element.h"

namespace heddle::kernels::cpu {
namespace {

constexpr int64_t kElementsOfATask = 8192;

// Calls row(index) for every row, on several threads.
template <class Row>
void parallel_rows(const Context& context, const RowsView& shape, const Row& row) {
  const int64_t grain = 1 + kElementsOfATask / (shape.cols + 1);
  parallel_ranges(context, shape.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) row(index);
  });
}

}  // namespace

void log_sigmoid_forward(Context& context, const LogSigmoidForwardArgs& args) {
  visit_floating(args.x.dtype, [&](auto type) {
    using T = decltype(type);
    using A = accumulate_t<T>;
    parallel_rows(context, args.x, [&](int64_t index) {
      const T* x = row<const T>(args.x, index);
      A* y = row<A>(args.y, index);
      for (int64_t i = 0; i < args.x.cols; ++i) {
        y[i] = log_sigmoid_of(static_cast<A>(x[i])) / static_cast<A>(args.divisor);
      }
    });
  });
}

void log_sigmoid_backward(Context& context, const LogSigmoidBackwardArgs& args) {
  visit_floating(args.x.dtype, [&](auto type) {
    using T = decltype(type);
    using A = accumulate_t<T>;
    parallel_rows(context, args.x, [&](int64_t index) {
      const T* x = row<const T>(args.x, index);
      const A* d_y = row<const A>(args.d_y, index);
      T* d_x = row<T>(args.d_x.view, index);
      for (int64_t i = 0; i < args.x.cols; ++i) {
        const A derivative = log_sigmoid_derivative(static_cast<A>(x[i]));
        store(d_x + i, d_y[i] * derivative / static_cast<A>(args.divisor), args.d_x.mode);
      }
    });
  });
}

}  // namespace heddle::kernels::cpu
