// Cross entropy, backward, of logits (rows, classes): d_logits (=|+=).                     kernels/loss/cross_entropy.h
// Reads the logits once. Rows whose target is neither ignored nor a class get NaN.
#include <algorithm>
#include <cstdint>

#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/vec.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/loss/cross_entropy_row.h"
#include "kernels/loss/cuda/cross_entropy_gradient.h"

namespace heddle::kernels::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
struct Backward {
  RowsView logits, d_logits;
  const int32_t* targets;
  const accumulate_t<T>*maxima, *rests;
  const accumulate_t<T>* d_loss;  // null: 1 for each loss
  const accumulate_t<T>* count;   // read for the mean
  int32_t ignore_index;
  Reduction reduction;
  SmoothedLabel<accumulate_t<T>> label;
  accumulate_t<T> z_loss;
  bool add;
};

// d_logits (=|+=). Grid: (rows, splits of a row), so that few long rows fill the GPU too. Block: (threads of a row,
// rows).
template <class T, int width>
__global__ void __launch_bounds__(kThreads) logits_gradient(Backward<T> p) {
  using A = accumulate_t<T>;
  __shared__ A mean_scale;  // divided once a block: a division in double is a function call
  if (p.reduction == Reduction::mean) {
    if (threadIdx.x + threadIdx.y == 0) {
      const A upstream = p.d_loss != nullptr ? *p.d_loss : A(1);
      mean_scale = *p.count != A(0) ? upstream / *p.count : A(0);
    }
    __syncthreads();
  }
  const int64_t i = blockIdx.x * int64_t{blockDim.y} + threadIdx.y;
  if (i >= p.logits.rows) return;
  const int64_t lane = threadIdx.x + int64_t{blockIdx.y} * blockDim.x;
  const int32_t target = p.targets[i];
  const bool ignored = target == p.ignore_index;
  const A scale = p.reduction == Reduction::mean ? mean_scale
                  : p.d_loss == nullptr          ? A(1)
                                                 : p.d_loss[p.reduction == Reduction::none ? i : 0];
  const A maximum = p.maxima[i];
  const CrossEntropyRowGradient<A> of_row(scale, p.label, p.logits.cols, maximum, p.rests[i], p.z_loss);
  const T* z = row<const T>(p.logits, i);
  T* d_z = row<T>(p.d_logits, i);
#pragma unroll 2
  for (int64_t j = lane * width; j < p.logits.cols; j += int64_t{gridDim.y} * blockDim.x * width) {
    Vec<A, width> gradient = {};
    if (!ignored) {
      gradient = gradient_of<T, width>(of_row, load_wide<width>(z + j), maximum, target - j);
    }
    store_or_add(d_z + j, gradient, p.add);
  }
}

template <class T>
void backward_as(Context& context, const CrossEntropyBackwardArgs& args) {
  using A = accumulate_t<T>;
  const int64_t rows = args.logits.rows, classes = args.logits.cols;
  if (rows == 0 || classes == 0) return;
  const Backward<T> p = {.logits = args.logits,
                         .d_logits = args.d_logits.view,
                         .targets = vector<const int32_t>(args.targets),
                         .maxima = vector<const A>(args.maxima),
                         .rests = vector<const A>(args.rests),
                         .d_loss = vector<const A>(args.d_loss),
                         .count = vector<const A>(args.count),
                         .ignore_index = args.options.ignore_index,
                         .reduction = args.options.reduction,
                         .label = SmoothedLabel<A>::of(args.options.label_smoothing, classes),
                         .z_loss = static_cast<A>(args.options.z_loss),
                         .add = args.d_logits.mode == GradientMode::accumulate};
  with_width<T>(can_vectorize_all(vector_width<T>, p.logits, p.d_logits), [&](auto chosen) {
    constexpr int width = decltype(chosen)::value;
    const int64_t vectors = ceil_div(classes, width);
    const int rows_per_block = vectors <= 32 ? 8 : vectors <= 128 ? 2 : 1;
    const dim3 grid(static_cast<unsigned>(ceil_div(rows, rows_per_block)),
                    static_cast<unsigned>(std::min<int64_t>(ceil_div(vectors, 4 * kThreads), 64)));
    HEDDLE_LAUNCH(context, (logits_gradient<T, width>), grid, dim3(kThreads / rows_per_block, rows_per_block), 0, p);
  });
}

}  // namespace

void cross_entropy_backward(Context& context, const CrossEntropyBackwardArgs& args) {
  visit_floating(args.logits.dtype, [&](auto type) { backward_as<decltype(type)>(context, args); });
}

}  // namespace heddle::kernels::cuda
