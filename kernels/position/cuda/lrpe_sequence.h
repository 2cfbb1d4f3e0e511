// Softmax over the sequence for the position encodings, for any length; lrpe_slab.h is faster for short ones.
//   sequence_sums, finish_sums                  maximum, sum (=) and a table of SequenceScales (=) for lrpe_forward
//   sequence_backward<DOTS = true>, finish_dots dots (=) the sums over positions of a * d_a
//   sequence_backward<DOTS = false>             d_x (=|+=) a (d_a - dots)
// A slab is the rows of one batch and head. The positions of a slab are split among blocks; where there are several
// splits, a second kernel merges their partial results in order. x (and d_y) are read twice, y (d_x) is written once.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/common/cuda/compensated_sum.h"
#include "kernels/common/cuda/scratch.h"
#include "kernels/position/cuda/lrpe_vectors.h"

namespace heddle::kernels::cuda {

// Distributes the positions of all slabs to blocks; grid: (splits, slabs).
struct SequenceWork {
  static constexpr int kThreads = 256;
  // Bounds on the positions of a split. kBlocks stands for the blocks that run at once; it is a constant, so that
  // results depend on sizes alone and not on the GPU.
  static constexpr int64_t kMinPositions = 1024, kMaxPositions = 4096, kBlocks = 264;

  int64_t slabs;   // batch * heads
  int splits;      // of each slab
  int positions;   // of each split
  int lanes;       // neighbouring threads that hold a row
  void* table;     // (slabs, dim) SequenceScale
  void* partials;  // (slabs, splits, dim) MaximumAndSum or Total

  // Whether the context's scratch memory has room, and positions, slabs and strides fit their types.
  static bool takes(const HeadsView& x) {
    return x.length <= (1 << 30) && x.length_stride <= (1 << 28) && x.batch * x.heads <= 65535 && room(x) > 0;
  }

  SequenceWork(Context& context, const HeadsView& x, int lanes) : slabs(x.batch * x.heads), lanes(lanes) {
    splits = static_cast<int>(std::min(best_splits(x), room(x)));
    positions = static_cast<int>(ceil_div(x.length, int64_t{splits}));
    table = scratch(context);
    partials = static_cast<char*>(table) + bytes_per_split(x);
  }
  dim3 grid() const { return dim3(static_cast<unsigned>(splits), static_cast<unsigned>(slabs)); }

 private:
  // The number of splits that minimizes the time, in positions: kBlocks blocks run at once, and each block costs about
  // as much as 128 positions on top of its own.
  static int64_t best_splits(const HeadsView& x) {
    const int64_t first = ceil_div(x.length, kMaxPositions);
    const int64_t last = std::max(first, std::min(ceil_div(x.length, kMinPositions), room(x)));
    int64_t best = first, least = INT64_MAX;
    for (int64_t s = first; s <= last; ++s) {
      const int64_t cost = ceil_div(s * x.batch * x.heads, kBlocks) * (ceil_div(x.length, s) + 128);
      if (cost < least) {
        least = cost;
        best = s;
      }
    }
    return best;
  }
  static int64_t bytes_per_split(const HeadsView& x) {
    return x.batch * x.heads * x.dim * static_cast<int64_t>(sizeof(float2));
  }
  // Splits whose partial results fit into the scratch memory beside the table.
  static int64_t room(const HeadsView& x) { return static_cast<int64_t>(Scratch::kBytes) / bytes_per_split(x) - 1; }
};

// The result of some positions for one feature: the maximum of x, and the sum of exp(x - maximum).
template <class T>
struct MaximumAndSum {
  // At most every x of a softmax that is finite.
  static constexpr float kLowest = std::is_same_v<T, fp16> ? -65504.0f : -2e38f;
  float maximum = kLowest, sum = 0.0f;
  __device__ __forceinline__ void merge(const MaximumAndSum& other) {
    const float both = Max{}(maximum, other.maximum);
    sum = sum * ShiftedExponential<T>(both)(maximum) + other.sum * ShiftedExponential<T>(both)(other.maximum);
    maximum = both;
  }
};
// The same with a sum that many partial results may be merged into.
template <class T>
struct LongMaximumAndSum {
  float maximum = MaximumAndSum<T>::kLowest;
  CompensatedSum<float> sum;
  __device__ __forceinline__ void merge(const MaximumAndSum<T>& other) {
    const float both = Max{}(maximum, other.maximum);
    const ShiftedExponential<T> exponential(both);
    const float factor = exponential(maximum);
    sum.sum *= factor;
    sum.rest *= factor;
    sum.add(other.sum * exponential(other.maximum));
    maximum = both;
  }
};
// The same for a plain sum.
struct Total {
  float sum = 0.0f;
  __device__ __forceinline__ void merge(const Total& other) { sum += other.sum; }
};
struct LongTotal {
  CompensatedSum<float> sum;
  __device__ __forceinline__ void merge(const Total& other) { sum.add(other.sum); }
};

// Sets maxima to the maximum of nothing. They have the storage type: 16-bit types take half of the registers of float.
template <class T, int WIDTH, int COUNT>
__device__ __forceinline__ void initialize_maxima(Vec<T, WIDTH> (&maximum)[COUNT]) {
#pragma unroll
  for (int v = 0; v < COUNT; ++v) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) maximum[v][i] = narrow<T>(MaximumAndSum<T>::kLowest);
  }
}

// The outputs of the forward pass, (slabs, dim) each.
template <class T>
struct SequenceSums {
  float *maximum, *sum;
  SequenceScale<T>* table;
  __device__ __forceinline__ void write(int64_t feature, const MaximumAndSum<T>& total) const {
    maximum[feature] = total.maximum;
    sum[feature] = total.sum;
    table[feature] = SequenceScale<T>(total.maximum, total.sum);
  }
};

// __shfl_xor_sync for a struct of 32-bit words.
template <class P>
__device__ __forceinline__ P shuffle_xor(const P& value, int distance) {
  static_assert(sizeof(P) % sizeof(float) == 0);
  P result;
  for (size_t i = 0; i < sizeof(P) / sizeof(float); ++i) {
    reinterpret_cast<float*>(&result)[i] =
        __shfl_xor_sync(0xffffffffu, reinterpret_cast<const float*>(&value)[i], distance);
  }
  return result;
}

// Merges the results of the threads of a warp: threads `lanes` apart have the same features.
template <class P, int COUNT>
__device__ __forceinline__ void merge_warp(P (&own)[COUNT], int lanes) {
  for (int distance = lanes; distance < 32; distance *= 2) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) own[i].merge(shuffle_xor(own[i], distance));
  }
}

// Merges the results of the warps of a block and calls write(feature, total), once for each feature. own[v * WIDTH + i]
// is the result of the warp for element i of input vector v; `shared` has room for (warps, dim) results.
template <class Encoding, int THREADS, class P, class Write>
__device__ __forceinline__ void merge_block(const P (&own)[Encoding::kValues], P* shared, int lanes, int k, int dim,
                                            const Write& write) {
  const int warp = threadIdx.x / 32;
  if (static_cast<int>(threadIdx.x % 32) < lanes) {
#pragma unroll
    for (int v = 0; v < Encoding::kInputs; ++v) {
      const int at = Encoding::input_at(v, k, dim);
#pragma unroll
      for (int i = 0; i < Encoding::WIDTH; ++i) shared[warp * dim + at + i] = own[v * Encoding::WIDTH + i];
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int feature = threadIdx.x; feature < dim; feature += THREADS) {
    P total = shared[feature];
#pragma unroll
    for (int w = 1; w < THREADS / 32; ++w) total.merge(shared[w * dim + feature]);
    write(feature, total);
  }
}

// The rows of a thread: those of its block's split at the positions first, first + step, ... before `end`.
struct SequenceRows {
  int64_t batch, head_index;
  int k, first, step, end;

  __device__ __forceinline__ SequenceRows(const SequenceWork& work, const HeadsView& x, int width)
      : batch(blockIdx.y / x.heads),
        head_index(blockIdx.y - batch * x.heads),
        k(static_cast<int>(threadIdx.x % work.lanes) * width),
        step(SequenceWork::kThreads / work.lanes) {
    const int begin = static_cast<int>(blockIdx.x) * work.positions;
    first = begin + static_cast<int>(threadIdx.x) / work.lanes;
    end = static_cast<int>(min(int64_t{begin} + work.positions, x.length));
  }
  template <class P>
  __device__ __forceinline__ P* partials(const SequenceWork& work, int dim) const {
    return static_cast<P*>(work.partials) + (int64_t{blockIdx.y} * work.splits + blockIdx.x) * dim;
  }
};

// Maximum and sum of one split of a slab (=): to `sums` where it is the only split, else to the partial results.
template <class Encoding>
__global__ void __launch_bounds__(SequenceWork::kThreads, 2)
    sequence_sums(const __grid_constant__ HeadsView x, const __grid_constant__ SequenceWork work,
                  const SequenceSums<typename Encoding::T> sums) {
  using T = typename Encoding::T;
  constexpr int kUnroll = 6, WIDTH = Encoding::WIDTH;
  extern __shared__ float2 shared_words[];
  grid_dependency_trigger();
  const SequenceRows rows(work, x, WIDTH);
  const int dim = static_cast<int>(x.dim);
  const char* slab = reinterpret_cast<const char*>(head<const T>(x, rows.batch, 0, rows.head_index));
  const auto stride = static_cast<uint32_t>(x.length_stride * sizeof(T));
  Vec<T, WIDTH> maximum[Encoding::kInputs];
  initialize_maxima(maximum);
  float sum[Encoding::kValues] = {};
  const auto fetch = [&](int n, InputVectors<Encoding>(&to)[kUnroll]) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const uint64_t position = min(n + u * rows.step, rows.end - 1);
      to[u] = load_input<Encoding, false>(reinterpret_cast<const T*>(slab + position * stride), rows.k, dim);
    }
  };
  InputVectors<Encoding> next[kUnroll];
  fetch(rows.first, next);
  for (int n = rows.first; n < rows.end; n += kUnroll * rows.step) {
    InputVectors<Encoding> loaded[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) loaded[u] = next[u];
    fetch(n + kUnroll * rows.step, next);
#pragma unroll
    for (int v = 0; v < Encoding::kInputs; ++v) {
      const Vec<T, WIDTH> before = maximum[v];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) maximum[v] = elementwise_max(maximum[v], loaded[u].vectors[v]);
      float shift[WIDTH];
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) {
        const ShiftedExponential<T> exponential(widen(maximum[v][i]));
        sum[v * WIDTH + i] *= exponential(widen(before[i]));
        shift[i] = exponential.shift;
      }
      float terms[WIDTH] = {};  // added up first, so that fewer roundings are those of the long sum
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const bool valid = n + u * rows.step < rows.end;
        const Vec<float, WIDTH> values = widen_all(loaded[u].vectors[v]);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
          const float term = ShiftedExponential<T>::of(values[i], shift[i]);
          if (valid) terms[i] += term;
        }
      }
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) sum[v * WIDTH + i] += terms[i];
    }
  }
  using P = MaximumAndSum<T>;
  P own[Encoding::kValues];
#pragma unroll
  for (int i = 0; i < Encoding::kValues; ++i) {
    own[i].maximum = widen(maximum[i / WIDTH][i % WIDTH]);
    own[i].sum = sum[i];
  }
  P* partials = rows.template partials<P>(work, dim);
  const auto write = [&](int feature, const P& total) {
    if (work.splits == 1) {
      sums.write(int64_t{blockIdx.y} * dim + feature, total);
    } else {
      partials[feature] = total;
    }
  };
  merge_warp(own, work.lanes);
  merge_block<Encoding, SequenceWork::kThreads>(own, reinterpret_cast<P*>(shared_words), work.lanes, rows.k, dim,
                                                write);
}

// Stores the gradient of a row of x: d_x (=) or, with `add`, (+=).
template <class Encoding>
__device__ __forceinline__ void store_gradient(typename Encoding::T* row, int k, int dim, bool add,
                                               float (&gradient)[Encoding::kValues]) {
  if (add) {
    float before[Encoding::kValues];
    load_input<Encoding>(row, k, dim).widen_to(before);
#pragma unroll
    for (int i = 0; i < Encoding::kValues; ++i) gradient[i] += before[i];
  }
  store_input<Encoding>(row, k, dim, gradient);
}

// DOTS: the sums over the positions of a split of a * d_a (=), to `dots` where it is the only split, else to the
// partial results. Not DOTS: d_x (=|+=) a (d_a - dots).
template <class Encoding, bool DOTS>
__global__ void __launch_bounds__(SequenceWork::kThreads, 2)
    sequence_backward(const __grid_constant__ typename Encoding::BackwardArgs args,
                      const __grid_constant__ SequenceWork work) {
  using T = typename Encoding::T;
  constexpr int kValues = Encoding::kValues, WIDTH = Encoding::WIDTH;
  constexpr int kIteratorSteps = 64;  // then angles are computed anew: a RecurrentAngleIterator loses accuracy
  extern __shared__ float2 shared_words[];
  const SequenceRows rows(work, args.x, WIDTH);
  const int dim = static_cast<int>(args.x.dim);
  const T* x = head<const T>(args.x, rows.batch, 0, rows.head_index);
  const T* d_y = head<const T>(args.d_y, rows.batch, 0, rows.head_index);
  T* d_x = head<T>(args.d_x.view, rows.batch, 0, rows.head_index);
  const bool add = args.d_x.mode == GradientMode::accumulate;
  // The numbers of the thread's features, of input vector v, in a vector (slabs, dim).
  const auto of_features = [&](const VectorView& numbers, int v) {
    return load<WIDTH>(vector<const float>(numbers) + int64_t{blockIdx.y} * dim + Encoding::input_at(v, rows.k, dim));
  };
  SequenceScale<T> scales[kValues];
#pragma unroll
  for (int v = 0; v < Encoding::kInputs; ++v) {
    const auto maximum = of_features(args.maximum, v), sum = of_features(args.sum, v);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) scales[v * WIDTH + i] = SequenceScale<T>(maximum[i], sum[i]);
  }
  grid_dependency_trigger();
  Total own[kValues];  // DOTS: sums of the thread; else the dots of the slab
  if constexpr (!DOTS) {
    grid_dependency_wait();
#pragma unroll
    for (int v = 0; v < Encoding::kInputs; ++v) {
      const auto dots = of_features(args.dots, v);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) own[v * WIDTH + i].sum = dots[i];
    }
  }
  const int64_t theta_head = args.theta.rows == 1 ? 0 : rows.head_index;
  for (int begin = rows.first; begin < rows.end; begin += kIteratorSteps * rows.step) {
    const typename Encoding::Thetas thetas(args.theta, theta_head, rows.k);
    typename Encoding::AngleIterator iterator(typename Encoding::Angles(thetas), args.options, begin, rows.step);
    const int end = min(rows.end, begin + kIteratorSteps * rows.step);
    const auto input_at = [&](int64_t n) {
      return load_input<Encoding, false>(x + n * args.x.length_stride, rows.k, dim);
    };
    const auto upstream_at = [&](int64_t n) {
      return load_output<Encoding, false>(d_y + n * args.d_y.length_stride, rows.k, dim);
    };
    auto next_input = input_at(begin);
    auto next_upstream = upstream_at(begin);
    for (int64_t n = begin; n < end; n += rows.step, iterator.next()) {
      float a[kValues], d_a[kValues], upstream[2 * WIDTH];
      T* to = d_x + n * args.d_x.view.length_stride;
      const auto input = next_input;
      next_upstream.widen_to(upstream);
      const int64_t next = min(n + rows.step, int64_t{end} - 1);
      next_input = input_at(next);
      next_upstream = upstream_at(next);
      input.widen_to(a);
      Encoding::backward(upstream, iterator.angle, Encoding::is_extra(args.options, n), d_a);
#pragma unroll
      for (int i = 0; i < kValues; ++i) {
        a[i] = scales[i](a[i]);
        if constexpr (DOTS) {
          own[i].sum += a[i] * d_a[i];
        } else {
          d_a[i] = a[i] * (d_a[i] - own[i].sum);
        }
      }
      if constexpr (!DOTS) {
        store_gradient<Encoding>(to, rows.k, dim, add, d_a);
      }
    }
  }
  if constexpr (DOTS) {
    float* to = work.splits == 1 ? vector<float>(args.dots) + int64_t{blockIdx.y} * dim
                                 : rows.template partials<float>(work, dim);
    merge_warp(own, work.lanes);
    merge_block<Encoding, SequenceWork::kThreads>(own, reinterpret_cast<Total*>(shared_words), work.lanes, rows.k, dim,
                                                  [&](int feature, const Total& total) { to[feature] = total.sum; });
  }
}

// Merges the partial results of the splits of one feature, in order. finish_sums and finish_dots run one thread for
// each feature of each slab.
template <class P, class Long>
__device__ __forceinline__ Long merge_splits(const SequenceWork& work, int64_t feature, int dim) {
  const P* partials = static_cast<const P*>(work.partials) + feature / dim * work.splits * dim + feature % dim;
  Long total;
#pragma unroll 8
  for (int s = 0; s < work.splits; ++s) total.merge(partials[int64_t{s} * dim]);
  return total;
}
template <class T>
__global__ void finish_sums(const __grid_constant__ SequenceWork work, int64_t features, int dim,
                            const SequenceSums<T> sums) {
  grid_dependency_trigger();
  grid_dependency_wait();
  const int64_t feature = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (feature >= features) return;
  const auto total = merge_splits<MaximumAndSum<T>, LongMaximumAndSum<T>>(work, feature, dim);
  sums.write(feature, {total.maximum, total.sum.value()});
}
template <class A>
__global__ void finish_dots(const __grid_constant__ SequenceWork work, int64_t features, int dim, A* dots) {
  grid_dependency_trigger();
  grid_dependency_wait();
  const int64_t feature = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (feature < features) dots[feature] = merge_splits<Total, LongTotal>(work, feature, dim).sum.value();
}

// maximum and sum (=). Returns the table of SequenceScales, in the context's scratch memory, as a view of the shape of
// x: all positions of a batch and head share one row.
template <class Encoding>
HeadsView launch_sequence_sums(Context& context, const typename Encoding::ForwardArgs& args, int lanes) {
  using T = typename Encoding::T;
  const SequenceWork work(context, args.x, lanes);
  const int64_t features = work.slabs * args.x.dim;
  const int dim = static_cast<int>(args.x.dim);
  const SequenceSums<T> sums{vector<float>(args.maximum), vector<float>(args.sum),
                             static_cast<SequenceScale<T>*>(work.table)};
  HEDDLE_LAUNCH(context, sequence_sums<Encoding>, work.grid(), SequenceWork::kThreads,
                SequenceWork::kThreads / 32 * dim * sizeof(MaximumAndSum<T>), args.x, work, sums);
  if (work.splits > 1) {
    HEDDLE_LAUNCH_DEPENDENT(context, finish_sums<T>, static_cast<unsigned>(ceil_div(features, 128)), 128, 0, work,
                            features, dim, sums);
  }
  HeadsView table = args.x;
  table.data = work.table;
  table.length_stride = 0;
  table.head_stride = dim;
  table.batch_stride = args.x.heads * dim;
  return table;
}

// d_x (=|+=), dots (=)
template <class Encoding>
void launch_sequence_backward(Context& context, const typename Encoding::BackwardArgs& args, int lanes) {
  const SequenceWork work(context, args.x, lanes);
  const int64_t features = work.slabs * args.x.dim;
  const int dim = static_cast<int>(args.x.dim);
  HEDDLE_LAUNCH(context, (sequence_backward<Encoding, true>), work.grid(), SequenceWork::kThreads,
                SequenceWork::kThreads / 32 * dim * sizeof(Total), args, work);
  if (work.splits > 1) {
    HEDDLE_LAUNCH_DEPENDENT(context, finish_dots<float>, static_cast<unsigned>(ceil_div(features, 128)), 128, 0, work,
                            features, dim, vector<float>(args.dots));
  }
  HEDDLE_LAUNCH_DEPENDENT(context, (sequence_backward<Encoding, false>), work.grid(), SequenceWork::kThreads, 0, args,
                          work);
}

}  // namespace heddle::kernels::cuda
