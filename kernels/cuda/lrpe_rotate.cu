// Position encoding by rotation, forward and backward.                                  docs/layers.md#lrpe-rotate
//   forward   y = R(phi) act(x)                                   writes (=) y
//   backward  d_a = R(-phi) d_y;  d_x = d_a act'(x), for softmax over features a (d_a - <a, d_a>)
//                                                                 writes or adds (Destination) d_x
// Bytes: x (and d_y) read once, y (d_x) written once. A thread owns WIDTH pairs of features of one position and goes
// over the batch (and over the heads where they share theta), so that sines and cosines are computed once for all of
// them. Shapes that do not fit 16-byte vectors take a warp a row, one pair at a time.

#include "kernels/cuda/detail/lrpe.h"
#include "kernels/lrpe_rotate.h"

namespace heddle::kernels::cuda {
namespace {

enum class Act { none, elementwise, softmax };

// act(x) in place, over the row that `lanes` neighbouring threads hold together.
template <class T, Act ACT, class A, int WIDTH>
__device__ __forceinline__ void activate_pairs(Pairs<A, WIDTH>& p, Activation act, int lanes) {
  if constexpr (ACT == Act::elementwise) {
    visit_activation(act, [&](auto chosen) {
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) {
        p.first[i] = activate<decltype(chosen)::value, T>(p.first[i]);
        p.second[i] = activate<decltype(chosen)::value, T>(p.second[i]);
      }
    });
  }
  if constexpr (ACT == Act::softmax) {
    A most = p.first[0];
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) most = Max{}(Max{}(most, p.first[i]), p.second[i]);
    most = lanes_reduce(most, lanes, Max{});
    A sum = A(0);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      p.first[i] = exponential<T>(p.first[i] - most);
      p.second[i] = exponential<T>(p.second[i] - most);
      sum += p.first[i] + p.second[i];
    }
    const A factor = A(1) / lanes_reduce(sum, lanes, Sum{});
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      p.first[i] *= factor;
      p.second[i] *= factor;
    }
  }
}

// From the gradient of a (in place) to that of x.
template <class T, Act ACT, class A, int WIDTH>
__device__ __forceinline__ void activate_backward(Pairs<A, WIDTH>& gradient, Pairs<A, WIDTH> x, Activation act,
                                                  int lanes) {
  if constexpr (ACT == Act::elementwise) {
    visit_activation(act, [&](auto chosen) {
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) {
        gradient.first[i] *= activate_with_derivative<decltype(chosen)::value, T>(x.first[i]).derivative;
        gradient.second[i] *= activate_with_derivative<decltype(chosen)::value, T>(x.second[i]).derivative;
      }
    });
  }
  if constexpr (ACT == Act::softmax) {
    activate_pairs<T, Act::softmax>(x, act, lanes);
    A dot = A(0);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) dot += x.first[i] * gradient.first[i] + x.second[i] * gradient.second[i];
    dot = lanes_reduce(dot, lanes, Sum{});
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      gradient.first[i] = x.first[i] * (gradient.first[i] - dot);
      gradient.second[i] = x.second[i] * (gradient.second[i] - dot);
    }
  }
}

template <class A, int WIDTH>
__device__ __forceinline__ void rotate(Pairs<A, WIDTH>& p, const SinCos<A> (&angle)[WIDTH], A direction) {
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    const A sin = angle[i].sin * direction;
    const A first = p.first[i] * angle[i].cos - p.second[i] * sin;
    p.second[i] = p.first[i] * sin + p.second[i] * angle[i].cos;
    p.first[i] = first;
  }
}

template <class T, int WIDTH, bool INTERLEAVED, Act ACT>
__global__ void __launch_bounds__(LrpeWork::kThreads)
    rotate_forward(const __grid_constant__ LrpeRotateForwardArgs args, const __grid_constant__ LrpeWork work) {
  using A = accumulate_t<T>;
  const LrpeItem item(work, WIDTH);
  const int half = static_cast<int>(args.x.dim / 2);
  const int64_t theta_heads = work.heads_of_items;
  SinCos<A> angle[WIDTH];
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    angle[i] = angle_of<T>(args.theta, item.theta_head, item.k + i).at(item.position + args.options.offset);
  }
  const int64_t first = int64_t{blockIdx.y} * work.replicas_per_block;
  const int64_t last = min(work.replicas, first + work.replicas_per_block);
  for (int64_t base = first; base < last; base += LrpeWork::kUnroll) {
    PairVectors<T, WIDTH> loaded[LrpeWork::kUnroll];
#pragma unroll
    for (int u = 0; u < LrpeWork::kUnroll; ++u) {
      const int64_t r = min(base + u, last - 1);
      loaded[u] = load_pairs<INTERLEAVED, WIDTH>(replica_row<const T>(args.x, item, theta_heads, r), item.k, half);
    }
#pragma unroll
    for (int u = 0; u < LrpeWork::kUnroll; ++u) {
      Pairs<A, WIDTH> p = widen_pairs<INTERLEAVED>(loaded[u]);
      activate_pairs<T, ACT>(p, args.options.act, work.vectors);
      rotate(p, angle, A(1));
      if (item.active && base + u < last) {
        store_pairs<INTERLEAVED>(replica_row<T>(args.y, item, theta_heads, base + u), item.k, half, p);
      }
    }
  }
}

template <class T, int WIDTH, bool INTERLEAVED, Act ACT>
__global__ void __launch_bounds__(LrpeWork::kThreads)
    rotate_backward(const __grid_constant__ LrpeRotateBackwardArgs args, const __grid_constant__ LrpeWork work) {
  using A = accumulate_t<T>;
  constexpr int kUnroll = LrpeWork::kUnroll / 2;
  const LrpeItem item(work, WIDTH);
  const int half = static_cast<int>(args.d_y.dim / 2);
  const int64_t theta_heads = work.heads_of_items;
  const bool add = args.d_x.mode == Accumulate::add;
  SinCos<A> angle[WIDTH];
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    angle[i] = angle_of<T>(args.theta, item.theta_head, item.k + i).at(item.position + args.options.offset);
  }
  const int64_t first = int64_t{blockIdx.y} * work.replicas_per_block;
  const int64_t last = min(work.replicas, first + work.replicas_per_block);
  for (int64_t base = first; base < last; base += kUnroll) {
    PairVectors<T, WIDTH> d_y[kUnroll], x[kUnroll], old[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t r = min(base + u, last - 1);
      d_y[u] = load_pairs<INTERLEAVED, WIDTH>(replica_row<const T>(args.d_y, item, theta_heads, r), item.k, half);
      if constexpr (ACT != Act::none) {
        x[u] = load_pairs<INTERLEAVED, WIDTH>(replica_row<const T>(args.x, item, theta_heads, r), item.k, half);
      }
      if (add) {
        old[u] =
            load_pairs<INTERLEAVED, WIDTH>(replica_row<const T>(args.d_x.view, item, theta_heads, r), item.k, half);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      Pairs<A, WIDTH> p = widen_pairs<INTERLEAVED>(d_y[u]);
      rotate(p, angle, A(-1));
      if constexpr (ACT != Act::none) {
        activate_backward<T, ACT>(p, widen_pairs<INTERLEAVED>(x[u]), args.options.act, work.vectors);
      }
      if (add) {
        const Pairs<A, WIDTH> before = widen_pairs<INTERLEAVED>(old[u]);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
          p.first[i] += before.first[i];
          p.second[i] += before.second[i];
        }
      }
      if (item.active && base + u < last) {
        store_pairs<INTERLEAVED>(replica_row<T>(args.d_x.view, item, theta_heads, base + u), item.k, half, p);
      }
    }
  }
}

// --- Any even dim, any alignment, softmax over the sequence: a warp a row ---

// One row and what belongs to it.
struct RowPlace {
  int64_t batch, position, head_index, theta_head, column;  // column: batch * heads + head
  __device__ RowPlace(const HeadsView& x, const RowsView& theta, int64_t index) {
    head_index = index % x.heads;
    position = index / x.heads % x.length;
    batch = index / x.heads / x.length;
    theta_head = theta.rows == 1 ? 0 : head_index;
    column = batch * x.heads + head_index;
  }
};

// act of one row, element by element.
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

__device__ __forceinline__ int64_t pair_first(Pairing pairing, int64_t k) {
  return pairing == Pairing::half ? k : 2 * k;
}
__device__ __forceinline__ int64_t pair_second(Pairing pairing, int64_t k, int64_t half) {
  return pairing == Pairing::half ? k + half : 2 * k + 1;
}

template <class T>
__global__ void __launch_bounds__(32) rotate_forward_any(const __grid_constant__ LrpeRotateForwardArgs args) {
  using A = accumulate_t<T>;
  const int64_t rows = args.x.batch * args.x.length * args.x.heads;
  const int64_t half = args.x.dim / 2;
  for (int64_t index = blockIdx.x; index < rows; index += gridDim.x) {
    const RowPlace place(args.x, args.theta, index);
    const RowActivation<T> a(args, place);
    T* y = head<T>(args.y, place.batch, place.position, place.head_index);
    for (int64_t k = threadIdx.x; k < half; k += 32) {
      const SinCos<A> angle = angle_of<T>(args.theta, place.theta_head, k).at(place.position + args.options.offset);
      const int64_t i = pair_first(args.options.pairing, k), j = pair_second(args.options.pairing, k, half);
      const A first = a(i).value, second = a(j).value;
      y[i] = narrow<T>(first * angle.cos - second * angle.sin);
      y[j] = narrow<T>(first * angle.sin + second * angle.cos);
    }
  }
}

// The gradient of a at (i, j), the two members of pair k.
template <class T>
struct PairGradient {
  accumulate_t<T> first, second;
};
template <class T>
__device__ __forceinline__ PairGradient<T> unrotate(const T* d_y, int64_t i, int64_t j,
                                                    const SinCos<accumulate_t<T>>& angle) {
  const accumulate_t<T> up = widen(d_y[i]), low = widen(d_y[j]);
  return {up * angle.cos + low * angle.sin, low * angle.cos - up * angle.sin};
}

template <class T>
__global__ void __launch_bounds__(32) rotate_backward_any(const __grid_constant__ LrpeRotateBackwardArgs args) {
  using A = accumulate_t<T>;
  const LrpeRotateOptions& options = args.options;
  const int64_t rows = args.d_y.batch * args.d_y.length * args.d_y.heads;
  const int64_t half = args.d_y.dim / 2;
  for (int64_t index = blockIdx.x; index < rows; index += gridDim.x) {
    const RowPlace place(args.d_y, args.theta, index);
    const RowActivation<T> a(args, place);
    const T* d_y = head<const T>(args.d_y, place.batch, place.position, place.head_index);
    T* d_x = head<T>(args.d_x.view, place.batch, place.position, place.head_index);
    const auto gradient = [&](int64_t k, int64_t i, int64_t j) {
      return unrotate(d_y, i, j, angle_of<T>(args.theta, place.theta_head, k).at(place.position + options.offset));
    };
    A dot = A(0);
    if (options.softmax == Softmax::feature) {
      for (int64_t k = threadIdx.x; k < half; k += 32) {
        const int64_t i = pair_first(options.pairing, k), j = pair_second(options.pairing, k, half);
        const PairGradient<T> d_a = gradient(k, i, j);
        dot += a(i).value * d_a.first + a(j).value * d_a.second;
      }
      dot = group_sum(dot);
    }
    const auto write = [&](int64_t i, A d_a) {
      A value = d_a;
      if (options.softmax == Softmax::none) {
        if (options.act != Activation::none) value *= a(i).derivative;
      } else {
        const A less =
            options.softmax == Softmax::feature ? dot : vector<const A>(args.dots)[place.column * args.d_y.dim + i];
        value = a(i).value * (d_a - less);
      }
      if (args.d_x.mode == Accumulate::add) value += widen(d_x[i]);
      d_x[i] = narrow<T>(value);
    };
    for (int64_t k = threadIdx.x; k < half; k += 32) {
      const int64_t i = pair_first(options.pairing, k), j = pair_second(options.pairing, k, half);
      const PairGradient<T> d_a = gradient(k, i, j);
      write(i, d_a.first);
      write(j, d_a.second);
    }
  }
}

// --- Sums over the sequence: a block owns 32 features of one batch and head; 16 warps take positions in turn ---

constexpr int kSequenceWarps = 16;

template <class T>
__global__ void __launch_bounds__(32 * kSequenceWarps, 1)
    softmax_over_sequence(const __grid_constant__ LrpeRotateForwardArgs args) {
  using A = accumulate_t<T>;
  __shared__ A maxima[kSequenceWarps][32], sums[kSequenceWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = blockIdx.x;
  const int64_t feature = int64_t{blockIdx.y} * 32 + lane;
  const int64_t batch = column / args.x.heads;
  A most = -INFINITY, sum = A(0);
  if (feature < args.x.dim) {
    for (int64_t n = warp; n < args.x.length; n += kSequenceWarps) {
      const A value = widen(head<const T>(args.x, batch, n, column % args.x.heads)[feature]);
      const A more = Max{}(most, value);
      sum = sum * exponential<T>(most - more) + exponential<T>(value - more);
      most = more;
    }
  }
  maxima[warp][lane] = most;
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || feature >= args.x.dim) return;
  for (int w = 1; w < kSequenceWarps; ++w) most = Max{}(most, maxima[w][lane]);
  sum = A(0);
  for (int w = 0; w < kSequenceWarps; ++w) {
    if (sums[w][lane] > A(0)) sum += sums[w][lane] * exponential<T>(maxima[w][lane] - most);
  }
  vector<A>(args.maximum)[column * args.x.dim + feature] = most;
  vector<A>(args.sum)[column * args.x.dim + feature] = sum;
}

// dots = sum over positions of a * d_a, for each batch, head and feature.
template <class T>
__global__ void __launch_bounds__(32 * kSequenceWarps, 1)
    softmax_dots(const __grid_constant__ LrpeRotateBackwardArgs args) {
  using A = accumulate_t<T>;
  __shared__ A firsts[kSequenceWarps][32], seconds[kSequenceWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = blockIdx.x;
  const int64_t half = args.d_y.dim / 2;
  const int64_t k = int64_t{blockIdx.y} * 32 + lane;
  const int64_t i = pair_first(args.options.pairing, k), j = pair_second(args.options.pairing, k, half);
  RowPlace place(args.d_y, args.theta, column % args.d_y.heads);
  place.batch = column / args.d_y.heads;
  place.column = column;
  A first = A(0), second = A(0);
  if (k < half) {
    const Angle<T> theta = angle_of<T>(args.theta, place.theta_head, k);
    for (place.position = warp; place.position < args.d_y.length; place.position += kSequenceWarps) {
      const RowActivation<T> a(args, place);
      const T* d_y = head<const T>(args.d_y, place.batch, place.position, place.head_index);
      const PairGradient<T> d_a = unrotate(d_y, i, j, theta.at(place.position + args.options.offset));
      first += a(i).value * d_a.first;
      second += a(j).value * d_a.second;
    }
  }
  firsts[warp][lane] = first;
  seconds[warp][lane] = second;
  __syncthreads();
  if (warp != 0 || k >= half) return;
  for (int w = 1; w < kSequenceWarps; ++w) {
    first += firsts[w][lane];
    second += seconds[w][lane];
  }
  A* dots = vector<A>(args.dots) + column * args.d_y.dim;
  dots[i] = first;
  dots[j] = second;
}

// --- d_theta: a block sums one stretch of positions for one head of theta; the stretches are added up in order ---

constexpr int kThetaThreads = 32;  // a warp, as RowActivation wants

template <class T>
__global__ void __launch_bounds__(kThetaThreads)
    theta_partials(const __grid_constant__ LrpeRotateBackwardArgs args, int64_t positions) {
  using A = accumulate_t<T>;
  const HeadsView& x = args.x;
  const int64_t half = x.dim / 2;
  const int64_t angles = args.theta.cols;
  const int64_t theta_head = blockIdx.y;
  const int64_t begin = blockIdx.x * positions;
  const int64_t end = min(x.length, begin + positions);
  for (int64_t k0 = 0; k0 < angles; k0 += kThetaThreads) {
    const int64_t k = k0 + threadIdx.x;
    const int64_t i = pair_first(args.options.pairing, k), j = pair_second(args.options.pairing, k, half);
    const Angle<T> theta = angle_of<T>(args.theta, theta_head, k);
    double sum = 0.0;
    for (int64_t n = begin; n < end; ++n) {
      const SinCos<A> angle = theta.at(n + args.options.offset);
      double here = 0.0;
      for (int64_t column = 0; column < x.batch * x.heads; ++column) {
        RowPlace place(x, args.theta, column % x.heads);
        if (place.theta_head != theta_head) continue;
        place.batch = column / x.heads;
        place.position = n;
        place.column = column;
        const RowActivation<T> a(args, place);
        if (k >= angles) continue;
        const T* d_y = head<const T>(args.d_y, place.batch, n, place.head_index);
        const A first = a(i).value, second = a(j).value;
        here += static_cast<double>(widen(d_y[j]) * (first * angle.cos - second * angle.sin) -
                                    widen(d_y[i]) * (first * angle.sin + second * angle.cos));
      }
      sum += here * static_cast<double>(n + args.options.offset);
    }
    if (k < angles) row<A>(args.partials, blockIdx.x)[theta_head * angles + k] = static_cast<A>(sum);
  }
}

template <class T>
__global__ void theta_finish(const __grid_constant__ LrpeRotateBackwardArgs args, int stretches) {
  using A = accumulate_t<T>;
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= args.theta.rows * args.theta.cols) return;
  A sum = A(0);
  for (int stretch = 0; stretch < stretches; ++stretch) sum += row<const A>(args.partials, stretch)[index];
  A* to = row<A>(args.d_theta.view, index / args.theta.cols) + index % args.theta.cols;
  *to = args.d_theta.mode == Accumulate::add ? *to + sum : sum;
}

// --- Launchers ---

// Whether the vector kernels can take the work: whole vectors of pairs, and rows that few enough lanes hold.
template <class T>
bool takes_vectors(const HeadsView& x, const LrpeRotateOptions& options) {
  constexpr int kWidth = vector_width<T>;
  if (std::is_same_v<T, double> || options.softmax == Softmax::sequence || x.dim % (2 * kWidth) != 0) return false;
  const int64_t lanes = x.dim / (2 * kWidth);
  return options.softmax == Softmax::none || (lanes <= 32 && (lanes & (lanes - 1)) == 0);
}

// Calls launch(integral_constant<bool, interleaved>, integral_constant<Act, act>).
template <class Launch>
void with_options(const LrpeRotateOptions& options, const Launch& launch) {
  const auto with_act = [&](auto interleaved) {
    if (options.softmax == Softmax::feature) {
      launch(interleaved, std::integral_constant<Act, Act::softmax>{});
    } else if (options.act == Activation::none) {
      launch(interleaved, std::integral_constant<Act, Act::none>{});
    } else {
      launch(interleaved, std::integral_constant<Act, Act::elementwise>{});
    }
  };
  if (options.pairing == Pairing::interleaved) {
    with_act(std::true_type{});
  } else {
    with_act(std::false_type{});
  }
}

template <class T>
void launch_forward(Context& context, const LrpeRotateForwardArgs& args) {
  constexpr int kWidth = vector_width<T>;
  const HeadsView& x = args.x;
  if (args.options.softmax == Softmax::sequence) {
    const dim3 grid(static_cast<unsigned>(x.batch * x.heads), static_cast<unsigned>(ceil_div(x.dim, 32)));
    HEDDLE_LAUNCH(context, softmax_over_sequence<T>, grid, 32 * kSequenceWarps, 0, args);
  }
  if constexpr (!std::is_same_v<T, double>) {
    if (takes_vectors<T>(x, args.options) && can_vectorize_all(kWidth, x, args.y)) {
      const LrpeWork work(context, x, args.theta.rows, kWidth);
      with_options(args.options, [&](auto interleaved, auto act) {
        HEDDLE_LAUNCH(context, (rotate_forward<T, kWidth, decltype(interleaved)::value, decltype(act)::value>),
                      work.grid(), LrpeWork::kThreads, 0, args, work);
      });
      return;
    }
  }
  HEDDLE_LAUNCH(context, rotate_forward_any<T>, grid_for(context, x.batch * x.length * x.heads, 1, 64), 32, 0, args);
}

template <class T>
void launch_d_x(Context& context, const LrpeRotateBackwardArgs& args) {
  constexpr int kWidth = vector_width<T>;
  const HeadsView& d_y = args.d_y;
  if (args.options.softmax == Softmax::sequence) {
    const dim3 grid(static_cast<unsigned>(d_y.batch * d_y.heads), static_cast<unsigned>(ceil_div(d_y.dim / 2, 32)));
    HEDDLE_LAUNCH(context, softmax_dots<T>, grid, 32 * kSequenceWarps, 0, args);
  }
  if constexpr (!std::is_same_v<T, double>) {
    if (takes_vectors<T>(d_y, args.options) && can_vectorize_all(kWidth, d_y, args.x, args.d_x.view)) {
      const LrpeWork work(context, d_y, args.theta.rows, kWidth);
      with_options(args.options, [&](auto interleaved, auto act) {
        HEDDLE_LAUNCH(context, (rotate_backward<T, kWidth, decltype(interleaved)::value, decltype(act)::value>),
                      work.grid(), LrpeWork::kThreads, 0, args, work);
      });
      return;
    }
  }
  HEDDLE_LAUNCH(context, rotate_backward_any<T>, grid_for(context, d_y.batch * d_y.length * d_y.heads, 1, 64), 32, 0,
                args);
}

template <class T>
void launch_d_theta(Context& context, const LrpeRotateBackwardArgs& args) {
  const int64_t length = args.x.length;
  const int64_t most = lrpe_theta_partials(length);
  const int64_t positions = std::max<int64_t>(1, ceil_div(length, most));
  const int stretches = static_cast<int>(args.x.batch > 0 ? ceil_div(length, positions) : 0);
  if (stretches > 0) {
    const dim3 grid(static_cast<unsigned>(stretches), static_cast<unsigned>(args.theta.rows));
    HEDDLE_LAUNCH(context, theta_partials<T>, grid, kThetaThreads, 0, args, positions);
  }
  HEDDLE_LAUNCH(context, theta_finish<T>, static_cast<unsigned>(ceil_div(args.theta.rows * args.theta.cols, 128)), 128,
                0, args, stretches);
}

}  // namespace

void lrpe_rotate_forward(Context& context, const LrpeRotateForwardArgs& args) {
  if (args.x.batch * args.x.length * args.x.heads * args.x.dim == 0) return;
  visit_floating(args.x.dtype, [&](auto type) { launch_forward<decltype(type)>(context, args); });
}

void lrpe_rotate_backward(Context& context, const LrpeRotateBackwardArgs& args) {
  const HeadsView& d_y = args.d_y;
  visit_floating(d_y.dtype, [&](auto type) {
    using T = decltype(type);
    if (args.d_x && d_y.batch * d_y.length * d_y.heads * d_y.dim > 0) launch_d_x<T>(context, args);
    if (args.d_theta) launch_d_theta<T>(context, args);
  });
}

}  // namespace heddle::kernels::cuda
