// What the kernels of both position encodings share: the encodings themselves, activations, and who works on what.
// A unit is what shares an angle: a pair of features that is rotated, or one feature whose cosine and sine are taken. A
// thread holds WIDTH neighbouring units: kInputs vectors of a row of x and two vectors of a row of y.
#pragma once

#include "kernels/cuda/detail/activation.h"
#include "kernels/cuda/detail/angle.h"
#include "kernels/cuda/detail/launch.h"
#include "kernels/cuda/detail/reduce.h"
#include "kernels/cuda/detail/vec.h"
#include "kernels/lrpe_cosine.h"
#include "kernels/lrpe_rotate.h"

namespace heddle::kernels::cuda {

// theta is of T or of the type of arithmetic.
template <class T>
__device__ __forceinline__ accumulate_t<T> theta_at(const RowsView& theta, int64_t theta_head, int64_t index) {
  if (theta.dtype == dtype_of<T>) return widen(row<const T>(theta, theta_head)[index]);
  return row<const accumulate_t<T>>(theta, theta_head)[index];
}

// The angles of a thread at the positions first, first + step, .. one after the other.
template <class Angles_, class Options, class A, int WIDTH>
struct ExactWalk {
  Angles_ angles;
  const Options& options;
  int64_t position, step;
  SinCos<A> angle[WIDTH];
  __device__ __forceinline__ ExactWalk(const Angles_& angles, const Options& options, int64_t first, int64_t step)
      : angles(angles), options(options), position(first), step(step) {
    angles.at(options, position, angle);
  }
  __device__ __forceinline__ void next() { angles.at(options, position += step, angle); }
};
// The same by turning on from the angle before, for 16-bit types: 64 steps lose some 5e-6, far below their rounding,
// and the unit for sines is left to the exponentials.
template <class Angles_, class Options, int WIDTH>
struct TurningWalk {
  SinCos<float> angle[WIDTH], turn[WIDTH];
  __device__ __forceinline__ TurningWalk(const Angles_& angles, const Options& options, int64_t first, int64_t step) {
    angles.at(options, first, angle);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) turn[i] = angles.theta[i].at(step);
  }
  __device__ __forceinline__ void next() {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      const float cos = angle[i].cos * turn[i].cos - angle[i].sin * turn[i].sin;
      angle[i].sin = angle[i].sin * turn[i].cos + angle[i].cos * turn[i].sin;
      angle[i].cos = cos;
    }
  }
};

// y = (first cos - second sin, first sin + second cos) for the pair k of the features (k, k + D/2) or (2k, 2k + 1).
template <class T_, int WIDTH_, bool INTERLEAVED>
struct Rotation {
  using T = T_;
  using A = accumulate_t<T>;
  using Options = LrpeRotateOptions;
  using ForwardArgs = LrpeRotateForwardArgs;
  using BackwardArgs = LrpeRotateBackwardArgs;
  static constexpr int WIDTH = WIDTH_;
  static constexpr int kInputs = 2;
  static constexpr int kValues = kInputs * WIDTH;

  // Whether vectors of WIDTH units can be worked on.
  static bool takes(const HeadsView&, const RowsView&) { return true; }
  __host__ __device__ static int64_t units(int64_t dim) { return dim / 2; }
  // Units k, k + period, .. have the same theta.
  __device__ static int64_t period(const RowsView&) { return INT64_MAX; }
  // Where vector 0 or 1 of the units from k on begins in a row of x of `dim` features, and in one of y.
  __device__ __forceinline__ static int input_at(int vector, int k, int dim) {
    return INTERLEAVED ? 2 * k + vector * WIDTH : k + vector * (dim / 2);
  }
  __device__ __forceinline__ static int output_at(int vector, int k, int dim) { return input_at(vector, k, dim); }
  // What theta is multiplied by for unit k.
  __device__ __forceinline__ static int64_t coordinate(const Options& options, const RowsView&, int64_t position,
                                                       int64_t) {
    return position + options.offset;
  }

  // The angles of units k .. k + WIDTH - 1 of a head, ready for any position; 0 beyond those that theta has.
  struct Angles {
    Angle<T> theta[WIDTH];
    __device__ __forceinline__ Angles(const RowsView& view, int64_t theta_head, int k) {
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) {
        theta[i] = Angle<T>::of(k + i < view.cols ? theta_at<T>(view, theta_head, k + i) : A(0));
      }
    }
    __device__ __forceinline__ void at(const Options& options, int64_t position, SinCos<A> (&angle)[WIDTH]) const {
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) angle[i] = theta[i].at(position + options.offset);
    }
  };

  using Walk =
      std::conditional_t<sizeof(T) == 2, TurningWalk<Angles, Options, WIDTH>, ExactWalk<Angles, Options, A, WIDTH>>;

  __device__ __forceinline__ static constexpr int first(int i) { return INTERLEAVED ? 2 * i : i; }
  __device__ __forceinline__ static constexpr int second(int i) { return INTERLEAVED ? 2 * i + 1 : i + WIDTH; }
  __device__ __forceinline__ static void forward(const A (&a)[kValues], const SinCos<A> (&angle)[WIDTH],
                                                 A (&y)[2 * WIDTH]) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      y[first(i)] = a[first(i)] * angle[i].cos - a[second(i)] * angle[i].sin;
      y[second(i)] = a[first(i)] * angle[i].sin + a[second(i)] * angle[i].cos;
    }
  }
  __device__ __forceinline__ static void backward(const A (&d_y)[2 * WIDTH], const SinCos<A> (&angle)[WIDTH],
                                                  A (&d_a)[kValues]) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      d_a[first(i)] = d_y[first(i)] * angle[i].cos + d_y[second(i)] * angle[i].sin;
      d_a[second(i)] = d_y[second(i)] * angle[i].cos - d_y[first(i)] * angle[i].sin;
    }
  }
};

// y = (a cos, a sin): feature k of x gives features k and k + D of y; its theta is k mod e, its axis floor(k / e).
template <class T_, int WIDTH_>
struct CosineSine {
  using T = T_;
  using A = accumulate_t<T>;
  using Options = LrpeCosineOptions;
  using ForwardArgs = LrpeCosineForwardArgs;
  using BackwardArgs = LrpeCosineBackwardArgs;
  static constexpr int WIDTH = WIDTH_;
  static constexpr int kInputs = 1;
  static constexpr int kValues = WIDTH;

  // 32 bits count the tokens, and the units of a vector are on one axis or two.
  static bool takes(const HeadsView& x, const RowsView& theta) { return x.length <= INT32_MAX && theta.cols >= WIDTH; }
  __host__ __device__ static int64_t units(int64_t dim) { return dim; }
  __device__ static int64_t period(const RowsView& theta) { return theta.cols; }
  __device__ __forceinline__ static int input_at(int, int k, int) { return k; }
  __device__ __forceinline__ static int output_at(int vector, int k, int dim) { return k + vector * dim; }
  __device__ __forceinline__ static int64_t coordinate(const Options& options, const RowsView& theta, int64_t position,
                                                       int64_t k) {
    return along(options, position, options.axes == 1 ? 0 : static_cast<int>(k / theta.cols));
  }

  struct Angles {
    Angle<T> theta[WIDTH];
    int axis;    // of the first feature
    int change;  // the feature from which on it is the next axis
    __device__ __forceinline__ Angles(const RowsView& view, int64_t theta_head, int k) {
      const int known = static_cast<int>(view.cols);
      axis = k / known;
      const int first = k - axis * known;
      change = known - first;
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) {
        theta[i] = Angle<T>::of(theta_at<T>(view, theta_head, i < change ? first + i : i - change));
      }
    }
    __device__ __forceinline__ void at(const Options& options, int64_t position, SinCos<A> (&angle)[WIDTH]) const {
      int64_t s = along(options, position, axis);
      const int64_t next = change < WIDTH ? along(options, position, axis + 1) : s;
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) {
        if (i == change) s = next;
        angle[i] = theta[i].at(s);
      }
    }
  };

  using Walk = ExactWalk<Angles, Options, A, WIDTH>;

  __device__ __forceinline__ static void forward(const A (&a)[kValues], const SinCos<A> (&angle)[WIDTH],
                                                 A (&y)[2 * WIDTH]) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      y[i] = a[i] * angle[i].cos;
      y[i + WIDTH] = a[i] * angle[i].sin;
    }
  }
  __device__ __forceinline__ static void backward(const A (&d_y)[2 * WIDTH], const SinCos<A> (&angle)[WIDTH],
                                                  A (&d_a)[kValues]) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) d_a[i] = d_y[i] * angle[i].cos + d_y[i + WIDTH] * angle[i].sin;
  }

 private:
  // The coordinate of a token on an axis; 0 for the tokens before the grid.
  __device__ __forceinline__ static int64_t along(const Options& options, int64_t position, int axis) {
    const int64_t token = position - options.extra_tokens;
    if (token < 0) return 0;
    if (options.axes == 1) return token + options.offset;
    using Count = std::conditional_t<(WIDTH > 1), uint32_t, int64_t>;
    auto s = static_cast<Count>(token);
#pragma unroll 1
    for (int last = options.axes - 1; last > axis; --last) s /= static_cast<Count>(options.extents[last]);
    return s % static_cast<Count>(options.extents[axis]);
  }
};

// The vectors of one row that a thread holds, as they are stored and in the type of arithmetic.
template <class T, int WIDTH, int COUNT>
struct RowVectors {
  Vec<T, WIDTH> vectors[COUNT];

  __device__ __forceinline__ void widen_to(accumulate_t<T> (&values)[COUNT * WIDTH]) const {
#pragma unroll
    for (int v = 0; v < COUNT; ++v) {
      const auto wide = widen_all(vectors[v]);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) values[v * WIDTH + i] = wide[i];
    }
  }
};
template <class Encoding>
using InputVectors = RowVectors<typename Encoding::T, Encoding::WIDTH, Encoding::kInputs>;
template <class Encoding>
using OutputVectors = RowVectors<typename Encoding::T, Encoding::WIDTH, 2>;

// STREAM: load_stream(), for what no kernel of the operator reads again.
template <class Encoding, bool STREAM>
__device__ __forceinline__ auto load_vector(const typename Encoding::T* from) {
  return STREAM ? load_stream<Encoding::WIDTH>(from) : load<Encoding::WIDTH>(from);
}
template <class Encoding, bool STREAM = true>
__device__ __forceinline__ InputVectors<Encoding> load_input(const typename Encoding::T* row, int k, int dim) {
  InputVectors<Encoding> result;
#pragma unroll
  for (int v = 0; v < Encoding::kInputs; ++v) {
    result.vectors[v] = load_vector<Encoding, STREAM>(row + Encoding::input_at(v, k, dim));
  }
  return result;
}
template <class Encoding, bool STREAM = true>
__device__ __forceinline__ OutputVectors<Encoding> load_output(const typename Encoding::T* row, int k, int dim) {
  OutputVectors<Encoding> result;
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    result.vectors[v] = load_vector<Encoding, STREAM>(row + Encoding::output_at(v, k, dim));
  }
  return result;
}

template <class T, int WIDTH, class A>
__device__ __forceinline__ void store_values(T* to, const A* values) {
  Vec<A, WIDTH> wide;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) wide[i] = values[i];
  store_narrow(to, wide);
}
template <class Encoding, class A>
__device__ __forceinline__ void store_input(typename Encoding::T* row, int k, int dim,
                                            const A (&values)[Encoding::kValues]) {
#pragma unroll
  for (int v = 0; v < Encoding::kInputs; ++v) {
    store_values<typename Encoding::T, Encoding::WIDTH>(row + Encoding::input_at(v, k, dim),
                                                        values + v * Encoding::WIDTH);
  }
}
template <class Encoding, class A>
__device__ __forceinline__ void store_output(typename Encoding::T* row, int k, int dim,
                                             const A (&values)[2 * Encoding::WIDTH]) {
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    store_values<typename Encoding::T, Encoding::WIDTH>(row + Encoding::output_at(v, k, dim),
                                                        values + v * Encoding::WIDTH);
  }
}

// exp(x - most) for many x, exactly 1 where they are the same.
template <class T>
struct ExponentialBelow {
  using A = accumulate_t<T>;
  A less;
  __device__ __forceinline__ explicit ExponentialBelow(A most)
      : less(sizeof(T) == 2 ? rounded_product(most, A(kLog2E)) : most) {}
  __device__ __forceinline__ A operator()(A x) const { return below(x, less); }
  __device__ __forceinline__ static A below(A x, A less) {
    if constexpr (sizeof(T) == 2) {
      return fast_exp2(rounded_product(x, kLog2E) - less);
    } else {
      return exponential<T>(x - less);
    }
  }
};

// Over groups of `width` neighbouring lanes, a power of two up to 32 known at run time. All lanes take part.
template <class A, class Op>
__device__ __forceinline__ A lanes_reduce(A value, int width, Op op) {
  for (int distance = width / 2; distance > 0; distance /= 2) {
    value = op(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}

// How the vector kernels cut the work. An item is (position, head of theta, vector of units), the vector fastest and
// then what lies closer together; its thread goes over `replicas`: the batch, and the heads as well when they share
// theta.
struct LrpeWork {
  int64_t items = 0;
  int replicas = 0;
  int replicas_per_block = 0;
  int64_t heads_of_items = 1;      // heads of theta
  int64_t inner = 1;               // extent of the faster of positions and heads
  bool positions_inside = false;   // whether that is the positions
  int vectors = 0;                 // of units in a row
  unsigned blocks = 0, parts = 0;  // the grid

  static constexpr int kThreads = 64;

  // Sines are computed once for all replicas, but where that leaves places of `resident` blocks on each multiprocessor
  // idle; or, where that is 0, again for every `least` replicas: then fewer places in memory are under way, but the
  // unit for sines is that for the exponentials of an activation. A part of the replicas is a multiple of `least`.
  LrpeWork(Context& context, const HeadsView& x, int64_t theta_heads, int64_t vectors_of_row, int least, int resident) {
    heads_of_items = theta_heads;
    positions_inside = x.length_stride < x.head_stride;
    inner = positions_inside ? x.length : heads_of_items;
    vectors = static_cast<int>(vectors_of_row);
    items = x.length * heads_of_items * vectors;
    replicas = static_cast<int>(x.batch * (x.heads / theta_heads));
    blocks = static_cast<unsigned>(ceil_div(items, kThreads));
    const int64_t most_parts = ceil_div(int64_t{replicas}, int64_t{least});
    const int64_t places = int64_t{context.properties().multiprocessors} * resident;
    // A few blocks too many, as some extra tokens make, are fewer than half of the places idle.
    const int64_t wanted = resident > 0 ? std::max<int64_t>(1, (places + places / 16) / blocks) : most_parts;
    parts = static_cast<unsigned>(std::min({wanted, most_parts, int64_t{65535}}));
    replicas_per_block = static_cast<int>(ceil_div(ceil_div(replicas, parts), least) * least);
  }
  dim3 grid() const { return dim3(blocks, parts); }
};

// The place of one thread in that work. A thread beyond the end has the last place and is not active: it reads with the
// others, so that no load waits for a condition, and stores nothing.
struct LrpeItem {
  bool active;
  int64_t position;
  int64_t theta_head;
  int k;  // first unit

  __device__ __forceinline__ LrpeItem(const LrpeWork& work, int width) {
    const int64_t own = int64_t{blockIdx.x} * LrpeWork::kThreads + threadIdx.x;
    active = own < work.items;
    const int64_t index = active ? own : work.items - 1;
    int64_t outer, inner;
    if (work.items <= 0x7fffffff) {  // division of 32 bits where it is enough
      const auto small = static_cast<uint32_t>(index);
      const uint32_t rest = small / work.vectors;
      k = static_cast<int>(small - rest * work.vectors) * width;
      outer = rest / static_cast<uint32_t>(work.inner);
      inner = rest - outer * work.inner;
    } else {
      const int64_t rest = index / work.vectors;
      k = static_cast<int>(index - rest * work.vectors) * width;
      outer = rest / work.inner;
      inner = rest - outer * work.inner;
    }
    position = work.positions_inside ? inner : outer;
    theta_head = work.positions_inside ? outer : inner;
  }
};

// The replicas of an item: in each batch its head, or all heads where they share theta.
struct Replicas {
  int heads;  // of an item
  int64_t heads_in_all, theta_head;

  __device__ __forceinline__ Replicas(const HeadsView& view, const LrpeWork& work, const LrpeItem& item)
      : heads(work.heads_of_items == 1 ? static_cast<int>(view.heads) : 1),
        heads_in_all(view.heads),
        theta_head(item.theta_head) {}
  // Batch and head of replica r, as batch * heads + head.
  __device__ __forceinline__ int64_t slab(int r) const {
    return heads == 1 ? r * heads_in_all + theta_head : int64_t{r};
  }
};

// The rows (batch, position, head) of an item. What depends on the replica is the same for all threads of a block.
template <class T>
struct ReplicaRows {
  T* first;
  int64_t batch_stride, head_stride;
  int heads;

  __device__ __forceinline__ ReplicaRows(const HeadsView& view, const Replicas& replicas, const LrpeItem& item)
      : first(head<T>(view, 0, item.position, item.theta_head)),
        batch_stride(view.batch_stride),
        head_stride(view.head_stride),
        heads(replicas.heads) {}
  __device__ __forceinline__ T* operator()(int r) const {
    if (heads == 1) return first + r * batch_stride;
    const int batch = r / heads;
    return first + (batch * batch_stride + (r - batch * heads) * head_stride);
  }
};

}  // namespace heddle::kernels::cuda
