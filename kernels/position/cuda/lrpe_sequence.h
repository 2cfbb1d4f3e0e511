// Softmax over the sequence for the position encodings, of any length; lrpe_slab.h has that for short ones.
// A slab is what one batch and head hold. A block sums over a stretch of its positions; where there are several a
// second kernel adds them up in their order. The forward encoding itself is the vector kernel of lrpe_vectors.h, with a
// table of what the softmax needs of each feature.
//   bytes: x (and d_y) read twice, y (d_x) written once
#pragma once

#include "kernels/common/cuda/scratch.h"
#include "kernels/position/cuda/lrpe_vectors.h"

namespace heddle::kernels::cuda {

struct SequenceWork {
  static constexpr int kThreads = 256;
  // Of a stretch. A constant number of blocks at a time, so that results depend on nothing but sizes.
  static constexpr int64_t kLeastPositions = 1024, kMostPositions = 4096, kBlocks = 264;

  int64_t slabs;   // batch * heads
  int stretches;   // of a slab
  int positions;   // of a stretch
  int lanes;       // threads that hold a row
  void* table;     // (slabs, dim) SequenceScale
  void* partials;  // (slabs, stretches, dim) of what is summed up

  // Whether the context's scratch has room, and the numbers of positions and slabs and the stride fit their types.
  static bool takes(const HeadsView& x) {
    return x.length <= (1 << 30) && x.length_stride <= (1 << 28) && x.batch * x.heads <= 65535 && room(x) > 0;
  }

  SequenceWork(Context& context, const HeadsView& x, int lanes) : slabs(x.batch * x.heads), lanes(lanes) {
    stretches = static_cast<int>(std::min(best_stretches(x), room(x)));
    positions = static_cast<int>(ceil_div(x.length, int64_t{stretches}));
    table = scratch(context);
    partials = static_cast<char*>(table) + numbers(x);
  }
  dim3 grid() const { return dim3(static_cast<unsigned>(stretches), static_cast<unsigned>(slabs)); }

 private:
  // Those that leave the fewest blocks idle in the last round; a block costs as much as some 128 positions more.
  static int64_t best_stretches(const HeadsView& x) {
    const int64_t first = ceil_div(x.length, kMostPositions);
    const int64_t last = std::max(first, std::min(ceil_div(x.length, kLeastPositions), room(x)));
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
  static int64_t numbers(const HeadsView& x) {
    return x.batch * x.heads * x.dim * static_cast<int64_t>(sizeof(float2));
  }
  static int64_t room(const HeadsView& x) { return static_cast<int64_t>(Scratch::kBytes) / numbers(x) - 1; }
};

// What is added up for a feature: the maximum and the sum of exponentials below it.
template <class T>
struct MaximumAndSum {
  static constexpr float kLeast =
      std::is_same_v<T, fp16> ? -65504.0f : -2e38f;  // no number of a finite softmax is less
  float most = kLeast, sum = 0.0f;
  __device__ __forceinline__ void merge(const MaximumAndSum& other) {
    const float both = Max{}(most, other.most);
    sum = sum * ExponentialBelow<T>(both)(most) + other.sum * ExponentialBelow<T>(both)(other.most);
    most = both;
  }
};
struct Total {
  float sum = 0.0f;
  __device__ __forceinline__ void merge(const Total& other) { sum += other.sum; }
};

// Maxima of nothing yet, as elements are stored: half of the registers.
template <class T, int WIDTH, int COUNT>
__device__ __forceinline__ void start_maxima(Vec<T, WIDTH> (&most)[COUNT]) {
#pragma unroll
  for (int v = 0; v < COUNT; ++v) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) most[v][i] = narrow<T>(MaximumAndSum<T>::kLeast);
  }
}

// Where the maximum and the sum of a feature of a slab are written.
template <class T>
struct SequenceSums {
  float *maximum, *sum;
  SequenceScale<T>* table;
  __device__ __forceinline__ void write(int64_t feature, const MaximumAndSum<T>& total) const {
    maximum[feature] = total.most;
    sum[feature] = total.sum;
    table[feature] = SequenceScale<T>(total.most, total.sum);
  }
};

template <class P>
__device__ __forceinline__ P exchanged(const P& value, int distance) {
  static_assert(sizeof(P) % sizeof(float) == 0);
  P result;
  for (size_t i = 0; i < sizeof(P) / sizeof(float); ++i) {
    reinterpret_cast<float*>(&result)[i] =
        __shfl_xor_sync(0xffffffffu, reinterpret_cast<const float*>(&value)[i], distance);
  }
  return result;
}

// Merges what the threads of a warp found: those of the same features are `lanes` apart.
template <class P, int COUNT>
__device__ __forceinline__ void merge_warp(P (&own)[COUNT], int lanes) {
  for (int distance = lanes; distance < 32; distance *= 2) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) own[i].merge(exchanged(own[i], distance));
  }
}

// Merges what the warps of a block found for each feature, own[v * WIDTH + i] for element i of input vector v, and
// calls write(feature, total). `shared` has a row of `dim` for each warp.
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

// The rows of a thread: of the stretch of its block, from position `first` on in steps.
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
    return static_cast<P*>(work.partials) + (int64_t{blockIdx.y} * work.stretches + blockIdx.x) * dim;
  }
};

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
  Vec<T, WIDTH> most[Encoding::kInputs];
  start_maxima(most);
  float sum[Encoding::kValues] = {};
  const auto fetch = [&](int n, InputVectors<Encoding>(&to)[kUnroll]) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const uint64_t position = min(n + u * rows.step, rows.end - 1);
      to[u] = load_input<Encoding, false>(reinterpret_cast<const T*>(slab + position * stride), rows.k, dim);
    }
  };
  InputVectors<Encoding> coming[kUnroll];
  fetch(rows.first, coming);
  for (int n = rows.first; n < rows.end; n += kUnroll * rows.step) {
    InputVectors<Encoding> loaded[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) loaded[u] = coming[u];
    fetch(n + kUnroll * rows.step, coming);
#pragma unroll
    for (int v = 0; v < Encoding::kInputs; ++v) {
      const Vec<T, WIDTH> before = most[v];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) most[v] = elementwise_max(most[v], loaded[u].vectors[v]);
      float less[WIDTH];
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) {
        const ExponentialBelow<T> exponential(widen(most[v][i]));
        sum[v * WIDTH + i] *= exponential(widen(before[i]));
        less[i] = exponential.less;
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const bool is_there = n + u * rows.step < rows.end;
        const Vec<float, WIDTH> values = widen_all(loaded[u].vectors[v]);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
          const float term = ExponentialBelow<T>::below(values[i], less[i]);
          if (is_there) sum[v * WIDTH + i] += term;
        }
      }
    }
  }
  using P = MaximumAndSum<T>;
  P own[Encoding::kValues];
#pragma unroll
  for (int i = 0; i < Encoding::kValues; ++i) {
    own[i].most = widen(most[i / WIDTH][i % WIDTH]);
    own[i].sum = sum[i];
  }
  P* partials = rows.template partials<P>(work, dim);
  const auto write = [&](int feature, const P& total) {
    if (work.stretches == 1) {
      sums.write(int64_t{blockIdx.y} * dim + feature, total);
    } else {
      partials[feature] = total;
    }
  };
  merge_warp(own, work.lanes);
  merge_block<Encoding, SequenceWork::kThreads>(own, reinterpret_cast<P*>(shared_words), work.lanes, rows.k, dim,
                                                write);
}

// Two readings of x and d_y: first (dots) the sums over positions of a * d_a, then (not dots) d_x (=|+=) a (d_a - dot).
template <class Encoding, bool DOTS>
__global__ void __launch_bounds__(SequenceWork::kThreads, 2)
    sequence_backward(const __grid_constant__ typename Encoding::BackwardArgs args,
                      const __grid_constant__ SequenceWork work) {
  using T = typename Encoding::T;
  constexpr int kValues = Encoding::kValues, WIDTH = Encoding::WIDTH;
  constexpr int kWalk = 64;  // steps of a walk
  extern __shared__ float2 shared_words[];
  const SequenceRows rows(work, args.x, WIDTH);
  const int dim = static_cast<int>(args.x.dim);
  const T* x = head<const T>(args.x, rows.batch, 0, rows.head_index);
  const T* d_y = head<const T>(args.d_y, rows.batch, 0, rows.head_index);
  T* d_x = head<T>(args.d_x.view, rows.batch, 0, rows.head_index);
  const bool add = args.d_x.mode == GradientMode::accumulate;
  const auto of_features = [&](const VectorView& numbers, int v) {  // of this slab
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
  Total own[kValues];  // summed up, or of the whole slab
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
  for (int begin = rows.first; begin < rows.end; begin += kWalk * rows.step) {
    const typename Encoding::Thetas thetas(args.theta, theta_head, rows.k);
    typename Encoding::Walk walk(typename Encoding::Angles(thetas), args.options, begin, rows.step);
    const int end = min(rows.end, begin + kWalk * rows.step);
    const auto input_at = [&](int64_t n) {
      return load_input<Encoding, false>(x + n * args.x.length_stride, rows.k, dim);
    };
    const auto upstream_at = [&](int64_t n) {
      return load_output<Encoding, false>(d_y + n * args.d_y.length_stride, rows.k, dim);
    };
    auto next_input = input_at(begin);
    auto next_upstream = upstream_at(begin);
    for (int64_t n = begin; n < end; n += rows.step, walk.next()) {
      float a[kValues], d_a[kValues], upstream[2 * WIDTH];
      T* to = d_x + n * args.d_x.view.length_stride;
      const auto input = next_input;
      next_upstream.widen_to(upstream);
      const int64_t next = min(n + rows.step, int64_t{end} - 1);
      next_input = input_at(next);
      next_upstream = upstream_at(next);
      input.widen_to(a);
      Encoding::backward(upstream, walk.angle, d_a);
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
        if (add) {
          load_input<Encoding>(to, rows.k, dim).widen_to(a);
#pragma unroll
          for (int i = 0; i < kValues; ++i) d_a[i] += a[i];
        }
        store_input<Encoding>(to, rows.k, dim, d_a);
      }
    }
  }
  if constexpr (DOTS) {
    float* to = work.stretches == 1 ? vector<float>(args.dots) + int64_t{blockIdx.y} * dim
                                    : rows.template partials<float>(work, dim);
    merge_warp(own, work.lanes);
    merge_block<Encoding, SequenceWork::kThreads>(own, reinterpret_cast<Total*>(shared_words), work.lanes, rows.k, dim,
                                                  [&](int feature, const Total& total) { to[feature] = total.sum; });
  }
}

// A thread a feature of a slab: adds up its stretches.
template <class P>
__device__ __forceinline__ P sum_stretches(const SequenceWork& work, int64_t feature, int dim) {
  const P* partials = static_cast<const P*>(work.partials) + feature / dim * work.stretches * dim + feature % dim;
  P total = partials[0];
#pragma unroll 8
  for (int s = 1; s < work.stretches; ++s) total.merge(partials[int64_t{s} * dim]);
  return total;
}
template <class T>
__global__ void finish_sums(const __grid_constant__ SequenceWork work, int64_t features, int dim,
                            const SequenceSums<T> sums) {
  grid_dependency_trigger();
  grid_dependency_wait();
  const int64_t feature = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (feature < features) sums.write(feature, sum_stretches<MaximumAndSum<T>>(work, feature, dim));
}
template <class A>
__global__ void finish_dots(const __grid_constant__ SequenceWork work, int64_t features, int dim, A* dots) {
  grid_dependency_trigger();
  grid_dependency_wait();
  const int64_t feature = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (feature < features) dots[feature] = sum_stretches<Total>(work, feature, dim).sum;
}

// Writes maximum and sum of a forward pass; returns the table, which lies in the context's scratch, as seen from x: all
// positions of a batch and head have the same SequenceScales.
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
  if (work.stretches > 1) {
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

// Writes or adds d_x, and writes dots.
template <class Encoding>
void launch_sequence_backward(Context& context, const typename Encoding::BackwardArgs& args, int lanes) {
  const SequenceWork work(context, args.x, lanes);
  const int64_t features = work.slabs * args.x.dim;
  const int dim = static_cast<int>(args.x.dim);
  HEDDLE_LAUNCH(context, (sequence_backward<Encoding, true>), work.grid(), SequenceWork::kThreads,
                SequenceWork::kThreads / 32 * dim * sizeof(Total), args, work);
  if (work.stretches > 1) {
    HEDDLE_LAUNCH_DEPENDENT(context, finish_dots<float>, static_cast<unsigned>(ceil_div(features, 128)), 128, 0, work,
                            features, dim, vector<float>(args.dots));
  }
  HEDDLE_LAUNCH_DEPENDENT(context, (sequence_backward<Encoding, false>), work.grid(), SequenceWork::kThreads, 0, args,
                          work);
}

}  // namespace heddle::kernels::cuda
