// Softmax over the sequence for slabs (the rows of one batch and head) that fit into the shared memory of a cluster of
// blocks, of sm_90 or later; lrpe_sequence.h takes longer slabs and older GPUs.
//   slab_forward    y, maximum, sum (=)     reads x once
//   slab_backward   d_x (=|+=), dots (=)    reads x and d_y once
// Each block of a cluster keeps a tile of the positions; blocks read each other's partial results.
#pragma once

#include <cooperative_groups.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/common/cuda/async.h"
#include "kernels/position/cuda/lrpe_sequence.h"

namespace heddle::kernels::cuda {

// Distributes the positions of a slab to the blocks of a cluster; grid: (blocks, slabs).
struct SlabWork {
  static constexpr int kThreads = 128, kWarps = kThreads / 32;
  static constexpr int kMaxBlocks = 8;            // in a cluster
  static constexpr int kResidentBlocks = 5;       // on a multiprocessor
  static constexpr int kMinRows = 4;              // of a thread; a block with fewer costs more than it saves
  static constexpr int64_t kMaxBytes = 64 << 10;  // of rows in a block; with more, too few blocks are resident

  int lanes;          // neighbouring threads that hold a row
  int64_t slabs;      // batch * heads
  int blocks;         // of a slab: the size of a cluster
  int64_t rows;       // of each thread
  int64_t row_bytes;  // of one row of each thread of a block

  // A thread keeps `vectors` vectors of each of its rows. A slab gets as many blocks as are resident at once for all
  // slabs, if their shared memory can hold it; else as many as kMinRows and kMaxBlocks allow.
  SlabWork(const Context& context, const HeadsView& x, int lanes, int vectors)
      : lanes(lanes), slabs(x.batch * x.heads), row_bytes(int64_t{kThreads} * vectors * 16) {
    const DeviceProperties& properties = context.properties();
    const int64_t all = ceil_div(x.length, kThreads / lanes);
    int64_t count = std::clamp<int64_t>(ceil_div(all, kMinRows), 1, kMaxBlocks);
    const int64_t at_once = kResidentBlocks * properties.multiprocessors / slabs;
    if (at_once > 0 && at_once < count &&
        ceil_div(all, at_once) * row_bytes * kResidentBlocks <
            static_cast<int64_t>(properties.shared_bytes_per_block)) {
      count = at_once;
    }
    blocks = static_cast<int>(count);
    rows = ceil_div(all, count);
  }
  // Whether a block can have `shared_bytes`; GPUs of sm_120 have less shared memory than those of sm_90.
  bool fits(const Context& context, size_t shared_bytes) const {
    const DeviceProperties& properties = context.properties();
    return properties.compute_capability >= 90 && slabs <= 65535 && rows * row_bytes <= kMaxBytes &&
           shared_bytes <= properties.shared_bytes_per_block;
  }
  dim3 grid() const { return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(slabs)); }
};

// The tile of a block in shared memory, VECTORS vectors of each row of each thread, and the results P of its warps. The
// thread's rows are those at the positions first, first + step, ... before `end`.
template <class Encoding, class P, int VECTORS>
struct SlabTile {
  using T = typename Encoding::T;
  static constexpr int kVectors = VECTORS, kVectorBytes = SlabWork::kThreads * 16, kRowBytes = VECTORS * kVectorBytes;

  SequenceScale<T>* table;   // (dim)
  P *warp_partials, *total;  // (kWarps, dim), (dim): results of the warps, and of the block
  uint32_t thread_address;   // of a thread's rows
  int64_t batch, head_index;
  int k, first, step, end;

  static size_t shared_bytes(const SlabWork& work, int64_t dim) {
    const int64_t of_feature = sizeof(SequenceScale<T>) + (SlabWork::kWarps + 1) * sizeof(P);
    return static_cast<size_t>(dim * of_feature + work.rows * kRowBytes);
  }
  __device__ __forceinline__ SlabTile(const SlabWork& work, const HeadsView& x, uint4* shared)
      : batch(blockIdx.y / static_cast<uint32_t>(x.heads)), head_index(blockIdx.y - batch * x.heads) {
    const int dim = static_cast<int>(x.dim);
    thread_address = shared_address(shared) + threadIdx.x * 16;
    table = reinterpret_cast<SequenceScale<T>*>(reinterpret_cast<char*>(shared) + work.rows * kRowBytes);
    warp_partials = reinterpret_cast<P*>(table + dim);
    total = warp_partials + SlabWork::kWarps * dim;
    k = static_cast<int>(threadIdx.x % work.lanes) * Encoding::WIDTH;
    step = SlabWork::kThreads / work.lanes;
    const int positions = static_cast<int>(work.rows) * step, begin = static_cast<int>(blockIdx.x) * positions;
    first = begin + static_cast<int>(threadIdx.x) / work.lanes;
    end = static_cast<int>(min(int64_t{begin} + positions, x.length));
  }

  // Starts to copy `count` vectors of each of the thread's rows of `view`, to vectors from `from` on of its rows here.
  template <class At>
  __device__ __forceinline__ void fetch(const HeadsView& view, int from, int count, int dim, const At& at) const {
    const T* slab = head<const T>(view, batch, 0, head_index);
    uint32_t to = thread_address + from * kVectorBytes;
#pragma unroll 1
    for (int n = first; n < end; n += step, to += kRowBytes) {
      hide_from_compiler(to);
      const T* row = slab + n * view.length_stride;
      hide_from_compiler(row);
#pragma unroll
      for (int v = 0; v < count; ++v) copy_async(to + v * kVectorBytes, row + at(v, k, dim), EvictionPriority::last);
    }
  }
  // Starts to bring the thread's rows of the slab at `slab` of `view`, of the shape of x, into L2.
  __device__ __forceinline__ void prefetch(const HeadsView& view, const T* slab, int dim) const {
    for (int n = first; n < end; n += step) {
#pragma unroll
      for (int v = 0; v < Encoding::kInputs; ++v) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(slab + n * view.length_stride + Encoding::input_at(v, k, dim)));
      }
    }
  }
  // COUNT vectors, from `from` on, of the thread's row `index`.
  template <int COUNT>
  __device__ __forceinline__ RowVectors<T, Encoding::WIDTH, COUNT> read(int index, int from) const {
    RowVectors<T, Encoding::WIDTH, COUNT> row;
#pragma unroll
    for (int v = 0; v < COUNT; ++v) {
      row.vectors[v] = load_shared<T>(thread_address + index * kRowBytes + (from + v) * kVectorBytes);
    }
    return row;
  }

  // Merges the results of the warps of a block for each feature, in order, and signals it to the cluster.
  __device__ __forceinline__ void merge_warps(const P (&own)[Encoding::kValues], const SlabWork& work, int dim) const {
    merge_block<Encoding, SlabWork::kThreads>(own, warp_partials, work.lanes, k, dim,
                                              [&](int feature, const P& sum) { total[feature] = sum; });
    arrive();
  }
  // Waits for the results of all blocks of the cluster and merges them in order; in each block one thread calls
  // write(feature, total).
  template <class Write>
  __device__ __forceinline__ void merge_blocks(const SlabWork& work, int dim, const Write& write) const {
    wait();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const auto cluster = cooperative_groups::this_cluster();
#pragma unroll 1
    for (int feature = threadIdx.x; feature < dim; feature += SlabWork::kThreads) {
      P totals[SlabWork::kMaxBlocks];  // loaded together, to overlap their latency
#pragma unroll
      for (int block = 0; block < SlabWork::kMaxBlocks; ++block) {
        if (block < work.blocks) totals[block] = cluster.map_shared_rank(total, block)[feature];
      }
#pragma unroll
      for (int block = 1; block < SlabWork::kMaxBlocks; ++block) {
        if (block < work.blocks) totals[0].merge(totals[block]);
      }
      write(feature, totals[0]);
    }
#endif
    arrive();
    __syncthreads();
  }
  // Waits until the other blocks have read this block's results, which must stay in shared memory until then.
  __device__ __forceinline__ static void finish() { wait(); }

 private:
  __device__ __forceinline__ static void arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cooperative_groups::this_cluster().barrier_arrive();
#endif
  }
  __device__ __forceinline__ static void wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    cooperative_groups::this_cluster().barrier_wait();
#endif
  }
};

// y, maximum, sum (=)
template <class Encoding>
__global__ void __launch_bounds__(SlabWork::kThreads, SlabWork::kResidentBlocks)
    slab_forward(const __grid_constant__ typename Encoding::ForwardArgs args, const __grid_constant__ SlabWork work) {
  using T = typename Encoding::T;
  using P = MaximumAndSum<T>;
  constexpr int kValues = Encoding::kValues, kInputs = Encoding::kInputs, WIDTH = Encoding::WIDTH;
  extern __shared__ uint4 staged[];
  const int dim = static_cast<int>(args.x.dim);
  const SlabTile<Encoding, P, kInputs> tile(work, args.x, staged);
  const typename Encoding::Thetas thetas(args.theta, args.theta.rows == 1 ? 0 : tile.head_index, tile.k);
  tile.fetch(args.x, 0, kInputs, dim, Encoding::input_at);
  __pipeline_commit();
  __pipeline_wait_prior(0);

  Vec<T, WIDTH> maximum[kInputs];
  initialize_maxima(maximum);
  for (int n = tile.first, index = 0; n < tile.end; n += tile.step, ++index) {
    const auto row = tile.template read<kInputs>(index, 0);
#pragma unroll
    for (int v = 0; v < kInputs; ++v) maximum[v] = elementwise_max(maximum[v], row.vectors[v]);
  }
  for (int distance = work.lanes; distance < 32; distance *= 2) {
#pragma unroll
    for (int v = 0; v < kInputs; ++v) maximum[v] = elementwise_max(maximum[v], shuffle_xor(maximum[v], distance));
  }
  P own[kValues];
  float shift[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    own[i].maximum = widen(maximum[i / WIDTH][i % WIDTH]);
    shift[i] = ShiftedExponential<T>(own[i].maximum).shift;
  }
  for (int n = tile.first, index = 0; n < tile.end; n += tile.step, ++index) {
    float values[kValues];
    tile.template read<kInputs>(index, 0).widen_to(values);
#pragma unroll
    for (int i = 0; i < kValues; ++i) own[i].sum += ShiftedExponential<T>::of(values[i], shift[i]);
  }
  for (int distance = work.lanes; distance < 32; distance *= 2) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) own[i].sum += __shfl_xor_sync(0xffffffffu, own[i].sum, distance);
  }
  tile.merge_warps(own, work, dim);
  typename Encoding::AngleIterator iterator(typename Encoding::Angles(thetas), args.options, tile.first, tile.step);
  iterator.materialize();  // while blocks wait for each other
  tile.merge_blocks(work, dim, [&](int feature, const P& total) {
    tile.table[feature] = SequenceScale<T>(total.maximum, total.sum);
    if (blockIdx.x > 0) return;
    vector<float>(args.maximum)[int64_t{blockIdx.y} * dim + feature] = total.maximum;
    vector<float>(args.sum)[int64_t{blockIdx.y} * dim + feature] = total.sum;
  });

  alignas(16) SequenceScale<T> scales[kValues];
  load_scales<Encoding>(tile.table, tile.k, dim, scales);
  T* const slab = head<T>(args.y, tile.batch, 0, tile.head_index);
  for (int n = tile.first, index = 0; n < tile.end; n += tile.step, ++index, iterator.next()) {
    float a[kValues], y[2 * WIDTH];
    tile.template read<kInputs>(index, 0).widen_to(a);
#pragma unroll
    for (int i = 0; i < kValues; ++i) a[i] = scales[i](a[i]);
    Encoding::forward(a, iterator.angle, Encoding::is_extra(args.options, n), y);
    store_output<Encoding>(slab + n * args.y.length_stride, tile.k, dim, y);
  }
  tile.finish();
}

// d_x (=|+=), dots (=)
template <class Encoding>
__global__ void __launch_bounds__(SlabWork::kThreads, SlabWork::kResidentBlocks)
    slab_backward(const __grid_constant__ typename Encoding::BackwardArgs args, const __grid_constant__ SlabWork work) {
  using T = typename Encoding::T;
  using AngleIterator = typename Encoding::AngleIterator;
  constexpr int kValues = Encoding::kValues, kInputs = Encoding::kInputs, WIDTH = Encoding::WIDTH;
  extern __shared__ uint4 staged[];
  const int dim = static_cast<int>(args.x.dim);
  const SlabTile<Encoding, Total, kInputs + 2> tile(work, args.x, staged);
  const auto load_thetas = [&] {
    return typename Encoding::Thetas(args.theta, args.theta.rows == 1 ? 0 : tile.head_index, tile.k);
  };
  const auto thetas = load_thetas();
  tile.fetch(args.d_y, 0, 2, dim, Encoding::output_at);
  tile.fetch(args.x, 2, kInputs, dim, Encoding::input_at);
  __pipeline_commit();
  T* const d_x = head<T>(args.d_x.view, tile.batch, 0, tile.head_index);
  const bool add = args.d_x.mode == GradientMode::accumulate;
  if (add) tile.prefetch(args.d_x.view, d_x, dim);
  for (int feature = threadIdx.x; feature < dim; feature += SlabWork::kThreads) {
    const int64_t at = int64_t{blockIdx.y} * dim + feature;
    tile.table[feature] = SequenceScale<T>(vector<const float>(args.maximum)[at], vector<const float>(args.sum)[at]);
  }
  AngleIterator iterator(typename Encoding::Angles(thetas), args.options, tile.first, tile.step);
  iterator.materialize();  // while the copies are in flight
  // a and d_a of the thread's row `index`, at position n. It is computed twice, with the same bits.
  const auto gradients_of = [&](int n, int index, const AngleIterator& iterator, float(&a)[kValues],
                                float(&d_a)[kValues]) {
    float upstream[2 * WIDTH];
    tile.template read<2>(index, 0).widen_to(upstream);
    Encoding::backward(upstream, iterator.angle, Encoding::is_extra(args.options, n), d_a);
    tile.template read<kInputs>(index, 2).widen_to(a);
    alignas(16) SequenceScale<T> scales[kValues];
    load_scales<Encoding>(tile.table, tile.k, dim, scales);
#pragma unroll
    for (int i = 0; i < kValues; ++i) a[i] = scales[i](a[i]);
  };
  __pipeline_wait_prior(0);
  __syncthreads();
  Total own[kValues];
  for (int n = tile.first, index = 0; n < tile.end; n += tile.step, ++index, iterator.next()) {
    float a[kValues], d_a[kValues];
    gradients_of(n, index, iterator, a, d_a);
#pragma unroll
    for (int i = 0; i < kValues; ++i) own[i].sum += a[i] * d_a[i];
  }
  merge_warp(own, work.lanes);
  // The results of the warps have been read when dots (dim) is written in their place.
  auto* const dots = reinterpret_cast<float*>(tile.warp_partials);
  tile.merge_warps(own, work, dim);
  AngleIterator restarted(typename Encoding::Angles(load_thetas()), args.options, tile.first, tile.step);
  restarted.materialize();  // while blocks wait for each other
  tile.merge_blocks(work, dim, [&](int feature, const Total& total) {
    dots[feature] = total.sum;
    if (blockIdx.x == 0) vector<float>(args.dots)[int64_t{blockIdx.y} * dim + feature] = total.sum;
  });
#pragma unroll
  for (int v = 0; v < kInputs; ++v) {
    const auto of_vector = load<WIDTH>(dots + Encoding::input_at(v, tile.k, dim));
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) own[v * WIDTH + i].sum = of_vector[i];
  }
  for (int n = tile.first, index = 0; n < tile.end; n += tile.step, ++index, restarted.next()) {
    float a[kValues], d_a[kValues];
    gradients_of(n, index, restarted, a, d_a);
    T* const to = d_x + n * args.d_x.view.length_stride;
#pragma unroll
    for (int i = 0; i < kValues; ++i) d_a[i] = a[i] * (d_a[i] - own[i].sum);
    store_gradient<Encoding>(to, tile.k, dim, add, d_a);
  }
  tile.finish();
}

// slab_forward and slab_backward. Both launch nothing and return false where slabs are too long.
template <class Encoding>
bool launch_slab_forward(Context& context, const typename Encoding::ForwardArgs& args, int lanes) {
  using Tile = SlabTile<Encoding, MaximumAndSum<typename Encoding::T>, Encoding::kInputs>;
  const SlabWork work(context, args.x, lanes, Tile::kVectors);
  const size_t shared_bytes = Tile::shared_bytes(work, args.x.dim);
  if (!work.fits(context, shared_bytes)) return false;
  HEDDLE_LAUNCH_CLUSTERS(context, slab_forward<Encoding>, work.grid(), SlabWork::kThreads, shared_bytes, work.blocks,
                         args, work);
  return true;
}
template <class Encoding>
bool launch_slab_backward(Context& context, const typename Encoding::BackwardArgs& args, int lanes) {
  using Tile = SlabTile<Encoding, Total, Encoding::kInputs + 2>;
  const SlabWork work(context, args.x, lanes, Tile::kVectors);
  const size_t shared_bytes = Tile::shared_bytes(work, args.x.dim);
  if (!work.fits(context, shared_bytes)) return false;
  HEDDLE_LAUNCH_CLUSTERS(context, slab_backward<Encoding>, work.grid(), SlabWork::kThreads, shared_bytes, work.blocks,
                         args, work);
  return true;
}

}  // namespace heddle::kernels::cuda
