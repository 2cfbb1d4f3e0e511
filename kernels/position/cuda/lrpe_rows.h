// The kernels of the position encodings for any dim, alignment and dtype, and those of d_theta.    docs/layers.md#lrpe
//   lrpe_forward_rows                       y (=)
//   lrpe_backward_rows                      d_x (=|+=)
//   softmax_over_sequence, softmax_dots     maximum, sum (=) and dots (=), for a softmax over the sequence
//   theta_partials, theta_finish            partials (=), then d_theta (=|+=)
// Encoding has a WIDTH of 1: a thread works on one angle at a time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/common/cuda/compensated_sum.h"
#include "kernels/position/cuda/lrpe.h"

namespace heddle::kernels::cuda {

// The indices of one row. A column is a pair of batch and head, column = batch * heads + head_index.
struct RowPlace {
  int64_t batch, position, head_index, theta_head, column;
  __device__ RowPlace(const HeadsView& x, const RowsView& theta, int64_t position, int64_t column)
      : batch(column / x.heads),
        position(position),
        head_index(column % x.heads),
        theta_head(theta.rows == 1 ? 0 : head_index),
        column(column) {}
  // Row `index` of all: the head varies fastest, then the position.
  __device__ RowPlace(const HeadsView& x, const RowsView& theta, int64_t index)
      : RowPlace(x, theta, index / x.heads % x.length, index / x.heads / x.length * x.heads + index % x.heads) {}
};

// The activation of one row, element by element. All lanes of a warp construct it together.
template <class T>
struct RowActivation {
  using A = accumulate_t<T>;
  const T* x;
  Activation act;
  Softmax softmax;
  A row_maximum = A(0), row_factor = A(1);     // for a softmax over features: a = exp(x - row_maximum) * row_factor
  const A *maximum = nullptr, *sum = nullptr;  // (dim) for a softmax over the sequence: a = exp(x - maximum) / sum

  template <class Args>
  __device__ RowActivation(const Args& args, const RowPlace& place)
      : x(args.x ? head<const T>(args.x, place.batch, place.position, place.head_index) : nullptr),
        act(args.options.act),
        softmax(args.options.softmax) {
    if (x == nullptr) return;
    const int64_t dim = args.x.dim;
    if (softmax == Softmax::feature) {
      row_maximum = widen(x[0]);
      for (int64_t i = threadIdx.x; i < dim; i += 32) row_maximum = Max{}(row_maximum, widen(x[i]));
      row_maximum = group_max(row_maximum);
      A total = A(0);
      for (int64_t i = threadIdx.x; i < dim; i += 32) total += exponential<T>(widen(x[i]) - row_maximum);
      row_factor = A(1) / group_sum(total);
    }
    if (softmax == Softmax::sequence) {
      maximum = vector<const A>(args.maximum) + place.column * dim;
      sum = vector<const A>(args.sum) + place.column * dim;
    }
  }

  // a at feature i.
  __device__ A operator()(int64_t i) const {
    A value = widen(x[i]);
    if (softmax == Softmax::feature) return exponential<T>(value - row_maximum) * row_factor;
    if (softmax == Softmax::sequence) return exponential<T>(value - maximum[i]) / sum[i];
    visit_activation(act, [&](auto chosen) { value = activate<decltype(chosen)::value, T>(value); });
    return value;
  }

  // The gradient of x at feature i, given that of a; `softmax` is none.
  __device__ A differentiate(int64_t i, A d_a) const {
    visit_activation(act, [&](auto chosen) {
      constexpr Activation kAct = decltype(chosen)::value;
      d_a = chain_rule<kAct>(d_a, activate_with_derivative<kAct, T>(widen(x[i])).derivative);
    });
    return d_a;
  }
};

// Sine and cosine of angle k of a row at a position of the text.
template <class Encoding, class Options>
__device__ __forceinline__ void compute_angle(const RowsView& theta, const Options& options, int64_t theta_head,
                                              int64_t position, int64_t k, SinCos<typename Encoding::A> (&angle)[1]) {
  const typename Encoding::Thetas thetas(theta, theta_head, static_cast<int>(k));
  typename Encoding::Angles(thetas).at(options, position, angle);
}

// d_a, the gradient of the activated x, at the inputs of angle k.
template <class Encoding>
__device__ __forceinline__ void input_gradient(const typename Encoding::T* d_y, int k, int dim,
                                               const SinCos<typename Encoding::A> (&angle)[1], bool is_extra,
                                               typename Encoding::A (&d_a)[Encoding::kValues]) {
  const typename Encoding::A upstream[2] = {widen(d_y[Encoding::output_at(0, k, dim)]),
                                            widen(d_y[Encoding::output_at(1, k, dim)])};
  Encoding::backward(upstream, angle, is_extra, d_a);
}

// One warp per row.
template <class Encoding>
__global__ void __launch_bounds__(32) lrpe_forward_rows(const __grid_constant__ typename Encoding::ForwardArgs args) {
  using T = typename Encoding::T;
  using A = typename Encoding::A;
  const int64_t rows = args.x.batch * args.x.length * args.x.heads;
  const int dim = static_cast<int>(args.x.dim);
  const int64_t before = args.tokens_before != nullptr ? *args.tokens_before : 0;
  for (int64_t index = blockIdx.x; index < rows; index += gridDim.x) {
    const RowPlace place(args.x, args.theta, index);
    const int64_t position = place.position + before;  // in the text
    const RowActivation<T> act(args, place);
    T* to = head<T>(args.y, place.batch, place.position, place.head_index);
    for (int k = threadIdx.x; k < Encoding::angle_count(dim); k += 32) {
      SinCos<A> angle[1];
      compute_angle<Encoding>(args.theta, args.options, place.theta_head, position, k, angle);
      A a[Encoding::kValues], y[2];
#pragma unroll
      for (int v = 0; v < Encoding::kInputs; ++v) a[v] = act(Encoding::input_at(v, k, dim));
      Encoding::forward(a, angle, Encoding::is_extra(args.options, position), y);
#pragma unroll
      for (int v = 0; v < 2; ++v) to[Encoding::output_at(v, k, dim)] = narrow<T>(y[v]);
    }
  }
}

template <class Encoding>
__global__ void __launch_bounds__(32) lrpe_backward_rows(const __grid_constant__ typename Encoding::BackwardArgs args) {
  using T = typename Encoding::T;
  using A = typename Encoding::A;
  const auto& options = args.options;
  const HeadsView& d_x_view = args.d_x.view;
  const int64_t rows = d_x_view.batch * d_x_view.length * d_x_view.heads;
  const int dim = static_cast<int>(d_x_view.dim);
  for (int64_t index = blockIdx.x; index < rows; index += gridDim.x) {
    const RowPlace place(d_x_view, args.theta, index);
    const RowActivation<T> act(args, place);
    const T* d_y = head<const T>(args.d_y, place.batch, place.position, place.head_index);
    T* d_x = head<T>(d_x_view, place.batch, place.position, place.head_index);
    const auto gradient = [&](int k, A(&d_a)[Encoding::kValues]) {
      SinCos<A> angle[1];
      compute_angle<Encoding>(args.theta, options, place.theta_head, place.position, k, angle);
      input_gradient<Encoding>(d_y, k, dim, angle, Encoding::is_extra(options, place.position), d_a);
    };
    A dot = A(0);
    if (options.softmax == Softmax::feature) {
      for (int k = threadIdx.x; k < Encoding::angle_count(dim); k += 32) {
        A d_a[Encoding::kValues];
        gradient(k, d_a);
#pragma unroll
        for (int v = 0; v < Encoding::kInputs; ++v) dot += act(Encoding::input_at(v, k, dim)) * d_a[v];
      }
      dot = group_sum(dot);
    }
    for (int k = threadIdx.x; k < Encoding::angle_count(dim); k += 32) {
      A d_a[Encoding::kValues];
      gradient(k, d_a);
#pragma unroll
      for (int v = 0; v < Encoding::kInputs; ++v) {
        const int i = Encoding::input_at(v, k, dim);
        A value = d_a[v];
        if (options.softmax == Softmax::none) {
          if (options.act != Activation::none) value = act.differentiate(i, value);
        } else {
          const A mean = options.softmax == Softmax::feature ? dot : vector<const A>(args.dots)[place.column * dim + i];
          value = act(i) * (value - mean);
        }
        if (args.d_x.mode == GradientMode::accumulate) value += widen(d_x[i]);
        d_x[i] = narrow<T>(value);
      }
    }
  }
}

// --- Sums over the sequence: a block owns 32 features (or angles) of a column, its 16 warps every 16th position each
// ---

constexpr int kSequenceWarps = 16;

template <class T, class Args>
__global__ void __launch_bounds__(32 * kSequenceWarps, 1) softmax_over_sequence(const __grid_constant__ Args args) {
  using A = accumulate_t<T>;
  __shared__ A maxima[kSequenceWarps][32], sums[kSequenceWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = blockIdx.x;
  const int64_t feature = int64_t{blockIdx.y} * 32 + lane;
  const int64_t batch = column / args.x.heads;
  A maximum = -infinity<A>();
  if (feature < args.x.dim) {
    for (int64_t n = warp; n < args.x.length; n += kSequenceWarps) {
      maximum = Max{}(maximum, widen(head<const T>(args.x, batch, n, column % args.x.heads)[feature]));
    }
  }
  maxima[warp][lane] = maximum;
  __syncthreads();
  for (int w = 0; w < kSequenceWarps; ++w) maximum = Max{}(maximum, maxima[w][lane]);
  CompensatedSum<A> own;
  if (feature < args.x.dim) {
    for (int64_t n = warp; n < args.x.length; n += kSequenceWarps) {
      own.add(exponential<T>(widen(head<const T>(args.x, batch, n, column % args.x.heads)[feature]) - maximum));
    }
  }
  A sum = own.value();
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || feature >= args.x.dim) return;
  for (int w = 1; w < kSequenceWarps; ++w) sum += sums[w][lane];
  vector<A>(args.maximum)[column * args.x.dim + feature] = maximum;
  vector<A>(args.sum)[column * args.x.dim + feature] = sum;
}

// dots (=) the sum over positions of a * d_a, for each column and feature.
template <class Encoding>
__global__ void __launch_bounds__(32 * kSequenceWarps, 1)
    softmax_dots(const __grid_constant__ typename Encoding::BackwardArgs args) {
  using T = typename Encoding::T;
  using A = typename Encoding::A;
  __shared__ A sums[kSequenceWarps][Encoding::kInputs][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = blockIdx.x;
  const int dim = static_cast<int>(args.x.dim);
  const int k = static_cast<int>(blockIdx.y) * 32 + lane;
  const bool valid = k < Encoding::angle_count(dim);
  RowPlace place(args.x, args.theta, warp, column);
  CompensatedSum<A> own[Encoding::kInputs];
  if (valid) {
    for (; place.position < args.x.length; place.position += kSequenceWarps) {
      const RowActivation<T> act(args, place);
      SinCos<A> angle[1];
      compute_angle<Encoding>(args.theta, args.options, place.theta_head, place.position, k, angle);
      A d_a[Encoding::kValues];
      input_gradient<Encoding>(head<const T>(args.d_y, place.batch, place.position, place.head_index), k, dim, angle,
                               Encoding::is_extra(args.options, place.position), d_a);
#pragma unroll
      for (int v = 0; v < Encoding::kInputs; ++v) own[v].add(act(Encoding::input_at(v, k, dim)) * d_a[v]);
    }
  }
  A dot[Encoding::kInputs];
#pragma unroll
  for (int v = 0; v < Encoding::kInputs; ++v) sums[warp][v][lane] = dot[v] = own[v].value();
  __syncthreads();
  if (warp != 0 || !valid) return;
#pragma unroll
  for (int v = 0; v < Encoding::kInputs; ++v) {
    for (int w = 1; w < kSequenceWarps; ++w) dot[v] += sums[w][v][lane];
    vector<A>(args.dots)[column * dim + Encoding::input_at(v, k, dim)] = dot[v];
  }
}

// --- d_theta: positions are split among blocks, and a second kernel adds their partial sums in order ---

// partials (splits, theta_heads * E) (=) the sums of one split of `positions` positions; grid: (splits, theta_heads).
// The gradient of an angle is d_phi = d_y[1] y[0] - d_y[0] y[1]; that of its theta is d_phi times the coordinate.
template <class Encoding>
__global__ void __launch_bounds__(32)
    theta_partials(const __grid_constant__ typename Encoding::BackwardArgs args, int64_t positions) {
  using T = typename Encoding::T;
  using A = typename Encoding::A;
  const HeadsView& x = args.x;
  const int dim = static_cast<int>(x.dim);
  const int64_t angles = Encoding::angle_count(dim), thetas = args.theta.cols, period = Encoding::period(args.theta);
  const int64_t theta_head = blockIdx.y;
  const int64_t begin = blockIdx.x * positions;
  const int64_t end = min(x.length, begin + positions);
  for (int64_t first = 0; first < thetas; first += 32) {
    const int64_t index = first + threadIdx.x;
    double sum = 0.0;
    for (int64_t n = begin; n < end; ++n) {
      if (Encoding::is_extra(args.options, n)) continue;
      for (int64_t column = 0; column < x.batch * x.heads; ++column) {
        const RowPlace place(x, args.theta, n, column);
        if (place.theta_head != theta_head) continue;
        const RowActivation<T> act(args, place);
        if (index >= thetas) continue;
        const T* d_y = head<const T>(args.d_y, place.batch, n, place.head_index);
        for (int64_t k = index; k < angles; k += min(period, angles)) {
          SinCos<A> angle[1];
          compute_angle<Encoding>(args.theta, args.options, place.theta_head, place.position, k, angle);
          A a[Encoding::kValues], y[2];
#pragma unroll
          for (int v = 0; v < Encoding::kInputs; ++v) {
            a[v] = act(Encoding::input_at(v, static_cast<int>(k), dim));
          }
          Encoding::forward(a, angle, false, y);
          const A d_phi = widen(d_y[Encoding::output_at(1, static_cast<int>(k), dim)]) * y[0] -
                          widen(d_y[Encoding::output_at(0, static_cast<int>(k), dim)]) * y[1];
          sum += static_cast<double>(d_phi) * static_cast<double>(Encoding::coordinate(args.options, args.theta, n, k));
        }
      }
    }
    if (index < thetas) row<A>(args.partials, blockIdx.x)[theta_head * thetas + index] = static_cast<A>(sum);
  }
}

// d_theta (=|+=) the sum of the partial sums of all splits, one thread per theta.
template <class O, class A>
__global__ void theta_finish(const __grid_constant__ RowsView partials, const __grid_constant__ RowsDestination d_theta,
                             int splits) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t cols = d_theta.view.cols;
  if (index >= d_theta.view.rows * cols) return;
  CompensatedSum<A> sum;
  for (int split = 0; split < splits; ++split) sum.add(row<const A>(partials, split)[index]);
  O* to = row<O>(d_theta.view, index / cols) + index % cols;
  if (d_theta.mode == GradientMode::accumulate) sum.add(static_cast<A>(widen(*to)));
  *to = narrow<O>(sum.value());
}

template <class Encoding>
void launch_d_theta(Context& context, const typename Encoding::BackwardArgs& args) {
  using T = typename Encoding::T;
  if (args.theta.rows * args.theta.cols == 0) return;
  const int64_t length = args.x.length;
  const int64_t positions = std::max<int64_t>(1, ceil_div(length, lrpe_theta_partials(length)));
  const int splits = static_cast<int>(args.x.batch > 0 ? ceil_div(length, positions) : 0);
  if (splits > 0) {
    const dim3 grid(static_cast<unsigned>(splits), static_cast<unsigned>(args.theta.rows));
    HEDDLE_LAUNCH(context, theta_partials<Encoding>, grid, 32, 0, args, positions);
  }
  visit_same_or_accumulate<T>(args.d_theta.view.dtype, dtype_of<T>, [&](auto type) {
    HEDDLE_LAUNCH(context, (theta_finish<decltype(type), accumulate_t<T>>),
                  static_cast<unsigned>(ceil_div(args.theta.rows * args.theta.cols, 128)), 128, 0, args.partials,
                  args.d_theta, splits);
  });
}

}  // namespace heddle::kernels::cuda
