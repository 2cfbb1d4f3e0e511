// The logarithm of a sigmoid.                                                              kernels/dense/log_sigmoid.h
//   forward    y (=), as an operation of map() in map_vectors.h
//   backward   d_x (=|+=), one element a thread: its inputs differ in dtype
#include <cstdint>

#include "kernels/dense/cuda/map_vectors.h"
#include "kernels/dense/log_sigmoid.h"
#include "kernels/dense/log_sigmoid_element.h"

namespace heddle::kernels::cuda {
namespace {

// in: x; out: y
template <class A>
struct LogSigmoidForward {
  A divisor;
  template <int width>
  __device__ __forceinline__ void operator()(int64_t, const Vec<A, width> (&in)[1], Vec<A, width> (&out)[1]) const {
#pragma unroll
    for (int j = 0; j < width; ++j) out[0][j] = log_sigmoid_of(in[0][j]) / divisor;
  }
};

template <class T>
__global__ void __launch_bounds__(kMapThreads)
    log_sigmoid_gradient(Grid grid, Rows x, Rows d_y, Rows d_x, accumulate_t<T> divisor, bool add) {
  using A = accumulate_t<T>;
  const int64_t i = blockIdx.x * int64_t{kMapThreads} + threadIdx.x;
  if (i >= grid.vectors()) return;
  const Grid::Place place = grid.place(i);
  const A derivative = log_sigmoid_derivative(widen(*grid.at<const T>(x, place)));
  const Vec<A, 1> gradient = {*grid.at<const A>(d_y, place) * derivative / divisor};
  store_or_add(grid.at<T>(d_x, place), gradient, add);
}

Rows rows_of(const RowsView& view) { return {view.data, view.row_stride}; }

}  // namespace

void log_sigmoid_forward(Context& context, const LogSigmoidForwardArgs& args) {
  visit_floating(args.x.dtype, [&]<class T>(T) {
    using A = accumulate_t<T>;
    map<T, A, 1, 1>(context, {args.x}, {written(args.y)}, LogSigmoidForward<A>{static_cast<A>(args.divisor)});
  });
}

void log_sigmoid_backward(Context& context, const LogSigmoidBackwardArgs& args) {
  const RowsView &x = args.x, &d_y = args.d_y, &d_x = args.d_x.view;
  const int64_t elements = x.rows * x.cols;
  if (elements == 0) return;
  const bool dense = is_dense(x) && is_dense(d_y) && is_dense(d_x);
  const Grid grid(dense ? 1 : x.rows, dense ? elements : x.cols, 1);
  visit_floating(x.dtype, [&]<class T>(T) {
    HEDDLE_LAUNCH(context, log_sigmoid_gradient<T>, static_cast<unsigned>(ceil_div(elements, kMapThreads)), kMapThreads,
                  0, grid, rows_of(x), rows_of(d_y), rows_of(d_x), static_cast<accumulate_t<T>>(args.divisor),
                  args.d_x.mode == GradientMode::accumulate);
  });
}

}  // namespace heddle::kernels::cuda
