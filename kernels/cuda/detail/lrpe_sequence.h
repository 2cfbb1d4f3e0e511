// Softmax over the sequence for the position encodings: sums over the tokens of a slab, which is what one batch and
// head hold. docs/layers.md#lrpe A block sums over a stretch of the positions of a slab; a second kernel adds the
// stretches up in their order. The encoding itself is the vector kernel of lrpe_vectors.h, with a table of what the
// softmax needs of each feature. Bytes: x (and d_y) read twice, y (d_x) written once.
#pragma once

#include "kernels/cuda/detail/lrpe_vectors.h"
#include "kernels/cuda/detail/scratch.h"

namespace heddle::kernels::cuda {

struct SequenceWork {
  static constexpr int kThreads = 256;
  static constexpr int64_t kPositions = 1024;  // of a stretch, at least

  int64_t slabs;   // batch * heads
  int stretches;   // of a slab
  int positions;   // of a stretch
  int lanes;       // threads that hold a row
  void* table;     // (slabs, dim) SequenceScale
  void* partials;  // (slabs, stretches, dim) of what is summed up

  // Whether the context's scratch has room, and the numbers of positions and slabs fit their types.
  static bool takes(const HeadsView& x) { return x.length <= (1 << 30) && x.batch * x.heads <= 65535 && room(x) > 0; }

  SequenceWork(Context& context, const HeadsView& x, int lanes) : slabs(x.batch * x.heads), lanes(lanes) {
    stretches = static_cast<int>(std::min(ceil_div(x.length, kPositions), room(x)));
    positions = static_cast<int>(ceil_div(x.length, int64_t{stretches}));
    table = scratch(context);
    partials = static_cast<char*>(table) + numbers(x);
  }
  dim3 grid() const { return dim3(static_cast<unsigned>(stretches), static_cast<unsigned>(slabs)); }

 private:
  static int64_t numbers(const HeadsView& x) {
    return x.batch * x.heads * x.dim * static_cast<int64_t>(sizeof(float2));
  }
  static int64_t room(const HeadsView& x) { return static_cast<int64_t>(Scratch::kBytes) / numbers(x) - 1; }
};

// What is added up for a feature: the maximum and the sum of exponentials below it.
template <class T>
struct MaximumAndSum {
  float most = -2e38f, sum = 0.0f;  // no number of a finite softmax is smaller
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
// Merges what the threads of a block found for each feature, own[v * WIDTH + i] for element i of input vector v, and
// writes it to `to`.
template <class Encoding, class P>
__device__ void merge_block(P (&own)[Encoding::kValues], P* shared, int lanes, int k, int dim, P* to) {
  constexpr int kWarps = SequenceWork::kThreads / 32;
  for (int distance = lanes; distance < 32; distance *= 2) {
#pragma unroll
    for (int i = 0; i < Encoding::kValues; ++i) own[i].merge(exchanged(own[i], distance));
  }
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
  for (int feature = threadIdx.x; feature < dim; feature += SequenceWork::kThreads) {
    P total = shared[feature];
    for (int w = 1; w < kWarps; ++w) total.merge(shared[w * dim + feature]);
    to[feature] = total;
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
__global__ void __launch_bounds__(SequenceWork::kThreads)
    sequence_sums(const __grid_constant__ HeadsView x, const __grid_constant__ SequenceWork work) {
  using T = typename Encoding::T;
  constexpr int kUnroll = 8 / Encoding::kInputs;
  extern __shared__ float2 shared_words[];
  const SequenceRows rows(work, x, Encoding::WIDTH);
  const int dim = static_cast<int>(x.dim);
  const T* slab = head<const T>(x, rows.batch, 0, rows.head_index);
  MaximumAndSum<T> own[Encoding::kValues];
  for (int n = rows.first; n < rows.end; n += kUnroll * rows.step) {
    InputVectors<Encoding> loaded[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      loaded[u] = load_input<Encoding>(slab + min(n + u * rows.step, rows.end - 1) * x.length_stride, rows.k, dim);
    }
#pragma unroll
    for (int v = 0; v < Encoding::kInputs; ++v) {
      Vec<float, Encoding::WIDTH> values[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) values[u] = widen_all(loaded[u].vectors[v]);
#pragma unroll
      for (int i = 0; i < Encoding::WIDTH; ++i) {
        MaximumAndSum<T>& mine = own[v * Encoding::WIDTH + i];
        float most = mine.most;
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) most = Max{}(most, values[u][i]);
        const ExponentialBelow<T> exponential(most);
        mine.sum *= exponential(mine.most);
        mine.most = most;
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
          if (n + u * rows.step < rows.end) mine.sum += exponential(values[u][i]);
        }
      }
    }
  }
  using P = MaximumAndSum<T>;
  merge_block<Encoding>(own, reinterpret_cast<P*>(shared_words), work.lanes, rows.k, dim,
                        rows.template partials<P>(work, dim));
}

// sum over positions of a * d_a.
template <class Encoding>
__global__ void __launch_bounds__(SequenceWork::kThreads, 1)
    sequence_dots(const __grid_constant__ typename Encoding::BackwardArgs args,
                  const __grid_constant__ SequenceWork work) {
  using T = typename Encoding::T;
  constexpr int kValues = Encoding::kValues, kUnroll = 2;
  extern __shared__ float2 shared_words[];
  const SequenceRows rows(work, args.x, Encoding::WIDTH);
  const int dim = static_cast<int>(args.x.dim);
  const T* x = head<const T>(args.x, rows.batch, 0, rows.head_index);
  const T* d_y = head<const T>(args.d_y, rows.batch, 0, rows.head_index);
  SequenceScale<T> scales[kValues];
  load_scales<Encoding>(static_cast<const SequenceScale<T>*>(work.table) + int64_t{blockIdx.y} * dim, rows.k, dim,
                        scales);
  const typename Encoding::Angles angles(args.theta, args.options, args.theta.rows == 1 ? 0 : rows.head_index, rows.k);
  typename Encoding::Walk walk(angles, args.options, rows.first, rows.step);
  Total own[kValues];
  for (int n = rows.first; n < rows.end; n += kUnroll * rows.step) {
    InputVectors<Encoding> inputs[kUnroll];
    OutputVectors<Encoding> upstreams[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t position = min(n + u * rows.step, rows.end - 1);
      inputs[u] = load_input<Encoding>(x + position * args.x.length_stride, rows.k, dim);
      upstreams[u] = load_output<Encoding>(d_y + position * args.d_y.length_stride, rows.k, dim);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (n + u * rows.step >= rows.end) break;
      float a[kValues], d_a[kValues], upstream[2 * Encoding::WIDTH];
      inputs[u].widen_to(a);
      upstreams[u].widen_to(upstream);
      Encoding::backward(upstream, walk.angle, d_a);
#pragma unroll
      for (int i = 0; i < kValues; ++i) own[i].sum += scales[i](a[i]) * d_a[i];
      walk.next();
    }
  }
  merge_block<Encoding>(own, reinterpret_cast<Total*>(shared_words), work.lanes, rows.k, dim,
                        rows.template partials<Total>(work, dim));
}

// A thread a feature of a slab: adds up its stretches.
template <class P>
__device__ __forceinline__ P sum_stretches(const SequenceWork& work, int64_t feature, int dim) {
  const P* partials = static_cast<const P*>(work.partials) + feature / dim * work.stretches * dim + feature % dim;
  P total = partials[0];
  for (int s = 1; s < work.stretches; ++s) total.merge(partials[int64_t{s} * dim]);
  return total;
}
template <class T>
__global__ void finish_sums(const __grid_constant__ SequenceWork work, int64_t features, int dim, float* maximum,
                            float* sum) {
  const int64_t feature = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (feature >= features) return;
  const auto total = sum_stretches<MaximumAndSum<T>>(work, feature, dim);
  maximum[feature] = total.most;
  sum[feature] = total.sum;
  static_cast<SequenceScale<T>*>(work.table)[feature] = SequenceScale<T>(total.most, total.sum);
}
template <class T>
__global__ void make_scales(const __grid_constant__ SequenceWork work, int64_t features, const float* maximum,
                            const float* sum) {
  const int64_t feature = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (feature < features) {
    static_cast<SequenceScale<T>*>(work.table)[feature] = SequenceScale<T>(maximum[feature], sum[feature]);
  }
}
template <class A>
__global__ void finish_dots(const __grid_constant__ SequenceWork work, int64_t features, int dim, A* dots) {
  const int64_t feature = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (feature < features) dots[feature] = sum_stretches<Total>(work, feature, dim).sum;
}

// Writes maximum and sum of a forward pass; returns the table, which lies in the context's scratch.
template <class Encoding>
const SequenceScale<typename Encoding::T>* launch_sequence_sums(Context& context,
                                                                const typename Encoding::ForwardArgs& args, int lanes) {
  using T = typename Encoding::T;
  const SequenceWork work(context, args.x, lanes);
  const int64_t features = work.slabs * args.x.dim;
  const int dim = static_cast<int>(args.x.dim);
  HEDDLE_LAUNCH(context, sequence_sums<Encoding>, work.grid(), SequenceWork::kThreads,
                SequenceWork::kThreads / 32 * dim * sizeof(MaximumAndSum<T>), args.x, work);
  HEDDLE_LAUNCH(context, finish_sums<T>, static_cast<unsigned>(ceil_div(features, 128)), 128, 0, work, features, dim,
                vector<float>(args.maximum), vector<float>(args.sum));
  return static_cast<const SequenceScale<T>*>(work.table);
}

// Writes dots of a backward pass; returns the table.
template <class Encoding>
const SequenceScale<typename Encoding::T>* launch_sequence_dots(Context& context,
                                                                const typename Encoding::BackwardArgs& args,
                                                                int lanes) {
  using T = typename Encoding::T;
  const SequenceWork work(context, args.x, lanes);
  const int64_t features = work.slabs * args.x.dim;
  const int dim = static_cast<int>(args.x.dim);
  const auto blocks = static_cast<unsigned>(ceil_div(features, 128));
  HEDDLE_LAUNCH(context, make_scales<T>, blocks, 128, 0, work, features, vector<const float>(args.maximum),
                vector<const float>(args.sum));
  HEDDLE_LAUNCH(context, sequence_dots<Encoding>, work.grid(), SequenceWork::kThreads,
                SequenceWork::kThreads / 32 * dim * sizeof(Total), args, work);
  HEDDLE_LAUNCH(context, finish_dots<float>, blocks, 128, 0, work, features, dim, vector<float>(args.dots));
  return static_cast<const SequenceScale<T>*>(work.table);
}

}  // namespace heddle::kernels::cuda
