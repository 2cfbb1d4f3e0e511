#include "kernels/dense/softmax.h"

#include <cstdint>

#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/math.h"
#include "kernels/common/cpu/softmax.h"
#include "kernels/common/cpu/types.h"
#include "kernels/dense/cpu/groups.h"

namespace heddle::kernels::cpu {

void softmax_forward(Context& context, const SoftmaxForwardArgs& args) {
  visit_floating(args.x.dtype, [&](auto type) {
    using T = decltype(type);
    using A = accumulate_t<T>;
    const int64_t size = args.x.cols / args.groups;
    parallel_groups(context, args.x, args.groups, [&](int64_t index, int64_t, int64_t first) {
      const T* x = row<const T>(args.x, index) + first;
      T* y = row<T>(args.y, index) + first;
      const RowSoftmax<A> softmax = row_softmax(x, size);
      for_each_chunk(size, [&](int64_t begin, int64_t count) {
        Buffer<A> x_buffer, y_buffer;
        const A* from = load_chunk(x + begin, count, x_buffer);
        A* to = target_chunk(y + begin, GradientMode::overwrite, y_buffer);
        HEDDLE_INDEPENDENT
        for (int64_t i = 0; i < count; ++i) to[i] = softmax(from[i]);
        store_chunk(y + begin, to, count, GradientMode::overwrite);
      });
    });
  });
}

void softmax_backward(Context& context, const SoftmaxBackwardArgs& args) {
  visit_floating(args.x.dtype, [&](auto type) {
    using T = decltype(type);
    using A = accumulate_t<T>;
    const int64_t size = args.x.cols / args.groups;
    parallel_groups(context, args.x, args.groups, [&](int64_t index, int64_t, int64_t first) {
      const T* x = row<const T>(args.x, index) + first;
      const T* d_y = row<const T>(args.d_y, index) + first;
      T* d_x = row<T>(args.d_x.view, index) + first;
      const RowSoftmax<A> softmax = row_softmax(x, size);
      const auto for_each_part = [&](const auto& visit) {
        for_each_chunk(size, [&](int64_t begin, int64_t count) {
          Buffer<A> x_buffer, d_y_buffer;
          visit(load_chunk(x + begin, count, x_buffer), load_chunk(d_y + begin, count, d_y_buffer), begin, count);
        });
      };
      double sum = 0.0;
      for_each_part([&](const A* values, const A* upstream, int64_t, int64_t count) {
        sum += sum_of<A>(count, [&](int64_t i) { return softmax(values[i]) * upstream[i]; });
      });
      const A dot = static_cast<A>(sum);
      for_each_part([&](const A* values, const A* upstream, int64_t begin, int64_t count) {
        Buffer<A> buffer;
        A* to = target_chunk(d_x + begin, args.d_x.mode, buffer);
        HEDDLE_INDEPENDENT
        for (int64_t i = 0; i < count; ++i) to[i] = softmax(values[i]) * (upstream[i] - dot);
        store_chunk(d_x + begin, to, count, args.d_x.mode);
      });
    });
  });
}

}  // namespace heddle::kernels::cpu
