// What the kernels of both position encodings share: the encodings (Rotation, CosineSine), loads and stores of rows,
// and LrpeWork, which distributes rows to threads. docs/layers.md#lrpe A row is the `dim` features of one token of one
// head. It has angle_count(dim) angles: angle k rotates a pair of features, or multiplies one feature by its cosine and
// its sine. A thread works on WIDTH neighbouring angles from k on, which take kInputs vectors of a row of x and two
// vectors of a row of y.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/common/cuda/activation.h"
#include "kernels/common/cuda/divider.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/reduce.h"
#include "kernels/common/cuda/vec.h"
#include "kernels/position/cuda/angle.h"
#include "kernels/position/lrpe_cosine.h"
#include "kernels/position/lrpe_rotate.h"

namespace heddle::kernels::cuda {

// WIDTH thetas as they are stored, in T or in the type of arithmetic. A kernel loads them first, because its sines
// depend on them; they are widened where they are used.
template <class T, int WIDTH>
struct StoredThetas {
  using A = accumulate_t<T>;
  using Word = std::conditional_t<sizeof(T) == 2, uint32_t, A>;
  bool is_narrow;
  Word words[WIDTH];

  // Angle i takes theta index_of(i) of row `theta_head`, or 0 where has(i) is false.
  template <class Has, class IndexOf>
  __device__ __forceinline__ StoredThetas(const RowsView& view, int64_t theta_head, const Has& has,
                                          const IndexOf& index_of)
      : is_narrow(sizeof(T) == 2 && view.dtype == dtype_of<T>) {
    const auto read = [&](const auto* from) {
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) words[i] = has(i) ? from[index_of(i)] : Word(0);
    };
    if (is_narrow) {
      read(row<const unsigned short>(view, theta_head));
    } else {
      read(row<const Word>(view, theta_head));
    }
  }
  __device__ __forceinline__ A operator[](int i) const {
    if constexpr (sizeof(T) == 2) {
      const auto narrow = static_cast<unsigned short>(words[i]);
      return is_narrow ? widen(*reinterpret_cast<const T*>(&narrow)) : __uint_as_float(words[i]);
    } else {
      return words[i];
    }
  }
};

// Makes the compiler compute the angles here instead of where they are used.
template <int WIDTH>
__device__ __forceinline__ void materialize_angles(SinCos<float> (&angle)[WIDTH]) {
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) asm volatile("" : "+f"(angle[i].sin), "+f"(angle[i].cos));
}

// An iterator over the positions first, first + step, ...: `angle` holds the thread's angles at the current position.
// This one computes every angle from its position.
template <class Angles_, class Options, class A, int WIDTH>
struct ExactAngleIterator {
  Angles_ angles;
  const Options& options;
  int64_t position, step;
  SinCos<A> angle[WIDTH];
  __device__ __forceinline__ ExactAngleIterator(const Angles_& angles, const Options& options, int64_t first,
                                                int64_t step)
      : angles(angles), options(options), position(first), step(step) {
    angles.at(options, position, angle);
  }
  __device__ __forceinline__ void next() { angles.at(options, position += step, angle); }
  __device__ __forceinline__ void materialize() { materialize_angles(angle); }
};
// The same by a recurrence: the angle at the next position is the current one rotated by theta * step. For 16-bit
// types: the error after 64 steps is about 5e-6, far below their rounding, and the special function units, which sines
// share with exponentials, are left to the exponentials.
template <class Angles_, class Options, int WIDTH>
struct RecurrentAngleIterator {
  SinCos<float> angle[WIDTH], increment[WIDTH];
  __device__ __forceinline__ RecurrentAngleIterator(const Angles_& angles, const Options& options, int64_t first,
                                                    int64_t step) {
    angles.at(options, first, angle);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) increment[i] = angles.theta[i].at(step);
  }
  __device__ __forceinline__ void next() {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      const float cos = angle[i].cos * increment[i].cos - angle[i].sin * increment[i].sin;
      angle[i].sin = angle[i].sin * increment[i].cos + angle[i].cos * increment[i].sin;
      angle[i].cos = cos;
    }
  }
  __device__ __forceinline__ void materialize() {
    materialize_angles(angle);
    materialize_angles(increment);
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
  static constexpr bool kIsInterleaved = INTERLEAVED;
  static constexpr int kInputs = 2;
  static constexpr int kValues = kInputs * WIDTH;

  // Whether a thread can work on WIDTH neighbouring angles with these thetas.
  static bool takes(const RowsView&) { return true; }
  __host__ __device__ static int64_t angle_count(int64_t dim) { return dim / 2; }
  // Angles k, k + period, ... have the same theta.
  __device__ static int64_t period(const RowsView&) { return INT64_MAX; }
  // The first feature of vector 0 or 1 of the angles from k on, in a row of x of `dim` features and in a row of y.
  __device__ __forceinline__ static int input_at(int vector, int k, int dim) {
    return INTERLEAVED ? 2 * k + vector * WIDTH : k + vector * (dim / 2);
  }
  __device__ __forceinline__ static int output_at(int vector, int k, int dim) { return input_at(vector, k, dim); }
  // What the theta of angle k is multiplied by.
  __device__ __forceinline__ static int64_t coordinate(const Options& options, const RowsView&, int64_t position,
                                                       int64_t) {
    return position + options.offset;
  }
  __device__ __forceinline__ static bool is_extra(const Options&, int64_t) { return false; }

  // The thetas of angles k .. k + WIDTH - 1 of a head; 0 where theta has no such column.
  struct Thetas : StoredThetas<T, WIDTH> {
    __device__ __forceinline__ Thetas(const RowsView& view, int64_t theta_head, int k)
        : StoredThetas<T, WIDTH>(
              view, theta_head, [&](int i) { return k + i < static_cast<int>(view.cols); },
              [&](int i) { return k + i; }) {}
  };
  // The same converted to angles per position.
  struct Angles {
    Angle<T> theta[WIDTH];
    __device__ __forceinline__ explicit Angles(const Thetas& thetas) { compute_angles(thetas, theta); }
    __device__ __forceinline__ void at(const Options& options, int64_t position, SinCos<A> (&angle)[WIDTH]) const {
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) angle[i] = theta[i].at(position + options.offset);
    }
  };

  using AngleIterator = std::conditional_t<sizeof(T) == 2, RecurrentAngleIterator<Angles, Options, WIDTH>,
                                           ExactAngleIterator<Angles, Options, A, WIDTH>>;

  __device__ __forceinline__ static constexpr int first(int i) { return INTERLEAVED ? 2 * i : i; }
  __device__ __forceinline__ static constexpr int second(int i) { return INTERLEAVED ? 2 * i + 1 : i + WIDTH; }
  __device__ __forceinline__ static void forward(const A (&a)[kValues], const SinCos<A> (&angle)[WIDTH],
                                                 bool /*is_extra*/, A (&y)[2 * WIDTH]) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      y[first(i)] = a[first(i)] * angle[i].cos - a[second(i)] * angle[i].sin;
      y[second(i)] = a[first(i)] * angle[i].sin + a[second(i)] * angle[i].cos;
    }
  }
  __device__ __forceinline__ static void backward(const A (&d_y)[2 * WIDTH], const SinCos<A> (&angle)[WIDTH],
                                                  bool /*is_extra*/, A (&d_a)[kValues]) {
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
  static constexpr bool kIsInterleaved = false;
  static constexpr int kInputs = 1;
  static constexpr int kValues = WIDTH;

  // At least WIDTH thetas an axis: then WIDTH neighbouring angles lie on one axis or on two.
  static bool takes(const RowsView& theta) { return theta.cols >= WIDTH; }
  __host__ __device__ static int64_t angle_count(int64_t dim) { return dim; }
  __device__ static int64_t period(const RowsView& theta) { return theta.cols; }
  __device__ __forceinline__ static int input_at(int, int k, int) { return k; }
  __device__ __forceinline__ static int output_at(int vector, int k, int dim) { return k + vector * dim; }
  __device__ __forceinline__ static int64_t coordinate(const Options& options, const RowsView& theta, int64_t position,
                                                       int64_t k) {
    return along(options, position, options.axes == 1 ? 0 : static_cast<int>(k / theta.cols));
  }
  // Whether y of a token is (a, 0): its second half is no product with sin 0, which would let infinity make NaN.
  __device__ __forceinline__ static bool is_extra(const Options& options, int64_t position) {
    return position < options.extra_tokens;
  }

  // The axes of the features k .. k + WIDTH - 1, with `thetas` thetas an axis.
  struct Axes {
    int axis, first;  // axis and theta of feature k
    int change;       // features k + change and later lie on axis + 1
    __device__ __forceinline__ Axes(int thetas, int k)
        : axis(k < thetas ? 0 : k / thetas), first(k - axis * thetas), change(thetas - first) {}
  };
  struct Thetas : Axes, StoredThetas<T, WIDTH> {
    __device__ __forceinline__ Thetas(const RowsView& view, int64_t theta_head, int k)
        : Axes(static_cast<int>(view.cols), k),
          StoredThetas<T, WIDTH>(
              view, theta_head, [](int) { return true; },
              [&](int i) { return static_cast<uint32_t>(i < this->change ? this->first + i : i - this->change); }) {}
  };
  struct Angles {
    Angle<T> theta[WIDTH];
    int axis, change;
    __device__ __forceinline__ explicit Angles(const Thetas& thetas) : axis(thetas.axis), change(thetas.change) {
      compute_angles(thetas, theta);
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

  using AngleIterator = ExactAngleIterator<Angles, Options, A, WIDTH>;

  __device__ __forceinline__ static void forward(const A (&a)[kValues], const SinCos<A> (&angle)[WIDTH], bool is_extra,
                                                 A (&y)[2 * WIDTH]) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      y[i] = a[i] * angle[i].cos;
      y[i + WIDTH] = is_extra ? A(0) : a[i] * angle[i].sin;
    }
  }
  __device__ __forceinline__ static void backward(const A (&d_y)[2 * WIDTH], const SinCos<A> (&angle)[WIDTH],
                                                  bool is_extra, A (&d_a)[kValues]) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      d_a[i] = d_y[i] * angle[i].cos + (is_extra ? A(0) : d_y[i + WIDTH]) * angle[i].sin;
    }
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

// The COUNT vectors of one row that a thread holds, as they are stored; widen_to() converts them to the type of
// arithmetic.
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

// Loads the thread's vectors of a row of x or y. STREAM: by load_stream(), for what no kernel of the operator reads
// again.
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

// Store the thread's vectors of a row of x or y (=), rounded once to nearest even.
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

// exp(x - maximum) for many x, exactly 1 at x == maximum. 16-bit types compute 2^(x log2 e - shift) with
// shift = maximum log2 e, others exp(x - shift) with shift = maximum.
template <class T>
struct ShiftedExponential {
  using A = accumulate_t<T>;
  A shift;
  __device__ __forceinline__ explicit ShiftedExponential(A maximum)
      : shift(sizeof(T) == 2 ? rounded_product(maximum, A(kLog2E)) : maximum) {}
  __device__ __forceinline__ A operator()(A x) const { return of(x, shift); }
  __device__ __forceinline__ static A of(A x, A shift) {
    if constexpr (sizeof(T) == 2) {
      return fast_exp2(rounded_product(x, kLog2E) - shift);
    } else {
      return exponential<T>(x - shift);
    }
  }
};

// Reduces over groups of `width` neighbouring lanes, a power of two up to 32 known at run time; op(value, neutral) is
// value. All lanes of the warp must call it. It has no branches, so that the reductions of several rows overlap.
template <class A, class Op>
__device__ __forceinline__ A lanes_reduce(A value, int width, Op op, A neutral) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const A other = __shfl_xor_sync(0xffffffffu, value, distance);
    value = op(value, distance < width ? other : neutral);
  }
  return value;
}

// Distributes the work of the vector kernels. Rows with the same angles are replicas of each other: the rows of the
// batch, or of the heads where all heads share theta; `outer` is the other of these two dimensions. An item is
// (position, outer, vector of angles), and one thread goes over replicas of its item, so that a sine serves many rows.
// Items are numbered vector first, then whichever of position and outer is closer together in memory.
struct LrpeWork {
  uint32_t items;
  int replicas;
  bool replicas_are_heads, positions_inside;
  Divider vectors, inner;  // vectors of a row; extent of the faster of position and outer
  // The first `whole_blocks` blocks go over all replicas of their items. The items of the other blocks are split:
  // each split of `replicas_per_split` replicas has a block of its own.
  uint32_t whole_blocks;
  Divider split_blocks;  // blocks in one split
  int replicas_per_split;
  unsigned grid;

  static constexpr int kThreads = 64;
  static constexpr int kNotShared = 0;

  static int64_t items_of(const HeadsView& x, int64_t theta_heads, int64_t vectors_of_row) {
    return x.length * vectors_of_row * (are_heads(x, theta_heads) ? x.batch : x.heads);
  }

  // A split has a multiple of `min_split` replicas. `resident` is the number of blocks that fit on a multiprocessor: as
  // few splits are made as fill the GPU, and where unsplit blocks fill it, only the last blocks are split, so that
  // multiprocessors finish at about the same time. With kNotShared every item is split as far as possible: sines are
  // computed more often and fewer rows are in flight, which is faster where an activation's exponentials keep the
  // special function units busy.
  LrpeWork(Context& context, const HeadsView& x, int64_t theta_heads, int64_t vectors_of_row, int min_split,
           int resident)
      : items(static_cast<uint32_t>(items_of(x, theta_heads, vectors_of_row))),
        replicas_are_heads(are_heads(x, theta_heads)),
        vectors(vectors_of_row) {
    const int64_t outer = replicas_are_heads ? x.batch : x.heads;
    replicas = static_cast<int>(replicas_are_heads ? x.heads : x.batch);
    positions_inside = x.length_stride < (replicas_are_heads ? x.batch_stride : x.head_stride);
    inner = Divider(positions_inside ? x.length : outer);
    const int64_t blocks = ceil_div(items, kThreads);
    const int64_t resident_blocks = int64_t{context.properties().multiprocessors} * resident;
    int64_t splits = ceil_div(replicas, min_split);
    whole_blocks = 0;
    if (resident != kNotShared && blocks >= resident_blocks) {
      whole_blocks = static_cast<uint32_t>(blocks - resident_blocks / 4);
    } else if (resident != kNotShared) {
      splits = std::min(splits, resident_blocks / blocks);
    }
    replicas_per_split = static_cast<int>(ceil_div(ceil_div(replicas, splits), min_split) * min_split);
    split_blocks = Divider(blocks - whole_blocks);
    grid = static_cast<unsigned>(whole_blocks + (blocks - whole_blocks) * ceil_div(replicas, replicas_per_split));
  }

 private:
  static bool are_heads(const HeadsView& x, int64_t theta_heads) { return theta_heads == 1 && x.heads > 1; }
};

// The item of a thread and the replicas [first, last) that it goes over. A thread beyond the last item takes the last
// item and is not active: it loads like the others, so that no load is conditional, and stores nothing.
struct LrpeItem {
  bool active;
  int first, last;
  uint32_t position, outer, theta_head;
  int k;  // first angle

  __device__ __forceinline__ LrpeItem(const LrpeWork& work, int width) : first(0), last(work.replicas) {
    uint32_t block = blockIdx.x;
    if (block >= work.whole_blocks) {
      const uint32_t split = work.split_blocks.quotient(block - work.whole_blocks);
      block -= split * work.split_blocks.divisor;
      first = static_cast<int>(split) * work.replicas_per_split;
      last = min(last, first + work.replicas_per_split);
    }
    const uint32_t thread = block * LrpeWork::kThreads + threadIdx.x;
    active = thread < work.items;
    const uint32_t index = min(thread, work.items - 1);
    const uint32_t row = work.vectors.quotient(index);
    k = static_cast<int>(index - row * work.vectors.divisor) * width;
    const uint32_t slower = work.inner.quotient(row), faster = row - slower * work.inner.divisor;
    position = work.positions_inside ? faster : slower;
    outer = work.positions_inside ? slower : faster;
    theta_head = work.replicas_are_heads ? 0 : outer;
  }
};

// The address of an item's first vector in the row of replica r, `column` elements into the row.
template <class T>
struct ReplicaRows {
  T* base;
  int64_t stride;

  __device__ __forceinline__ ReplicaRows(const HeadsView& view, const LrpeWork& work, const LrpeItem& item, int column)
      : base(static_cast<T*>(view.data) + item.position * view.length_stride +
             item.outer * (work.replicas_are_heads ? view.batch_stride : view.head_stride) + column),
        stride(work.replicas_are_heads ? view.head_stride : view.batch_stride) {}
  __device__ __forceinline__ T* operator()(int r) const { return base + static_cast<uint32_t>(r) * stride; }
};

}  // namespace heddle::kernels::cuda
