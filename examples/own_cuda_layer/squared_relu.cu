#include <cuda_runtime.h>

#include <cstdint>

#include "heddle/core/runtime/context.h"
#include "heddle/core/runtime/error.h"
#include "heddle/kernels/common/views.h"
#include "heddle/layers/ops/gradient.h"
#include "squared_relu.h"

namespace {

using namespace heddle;
using kernels::RowsDestination;
using kernels::RowsView;

// --- The kernels: a thread an element. Rows lie row_stride apart; the columns are dense.

template <class T>
__device__ T& element(const RowsView& view, int64_t index) {
  return static_cast<T*>(view.data)[index / view.cols * view.row_stride + index % view.cols];
}

template <class T>
__global__ void forward_kernel(RowsView x, RowsView y) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= x.rows * x.cols) return;
  const T value = element<T>(x, index);
  element<T>(y, index) = value > T(0) ? value * value : T(0);
}

// d_x (=|+=) 2 max(x, 0) d_y
template <class T>
__global__ void backward_kernel(RowsView x, RowsView d_y, RowsView d_x, bool adds) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= x.rows * x.cols) return;
  const T value = element<T>(x, index);
  const T gradient = value > T(0) ? T(2) * value * element<T>(d_y, index) : T(0);
  T& place = element<T>(d_x, index);
  place = adds ? place + gradient : gradient;
}

// Launches on the stream of the context, which orders the kernel behind what it reads.
template <class... Parameters, class... Arguments>
void launch(Context& context, int64_t threads, void (*kernel)(Parameters...), const Arguments&... arguments) {
  if (threads == 0) return;
  constexpr int64_t kBlock = 256;
  cudaSetDevice(context.device().index);
  kernel<<<static_cast<unsigned>((threads + kBlock - 1) / kBlock), kBlock, 0, context.stream()>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  check(error == cudaSuccess, "[squared_relu] {}", cudaGetErrorString(error));
}

// --- The node: what is kept for backward, and which gradients it makes of which.

struct SquaredReluNode {
  Slot x, y;
  Tensor saved_x;

  void backward(Tape& tape) {
    const Tensor upstream = tape.take_gradient(y);
    const RowsView x_rows = kernels::rows_view(saved_x), d_y = kernels::rows_view(upstream);
    const RowsDestination d_x = rows_destination(tape.destination(x));
    const bool adds = d_x.mode == GradientMode::accumulate;
    const auto kernel = saved_x.dtype() == DType::float64 ? backward_kernel<double> : backward_kernel<float>;
    launch(tape.context(), saved_x.numel(), kernel, x_rows, d_y, d_x.view, adds);
  }
};

}  // namespace

// --- The layer: checks, computes, records.

Variable squared_relu(Tape& tape, const Variable& x) {
  check(x.dtype() == DType::float64 || x.dtype() == DType::float32,
        "[squared_relu] x is {}, expected float64 or float32", name(x.dtype()));
  check(tape.context().device().type == DeviceType::cuda, "[squared_relu] the context is on {}, expected a GPU",
        to_string(tape.context().device()));
  const bool recorded = tape.records("squared_relu", {{"x", x}});
  Variable y = tape.output(Tensor::empty(tape.context(), x.shape(), x.dtype()), recorded);
  const auto kernel = x.dtype() == DType::float64 ? forward_kernel<double> : forward_kernel<float>;
  launch(tape.context(), x.value.numel(), kernel, kernels::rows_view(x.value), kernels::rows_view(y.value));
  if (!recorded) return y;

  tape.record(SquaredReluNode{.x = x.slot, .y = y.slot, .saved_x = x.value}, {x}, {y});
  return y;
}
