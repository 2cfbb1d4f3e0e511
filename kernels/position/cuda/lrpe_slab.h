// Softmax over the sequence for slabs (what one batch and head hold) that a cluster of blocks keeps in shared memory.
//   bytes: x (and d_y) read once, y (d_x) written once
// A block has a stretch of the positions; what blocks sum up they read from each other. Longer slabs, and GPUs before
// sm_90, take lrpe_sequence.h.
#pragma once

#include <cooperative_groups.h>

#include "kernels/common/cuda/async.h"
#include "kernels/position/cuda/lrpe_sequence.h"

namespace heddle::kernels::cuda {

struct SlabWork {
  static constexpr int kThreads = 128, kWarps = kThreads / 32;
  static constexpr int kMostBlocks = 8;            // of a cluster
  static constexpr int kResident = 5;              // blocks of a multiprocessor
  static constexpr int kFewRows = 4;               // of a thread: fewer are not worth a block
  static constexpr int64_t kMostBytes = 64 << 10;  // of a block: with more there are too few threads at once

  int lanes;          // threads that hold a row
  int64_t slabs;      // batch * heads
  int blocks;         // of a slab: a cluster
  int64_t rows;       // of a thread
  int64_t row_bytes;  // of a block, one of each thread

  // A thread keeps `vectors` vectors of each of its rows. As many blocks as have their places at once, if there is room
  // for what they then keep; else many small ones.
  SlabWork(const Context& context, const HeadsView& x, int lanes, int vectors)
      : lanes(lanes), slabs(x.batch * x.heads), row_bytes(int64_t{kThreads} * vectors * 16) {
    const DeviceProperties& properties = context.properties();
    const int64_t all = ceil_div(x.length, kThreads / lanes);
    int64_t count = std::clamp<int64_t>(ceil_div(all, kFewRows), 1, kMostBlocks);
    const int64_t at_once = kResident * properties.multiprocessors / slabs;
    if (at_once > 0 && at_once < count &&
        ceil_div(all, at_once) * row_bytes * kResident < static_cast<int64_t>(properties.shared_bytes_per_block)) {
      count = at_once;
    }
    blocks = static_cast<int>(count);
    rows = ceil_div(all, count);
  }
  // `shared_bytes` of a block: GPUs of sm_120 have less of it than those of sm_90.
  bool fits(const Context& context, size_t shared_bytes) const {
    const DeviceProperties& properties = context.properties();
    return properties.compute_capability >= 90 && slabs <= 65535 && rows * row_bytes <= kMostBytes &&
           shared_bytes <= properties.shared_bytes_per_block;
  }
  dim3 grid() const { return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(slabs)); }
};

// The part of a block: its shared memory, and the rows of a thread.
template <class Encoding, class P, int VECTORS>
struct SlabPart {
  using T = typename Encoding::T;
  static constexpr int kVectors = VECTORS, kVectorBytes = SlabWork::kThreads * 16, kRowBytes = VECTORS * kVectorBytes;

  SequenceScale<T>* table;  // (dim)
  P *of_warps, *total;      // (kWarps, dim), (dim)
  uint32_t own_place;       // of a thread's rows
  int64_t batch, head_index;
  int k, first, step, end;

  static size_t shared_bytes(const SlabWork& work, int64_t dim) {
    const int64_t of_feature = sizeof(SequenceScale<T>) + (SlabWork::kWarps + 1) * sizeof(P);
    return static_cast<size_t>(dim * of_feature + work.rows * kRowBytes);
  }
  __device__ __forceinline__ SlabPart(const SlabWork& work, const HeadsView& x, uint4* shared)
      : batch(blockIdx.y / static_cast<uint32_t>(x.heads)), head_index(blockIdx.y - batch * x.heads) {
    const int dim = static_cast<int>(x.dim);
    own_place = shared_address(shared) + threadIdx.x * 16;
    table = reinterpret_cast<SequenceScale<T>*>(reinterpret_cast<char*>(shared) + work.rows * kRowBytes);
    of_warps = reinterpret_cast<P*>(table + dim);
    total = of_warps + SlabWork::kWarps * dim;
    k = static_cast<int>(threadIdx.x % work.lanes) * Encoding::WIDTH;
    step = SlabWork::kThreads / work.lanes;
    const int positions = static_cast<int>(work.rows) * step, begin = static_cast<int>(blockIdx.x) * positions;
    first = begin + static_cast<int>(threadIdx.x) / work.lanes;
    end = static_cast<int>(min(int64_t{begin} + positions, x.length));
  }

  // Asks for `count` vectors of each row of `view`, as vectors `from` on of a thread's rows.
  template <class At>
  __device__ __forceinline__ void fetch(const HeadsView& view, int from, int count, int dim, const At& at) const {
    const T* slab = head<const T>(view, batch, 0, head_index);
    uint32_t to = own_place + from * kVectorBytes;
#pragma unroll 1
    for (int n = first; n < end; n += step, to += kRowBytes) {
      hide_from_compiler(to);
      const T* row = slab + n * view.length_stride;
      hide_from_compiler(row);
#pragma unroll
      for (int v = 0; v < count; ++v) copy_async(to + v * kVectorBytes, row + at(v, k, dim), EvictionPriority::last);
    }
  }
  template <int COUNT>
  __device__ __forceinline__ RowVectors<T, Encoding::WIDTH, COUNT> read(int index, int from) const {
    RowVectors<T, Encoding::WIDTH, COUNT> row;
#pragma unroll
    for (int v = 0; v < COUNT; ++v) {
      row.vectors[v] = load_shared<T>(own_place + index * kRowBytes + (from + v) * kVectorBytes);
    }
    return row;
  }

  // Merges what the warps of a cluster found for each feature, in one order. First over the block.
  __device__ __forceinline__ void merge_warps(const P (&own)[Encoding::kValues], const SlabWork& work, int dim) const {
    merge_block<Encoding, SlabWork::kThreads>(own, of_warps, work.lanes, k, dim,
                                              [&](int feature, const P& sum) { total[feature] = sum; });
    arrive();
  }
  // Then over the blocks; write(feature, total) is called by one thread of each.
  template <class Write>
  __device__ __forceinline__ void merge_blocks(const SlabWork& work, int dim, const Write& write) const {
    wait();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const auto cluster = cooperative_groups::this_cluster();
#pragma unroll 1
    for (int feature = threadIdx.x; feature < dim; feature += SlabWork::kThreads) {
      P totals[SlabWork::kMostBlocks];  // under way together
#pragma unroll
      for (int block = 0; block < SlabWork::kMostBlocks; ++block) {
        if (block < work.blocks) totals[block] = cluster.map_shared_rank(total, block)[feature];
      }
#pragma unroll
      for (int block = 1; block < SlabWork::kMostBlocks; ++block) {
        if (block < work.blocks) totals[0].merge(totals[block]);
      }
      write(feature, totals[0]);
    }
#endif
    arrive();
    __syncthreads();
  }
  // A block leaves when what it summed up has been read.
  __device__ __forceinline__ static void leave() { wait(); }

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

template <class Encoding>
__global__ void __launch_bounds__(SlabWork::kThreads, SlabWork::kResident)
    slab_forward(const __grid_constant__ typename Encoding::ForwardArgs args, const __grid_constant__ SlabWork work) {
  using T = typename Encoding::T;
  using P = MaximumAndSum<T>;
  constexpr int kValues = Encoding::kValues, kInputs = Encoding::kInputs, WIDTH = Encoding::WIDTH;
  extern __shared__ uint4 staged[];
  const int dim = static_cast<int>(args.x.dim);
  const SlabPart<Encoding, P, kInputs> part(work, args.x, staged);
  const typename Encoding::Thetas thetas(args.theta, args.theta.rows == 1 ? 0 : part.head_index, part.k);
  part.fetch(args.x, 0, kInputs, dim, Encoding::input_at);
  __pipeline_commit();
  __pipeline_wait_prior(0);

  Vec<T, WIDTH> most[kInputs];
  start_maxima(most);
  for (int n = part.first, index = 0; n < part.end; n += part.step, ++index) {
    const auto row = part.template read<kInputs>(index, 0);
#pragma unroll
    for (int v = 0; v < kInputs; ++v) most[v] = elementwise_max(most[v], row.vectors[v]);
  }
  for (int distance = work.lanes; distance < 32; distance *= 2) {
#pragma unroll
    for (int v = 0; v < kInputs; ++v) most[v] = elementwise_max(most[v], exchanged(most[v], distance));
  }
  P own[kValues];
  float less[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    own[i].most = widen(most[i / WIDTH][i % WIDTH]);
    less[i] = ExponentialBelow<T>(own[i].most).less;
  }
  for (int n = part.first, index = 0; n < part.end; n += part.step, ++index) {
    float values[kValues];
    part.template read<kInputs>(index, 0).widen_to(values);
#pragma unroll
    for (int i = 0; i < kValues; ++i) own[i].sum += ExponentialBelow<T>::below(values[i], less[i]);
  }
  for (int distance = work.lanes; distance < 32; distance *= 2) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) own[i].sum += __shfl_xor_sync(0xffffffffu, own[i].sum, distance);
  }
  part.merge_warps(own, work, dim);
  typename Encoding::Walk walk(typename Encoding::Angles(thetas), args.options, part.first, part.step);
  walk.settle();  // while blocks wait for each other
  part.merge_blocks(work, dim, [&](int feature, const P& total) {
    part.table[feature] = SequenceScale<T>(total.most, total.sum);
    if (blockIdx.x > 0) return;
    vector<float>(args.maximum)[int64_t{blockIdx.y} * dim + feature] = total.most;
    vector<float>(args.sum)[int64_t{blockIdx.y} * dim + feature] = total.sum;
  });

  alignas(16) SequenceScale<T> scales[kValues];
  load_scales<Encoding>(part.table, part.k, dim, scales);
  T* const slab = head<T>(args.y, part.batch, 0, part.head_index);
  for (int n = part.first, index = 0; n < part.end; n += part.step, ++index, walk.next()) {
    float a[kValues], y[2 * WIDTH];
    part.template read<kInputs>(index, 0).widen_to(a);
#pragma unroll
    for (int i = 0; i < kValues; ++i) a[i] = scales[i](a[i]);
    Encoding::forward(a, walk.angle, y);
    store_output<Encoding>(slab + n * args.y.length_stride, part.k, dim, y);
  }
  part.leave();
}

template <class Encoding>
__global__ void __launch_bounds__(SlabWork::kThreads, SlabWork::kResident)
    slab_backward(const __grid_constant__ typename Encoding::BackwardArgs args, const __grid_constant__ SlabWork work) {
  using T = typename Encoding::T;
  using Walk = typename Encoding::Walk;
  constexpr int kValues = Encoding::kValues, kInputs = Encoding::kInputs, WIDTH = Encoding::WIDTH;
  extern __shared__ uint4 staged[];
  const int dim = static_cast<int>(args.x.dim);
  const SlabPart<Encoding, Total, kInputs + 2> part(work, args.x, staged);
  const auto thetas_of_part = [&] {
    return typename Encoding::Thetas(args.theta, args.theta.rows == 1 ? 0 : part.head_index, part.k);
  };
  const auto thetas = thetas_of_part();
  part.fetch(args.d_y, 0, 2, dim, Encoding::output_at);
  part.fetch(args.x, 2, kInputs, dim, Encoding::input_at);
  __pipeline_commit();
  T* const d_x = head<T>(args.d_x.view, part.batch, 0, part.head_index);
  const bool add = args.d_x.mode == GradientMode::accumulate;
  if (add) {  // into L2
    for (int n = part.first; n < part.end; n += part.step) {
#pragma unroll
      for (int v = 0; v < kInputs; ++v) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(d_x + n * args.d_x.view.length_stride +
                                                      Encoding::input_at(v, part.k, dim)));
      }
    }
  }
  for (int feature = threadIdx.x; feature < dim; feature += SlabWork::kThreads) {
    const int64_t at = int64_t{blockIdx.y} * dim + feature;
    part.table[feature] = SequenceScale<T>(vector<const float>(args.maximum)[at], vector<const float>(args.sum)[at]);
  }
  Walk walk(typename Encoding::Angles(thetas), args.options, part.first, part.step);
  walk.settle();  // while rows are under way
  // a and d_a of a row; the same bits both times.
  const auto gradients_of = [&](int index, const Walk& walk, float(&a)[kValues], float(&d_a)[kValues]) {
    float upstream[2 * WIDTH];
    part.template read<2>(index, 0).widen_to(upstream);
    Encoding::backward(upstream, walk.angle, d_a);
    part.template read<kInputs>(index, 2).widen_to(a);
    alignas(16) SequenceScale<T> scales[kValues];
    load_scales<Encoding>(part.table, part.k, dim, scales);
#pragma unroll
    for (int i = 0; i < kValues; ++i) a[i] = scales[i](a[i]);
  };
  __pipeline_wait_prior(0);
  __syncthreads();
  Total own[kValues];
  for (int n = part.first, index = 0; n < part.end; n += part.step, ++index, walk.next()) {
    float a[kValues], d_a[kValues];
    gradients_of(index, walk, a, d_a);
#pragma unroll
    for (int i = 0; i < kValues; ++i) own[i].sum += a[i] * d_a[i];
  }
  merge_warp(own, work.lanes);
  auto* const dots = reinterpret_cast<float*>(part.of_warps);  // read by then
  part.merge_warps(own, work, dim);
  Walk again(typename Encoding::Angles(thetas_of_part()), args.options, part.first, part.step);
  again.settle();  // while blocks wait for each other
  part.merge_blocks(work, dim, [&](int feature, const Total& total) {
    dots[feature] = total.sum;
    if (blockIdx.x == 0) vector<float>(args.dots)[int64_t{blockIdx.y} * dim + feature] = total.sum;
  });
#pragma unroll
  for (int v = 0; v < kInputs; ++v) {
    const auto of_vector = load<WIDTH>(dots + Encoding::input_at(v, part.k, dim));
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) own[v * WIDTH + i].sum = of_vector[i];
  }
  for (int n = part.first, index = 0; n < part.end; n += part.step, ++index, again.next()) {
    float a[kValues], d_a[kValues];
    gradients_of(index, again, a, d_a);
    T* const to = d_x + n * args.d_x.view.length_stride;
#pragma unroll
    for (int i = 0; i < kValues; ++i) d_a[i] = a[i] * (d_a[i] - own[i].sum);
    if (add) {
      load_input<Encoding>(to, part.k, dim).widen_to(a);
#pragma unroll
      for (int i = 0; i < kValues; ++i) d_a[i] += a[i];
    }
    store_input<Encoding>(to, part.k, dim, d_a);
  }
  part.leave();
}

// Both launch nothing and return false where slabs are too long.
template <class Encoding>
bool launch_slab_forward(Context& context, const typename Encoding::ForwardArgs& args, int lanes) {
  using Part = SlabPart<Encoding, MaximumAndSum<typename Encoding::T>, Encoding::kInputs>;
  const SlabWork work(context, args.x, lanes, Part::kVectors);
  const size_t shared_bytes = Part::shared_bytes(work, args.x.dim);
  if (!work.fits(context, shared_bytes)) return false;
  HEDDLE_LAUNCH_CLUSTERS(context, slab_forward<Encoding>, work.grid(), SlabWork::kThreads, shared_bytes, work.blocks,
                         args, work);
  return true;
}
template <class Encoding>
bool launch_slab_backward(Context& context, const typename Encoding::BackwardArgs& args, int lanes) {
  using Part = SlabPart<Encoding, Total, Encoding::kInputs + 2>;
  const SlabWork work(context, args.x, lanes, Part::kVectors);
  const size_t shared_bytes = Part::shared_bytes(work, args.x.dim);
  if (!work.fits(context, shared_bytes)) return false;
  HEDDLE_LAUNCH_CLUSTERS(context, slab_backward<Encoding>, work.grid(), SlabWork::kThreads, shared_bytes, work.blocks,
                         args, work);
  return true;
}

}  // namespace heddle::kernels::cuda
