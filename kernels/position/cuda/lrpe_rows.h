// The kernels of the position encodings for any dim and any alignment, one unit at a time, and those of d_theta.
// docs/layers.md#lrpe
#pragma once

#include "kernels/position/cuda/lrpe.h"

namespace heddle::kernels::cuda {

// One row and what belongs to it.
struct RowPlace {
  int64_t batch, position, head_index, theta_head, column;  // column: batch * heads + head
  __device__ RowPlace(const HeadsView& x, const RowsView& theta, int64_t position, int64_t column)
      : batch(column / x.heads),
        position(position),
        head_index(column % x.heads),
        theta_head(theta.rows == 1 ? 0 : head_index),
        column(column) {}
  // Of the row of this index; heads are the fastest, then positions.
  __device__ RowPlace(const HeadsView& x, const RowsView& theta, int64_t index)
      : RowPlace(x, theta, index / x.heads % x.length, index / x.heads / x.length * x.heads + index % x.heads) {}
};

// act of one row of `dim` features, element by element.
template <class T>
struct RowActivation {
  using A = accumulate_t<T>;
  const T* x;
  Activation act;
  Softmax softmax;
  A most = A(0), factor = A(1);                // of the row, for softmax over features
  const A *maximum = nullptr, *sum = nullptr;  // of the features, for softmax over the sequence

  template <class Args>
  __device__ RowActivation(const Args& args, const RowPlace& place)
      : x(args.x ? head<const T>(args.x, place.batch, place.position, place.head_index) : nullptr),
        act(args.options.act),
        softmax(args.options.softmax) {
    if (x == nullptr) return;
    const int64_t dim = args.x.dim;
    if (softmax == Softmax::feature) {
      most = widen(x[0]);
      for (int64_t i = threadIdx.x; i < dim; i += 32) most = Max{}(most, widen(x[i]));
      most = group_max(most);
      A total = A(0);
      for (int64_t i = threadIdx.x; i < dim; i += 32) total += exponential<T>(widen(x[i]) - most);
      factor = A(1) / group_sum(total);
    }
    if (softmax == Softmax::sequence) {
      maximum = vector<const A>(args.maximum) + place.column * dim;
      sum = vector<const A>(args.sum) + place.column * dim;
    }
  }

  __device__ Activated<A> operator()(int64_t i) const {
    const A value = widen(x[i]);
    if (softmax == Softmax::feature) {
      const A a = exponential<T>(value - most) * factor;
      return {a, a};
    }
    if (softmax == Softmax::sequence) {
      const A a = exponential<T>(value - maximum[i]) / sum[i];
      return {a, a};
    }
    Activated<A> result{value, A(1)};
    visit_activation(act, [&](auto chosen) { result = activate_with_derivative<decltype(chosen)::value, T>(value); });
    return result;
  }
};

// Sine and cosine of unit k of a row.
template <class Encoding, class Options>
__device__ __forceinline__ void unit_angle(const RowsView& theta, const Options& options, const RowPlace& place,
                                           int64_t k, SinCos<typename Encoding::A> (&angle)[1]) {
  const typename Encoding::Thetas thetas(theta, place.theta_head, static_cast<int>(k));
  typename Encoding::Angles(thetas).at(options, place.position, angle);
}

// The gradient of a at the inputs of unit k.
template <class Encoding>
__device__ __forceinline__ void unit_gradient(const typename Encoding::T* d_y, int k, int dim,
                                              const SinCos<typename Encoding::A> (&angle)[1],
                                              typename Encoding::A (&d_a)[Encoding::kValues]) {
  const typename Encoding::A upstream[2] = {widen(d_y[Encoding::output_at(0, k, dim)]),
                                            widen(d_y[Encoding::output_at(1, k, dim)])};
  Encoding::backward(upstream, angle, d_a);
}

// A warp a row. Encoding has a WIDTH of 1, here and below.
template <class Encoding>
__global__ void __launch_bounds__(32) lrpe_forward_rows(const __grid_constant__ typename Encoding::ForwardArgs args) {
  using T = typename Encoding::T;
  using A = typename Encoding::A;
  const int64_t rows = args.x.batch * args.x.length * args.x.heads;
  const int dim = static_cast<int>(args.x.dim);
  for (int64_t index = blockIdx.x; index < rows; index += gridDim.x) {
    const RowPlace place(args.x, args.theta, index);
    const RowActivation<T> act(args, place);
    T* to = head<T>(args.y, place.batch, place.position, place.head_index);
    for (int k = threadIdx.x; k < Encoding::units(dim); k += 32) {
      SinCos<A> angle[1];
      unit_angle<Encoding>(args.theta, args.options, place, k, angle);
      A a[Encoding::kValues], y[2];
#pragma unroll
      for (int v = 0; v < Encoding::kInputs; ++v) a[v] = act(Encoding::input_at(v, k, dim)).value;
      Encoding::forward(a, angle, y);
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
      unit_angle<Encoding>(args.theta, options, place, k, angle);
      unit_gradient<Encoding>(d_y, k, dim, angle, d_a);
    };
    A dot = A(0);
    if (options.softmax == Softmax::feature) {
      for (int k = threadIdx.x; k < Encoding::units(dim); k += 32) {
        A d_a[Encoding::kValues];
        gradient(k, d_a);
#pragma unroll
        for (int v = 0; v < Encoding::kInputs; ++v) dot += act(Encoding::input_at(v, k, dim)).value * d_a[v];
      }
      dot = group_sum(dot);
    }
    for (int k = threadIdx.x; k < Encoding::units(dim); k += 32) {
      A d_a[Encoding::kValues];
      gradient(k, d_a);
#pragma unroll
      for (int v = 0; v < Encoding::kInputs; ++v) {
        const int i = Encoding::input_at(v, k, dim);
        A value = d_a[v];
        if (options.softmax == Softmax::none) {
          if (options.act != Activation::none) value *= act(i).derivative;
        } else {
          const A less = options.softmax == Softmax::feature ? dot : vector<const A>(args.dots)[place.column * dim + i];
          value = act(i).value * (value - less);
        }
        if (args.d_x.mode == GradientMode::accumulate) value += widen(d_x[i]);
        d_x[i] = narrow<T>(value);
      }
    }
  }
}

// --- Sums over the sequence: a block owns 32 features (units) of a batch and head; 16 warps take positions in turn ---

constexpr int kSequenceWarps = 16;

template <class T, class Args>
__global__ void __launch_bounds__(32 * kSequenceWarps, 1) softmax_over_sequence(const __grid_constant__ Args args) {
  using A = accumulate_t<T>;
  __shared__ A maxima[kSequenceWarps][32], sums[kSequenceWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = blockIdx.x;
  const int64_t feature = int64_t{blockIdx.y} * 32 + lane;
  const int64_t batch = column / args.x.heads;
  A most = -infinity<A>();
  if (feature < args.x.dim) {
    for (int64_t n = warp; n < args.x.length; n += kSequenceWarps) {
      most = Max{}(most, widen(head<const T>(args.x, batch, n, column % args.x.heads)[feature]));
    }
  }
  maxima[warp][lane] = most;
  __syncthreads();
  for (int w = 0; w < kSequenceWarps; ++w) most = Max{}(most, maxima[w][lane]);
  A sum = A(0);
  if (feature < args.x.dim) {
    for (int64_t n = warp; n < args.x.length; n += kSequenceWarps) {
      sum += exponential<T>(widen(head<const T>(args.x, batch, n, column % args.x.heads)[feature]) - most);
    }
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || feature >= args.x.dim) return;
  for (int w = 1; w < kSequenceWarps; ++w) sum += sums[w][lane];
  vector<A>(args.maximum)[column * args.x.dim + feature] = most;
  vector<A>(args.sum)[column * args.x.dim + feature] = sum;
}

// dots = sum over positions of a * d_a, for each batch, head and feature.
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
  const bool has = k < Encoding::units(dim);
  RowPlace place(args.x, args.theta, warp, column);
  A dot[Encoding::kInputs] = {};
  if (has) {
    for (; place.position < args.x.length; place.position += kSequenceWarps) {
      const RowActivation<T> act(args, place);
      SinCos<A> angle[1];
      unit_angle<Encoding>(args.theta, args.options, place, k, angle);
      A d_a[Encoding::kValues];
      unit_gradient<Encoding>(head<const T>(args.d_y, place.batch, place.position, place.head_index), k, dim, angle,
                              d_a);
#pragma unroll
      for (int v = 0; v < Encoding::kInputs; ++v) dot[v] += act(Encoding::input_at(v, k, dim)).value * d_a[v];
    }
  }
#pragma unroll
  for (int v = 0; v < Encoding::kInputs; ++v) sums[warp][v][lane] = dot[v];
  __syncthreads();
  if (warp != 0 || !has) return;
#pragma unroll
  for (int v = 0; v < Encoding::kInputs; ++v) {
    for (int w = 1; w < kSequenceWarps; ++w) dot[v] += sums[w][v][lane];
    vector<A>(args.dots)[column * dim + Encoding::input_at(v, k, dim)] = dot[v];
  }
}

// --- d_theta: a block sums one stretch of positions for one head of theta; the stretches are added up in order ---

// d_phi of a unit is d_y[1] y[0] - d_y[0] y[1]; theta gets it times the coordinate.
template <class Encoding>
__global__ void __launch_bounds__(32)  // a warp, as RowActivation wants
    theta_partials(const __grid_constant__ typename Encoding::BackwardArgs args, int64_t positions) {
  using T = typename Encoding::T;
  using A = typename Encoding::A;
  const HeadsView& x = args.x;
  const int dim = static_cast<int>(x.dim);
  const int64_t units = Encoding::units(dim), angles = args.theta.cols, period = Encoding::period(args.theta);
  const int64_t theta_head = blockIdx.y;
  const int64_t begin = blockIdx.x * positions;
  const int64_t end = min(x.length, begin + positions);
  for (int64_t first = 0; first < angles; first += 32) {
    const int64_t index = first + threadIdx.x;
    double sum = 0.0;
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t column = 0; column < x.batch * x.heads; ++column) {
        const RowPlace place(x, args.theta, n, column);
        if (place.theta_head != theta_head) continue;
        const RowActivation<T> act(args, place);
        if (index >= angles) continue;
        const T* d_y = head<const T>(args.d_y, place.batch, n, place.head_index);
        for (int64_t k = index; k < units; k += min(period, units)) {
          SinCos<A> angle[1];
          unit_angle<Encoding>(args.theta, args.options, place, k, angle);
          A a[Encoding::kValues], y[2];
#pragma unroll
          for (int v = 0; v < Encoding::kInputs; ++v) {
            a[v] = act(Encoding::input_at(v, static_cast<int>(k), dim)).value;
          }
          Encoding::forward(a, angle, y);
          const A d_phi = widen(d_y[Encoding::output_at(1, static_cast<int>(k), dim)]) * y[0] -
                          widen(d_y[Encoding::output_at(0, static_cast<int>(k), dim)]) * y[1];
          sum += static_cast<double>(d_phi) * static_cast<double>(Encoding::coordinate(args.options, args.theta, n, k));
        }
      }
    }
    if (index < angles) row<A>(args.partials, blockIdx.x)[theta_head * angles + index] = static_cast<A>(sum);
  }
}

template <class O, class A>
__global__ void theta_finish(const __grid_constant__ RowsView partials, const __grid_constant__ RowsDestination d_theta,
                             int stretches) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t angles = d_theta.view.cols;
  if (index >= d_theta.view.rows * angles) return;
  A sum = A(0);
  for (int stretch = 0; stretch < stretches; ++stretch) sum += row<const A>(partials, stretch)[index];
  O* to = row<O>(d_theta.view, index / angles) + index % angles;
  *to = narrow<O>(d_theta.mode == GradientMode::accumulate ? static_cast<A>(widen(*to)) + sum : sum);
}

template <class Encoding>
void launch_d_theta(Context& context, const typename Encoding::BackwardArgs& args) {
  using T = typename Encoding::T;
  const int64_t length = args.x.length;
  const int64_t positions = std::max<int64_t>(1, ceil_div(length, lrpe_theta_partials(length)));
  const int stretches = static_cast<int>(args.x.batch > 0 ? ceil_div(length, positions) : 0);
  if (stretches > 0) {
    const dim3 grid(static_cast<unsigned>(stretches), static_cast<unsigned>(args.theta.rows));
    HEDDLE_LAUNCH(context, theta_partials<Encoding>, grid, 32, 0, args, positions);
  }
  visit_same_or_accumulate<T>(args.d_theta.view.dtype, dtype_of<T>, [&](auto type) {
    HEDDLE_LAUNCH(context, (theta_finish<decltype(type), accumulate_t<T>>),
                  static_cast<unsigned>(ceil_div(args.theta.rows * args.theta.cols, 128)), 128, 0, args.partials,
                  args.d_theta, stretches);
  });
}

}  // namespace heddle::kernels::cuda
