// Rows of a table by index: y[i, :] = weight[tokens[i], :].                             kernels/dense/embedding.h
//   forward    y (=)
//   backward   d_weight (=|+=)
// Backward sorts the positions of the tokens by token (stable, by CUB). The sorted list is cut into chunks of fixed
// length, and a warp sums the rows of one chunk, 32 vectors of columns wide. A run of equal tokens within one chunk is
// written or added to d_weight at once. A run across chunks leaves one partial sum per chunk in the context's scratch
// memory, and a second launch adds them up in order. There are no atomics, so results are the same bits every time. A
// token that is no row of the table reads as NaN; such tokens and padding_idx have no gradient.
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cub/device/device_radix_sort.cuh>
#include <limits>

#include "kernels/common/cuda/compensated_sum.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/scratch.h"
#include "kernels/common/cuda/vec.h"
#include "kernels/dense/embedding.h"

namespace heddle::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// y (=), one warp per row.
template <class T, int width>
__global__ void __launch_bounds__(kThreads) gather(const int32_t* tokens, RowsView weight, RowsView y) {
  const int64_t stride = gridDim.x * int64_t{kWarps};
  for (int64_t i = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32; i < y.rows; i += stride) {
    const int64_t token = tokens[i];
    const bool known = token >= 0 && token < weight.rows;
    const T* from = row<const T>(weight, known ? token : 0);
    T* to = row<T>(y, i);
#pragma unroll 4
    for (int64_t j = threadIdx.x % 32 * width; j < y.cols; j += 32 * width) {
      Vec<T, width> value;
      if (known) {
        value = load<width>(from + j);
      } else {
#pragma unroll
        for (int e = 0; e < width; ++e) value[e] = narrow<T>(nan<accumulate_t<T>>());
      }
      store(to + j, value);
    }
  }
}

// The input of the sort (=): keys are tokens, or `vocabulary` for tokens that are no row of the table or whose row gets
// no gradient; values are their positions.
__global__ void __launch_bounds__(kThreads) number_tokens(const int32_t* tokens, int64_t count, unsigned vocabulary,
                                                          int64_t padding_idx, unsigned* keys, int32_t* positions) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i >= count) return;
  const auto token = static_cast<unsigned>(tokens[i]);
  keys[i] = token < vocabulary && token != padding_idx ? token : vocabulary;
  positions[i] = static_cast<int32_t>(i);
}

struct Sorted {
  const unsigned* keys;
  const int32_t* positions;
  int64_t count;
  int64_t chunk_size;  // positions in a chunk
  int64_t chunks;
};

// Where the sum of a run of equal keys is written. A chunk has two partial sums: 0 of the run that began in an earlier
// chunk, 1 of the run that begins in this chunk and continues in the next.
template <class A, class W>
struct Target {
  RowsView d_weight;
  A* partials;  // (chunks, 2, cols)
  bool add;

  template <int width>
  __device__ __forceinline__ void write(unsigned key, int64_t col, const Vec<A, width>& sum) const {
    if (key < d_weight.rows) store_or_add(row<W>(d_weight, key) + col, sum, add);
  }
  __device__ __forceinline__ A* partial(int64_t chunk, int which) const {
    return partials + (2 * chunk + which) * d_weight.cols;
  }
};

// d_weight (=|+=) for runs within one chunk, partials (=) for the others. One warp per chunk; grid: (chunks / 8, tiles
// of 32 vectors of columns).
template <class T, class W, int width>
__global__ void __launch_bounds__(kThreads) sum_chunks(Sorted sorted, RowsView d_y, Target<accumulate_t<T>, W> target) {
  using A = accumulate_t<T>;
  const int64_t chunk = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32;
  const int64_t col = (blockIdx.y * int64_t{32} + threadIdx.x % 32) * width;
  if (chunk >= sorted.chunks || col >= d_y.cols) return;
  const int64_t begin = chunk * sorted.chunk_size;
  const int64_t end = begin + sorted.chunk_size < sorted.count ? begin + sorted.chunk_size : sorted.count;
  unsigned key = sorted.keys[begin];
  bool continues = begin > 0 && sorted.keys[begin - 1] == key;  // the run began in an earlier chunk
  VecSum<A, width> sum;
  constexpr int kAhead = 4;  // rows in flight
  for (int64_t i = begin; i < end; i += kAhead) {
    unsigned keys[kAhead];
    Vec<T, width> values[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (i + a >= end) break;
      keys[a] = sorted.keys[i + a];
      values[a] = load<width>(row<const T>(d_y, sorted.positions[i + a]) + col);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (i + a >= end) break;
      if (keys[a] != key) {
        if (continues) {
          store(target.partial(chunk, 0) + col, sum.value());
        } else {
          target.write(key, col, sum.value());
        }
        key = keys[a];
        continues = false;
        sum = {};
      }
#pragma unroll
      for (int e = 0; e < width; ++e) sum.elements[e].add(widen(values[a][e]));
    }
  }
  const bool continues_after = end < sorted.count && sorted.keys[end] == key;
  if (continues) {
    store(target.partial(chunk, 0) + col, sum.value());
  } else if (continues_after) {
    store(target.partial(chunk, 1) + col, sum.value());
  } else {
    target.write(key, col, sum.value());
  }
}

// d_weight (=|+=) for runs across chunks. The warp of the chunk where a run begins adds up its partial sums in order.
template <class A, class W, int width>
__global__ void __launch_bounds__(kThreads) join_chunks(Sorted sorted, Target<A, W> target) {
  const int64_t chunk = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32;
  const int64_t cols = target.d_weight.cols;
  const int64_t col = (blockIdx.y * int64_t{32} + threadIdx.x % 32) * width;
  const int64_t end = (chunk + 1) * sorted.chunk_size;
  if (chunk >= sorted.chunks || end >= sorted.count || col >= cols) return;
  const unsigned key = sorted.keys[end - 1];
  if (sorted.keys[end] != key) return;  // no run crosses the end of this chunk
  const int64_t begin = chunk * sorted.chunk_size;
  if (sorted.keys[begin] == key && begin > 0 && sorted.keys[begin - 1] == key) return;  // it began in an earlier chunk
  VecSum<A, width> sum;
  sum.add(load<width>(target.partial(chunk, 1) + col));
  // The run covers the following chunks as long as they begin with its key.
  int64_t last = chunk + 1;
  while ((last + 1) * sorted.chunk_size < sorted.count && sorted.keys[(last + 1) * sorted.chunk_size] == key) ++last;
#pragma unroll 8
  for (int64_t next = chunk + 1; next <= last; ++next) sum.add(load<width>(target.partial(next, 0) + col));
  target.template write<width>(key, col, sum.value());
}

// Sorts keys and positions, in the layer's workspace.
Sorted sort_tokens(Context& context, const EmbeddingBackwardArgs& args) {
  const VectorView &tokens = args.tokens, &workspace = args.workspace;
  const int64_t count = tokens.size, vocabulary = args.d_weight.view.rows;
  check(count <= std::numeric_limits<int32_t>::max(), "[embedding] {} tokens are more than can be sorted", count);
  auto* numbers = vector<int32_t>(workspace);
  auto* keys = reinterpret_cast<unsigned*>(numbers);
  cub::DoubleBuffer<unsigned> key_buffers(keys, keys + count);
  cub::DoubleBuffer<int32_t> position_buffers(numbers + 2 * count, numbers + 3 * count);
  HEDDLE_LAUNCH(context, number_tokens, static_cast<unsigned>(ceil_div(count, kThreads)), kThreads, 0,
                vector<const int32_t>(tokens), count, static_cast<unsigned>(vocabulary), args.padding_idx, keys,
                numbers + 2 * count);
  const auto address = reinterpret_cast<uintptr_t>(numbers + 4 * count);
  const uintptr_t aligned = (address + 255) / 256 * 256;
  const size_t room = reinterpret_cast<uintptr_t>(numbers + workspace.size) - aligned;
  const int bits = std::bit_width(static_cast<uint64_t>(vocabulary));
  const int items = static_cast<int>(count);
  size_t needed = 0;
  HEDDLE_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(nullptr, needed, key_buffers, position_buffers, items, 0, bits,
                                                    context.stream()));
  check(needed <= room, "[embedding] sorting {} tokens takes {} bytes, the workspace has {}", count, needed, room);
  HEDDLE_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(reinterpret_cast<void*>(aligned), needed, key_buffers,
                                                    position_buffers, items, 0, bits, context.stream()));
  return {key_buffers.Current(), position_buffers.Current(), count, 0, 0};
}

// Chunks of at least 32 positions; longer where the scratch memory could not hold the partial sums otherwise.
int64_t choose_chunk_size(int64_t count, int64_t bytes_of_row) {
  const int64_t max_chunks = static_cast<int64_t>(Scratch::kBytes) / (2 * bytes_of_row);
  check(max_chunks > 0, "[embedding] a row of {} bytes is too long", bytes_of_row);
  return std::max<int64_t>(32, ceil_div(count, max_chunks));
}

template <class T, class W>
void add_rows(Context& context, Sorted sorted, const EmbeddingBackwardArgs& args) {
  using A = accumulate_t<T>;
  const RowsView& d_weight = args.d_weight.view;
  sorted.chunk_size = choose_chunk_size(sorted.count, d_weight.cols * static_cast<int64_t>(sizeof(A)));
  sorted.chunks = ceil_div(sorted.count, sorted.chunk_size);
  const Target<A, W> target = {d_weight, static_cast<A*>(scratch(context)),
                               args.d_weight.mode == GradientMode::accumulate};
  with_width<T>(can_vectorize_all(vector_width<T>, args.d_y, d_weight), [&](auto chosen) {
    constexpr int width = decltype(chosen)::value;
    const dim3 grid(static_cast<unsigned>(ceil_div(sorted.chunks, kWarps)),
                    static_cast<unsigned>(ceil_div(d_weight.cols, 32 * width)));
    HEDDLE_LAUNCH(context, (sum_chunks<T, W, width>), grid, kThreads, 0, sorted, args.d_y, target);
    HEDDLE_LAUNCH(context, (join_chunks<A, W, width>), grid, kThreads, 0, sorted, target);
  });
}

void zero_rows(Context& context, const RowsView& view) {
  use_device(context);
  const size_t bytes = size_of(view.dtype);
  HEDDLE_CUDA_CHECK(cudaMemset2DAsync(view.data, view.row_stride * bytes, 0, view.cols * bytes,
                                      static_cast<size_t>(view.rows), context.stream()));
}

}  // namespace

void embedding_forward(Context& context, const EmbeddingForwardArgs& args) {
  if (args.y.rows == 0 || args.y.cols == 0) return;
  visit_floating(args.weight.dtype, [&](auto type) {
    using T = decltype(type);
    with_width<T>(can_vectorize_all(vector_width<T>, args.weight, args.y), [&](auto chosen) {
      HEDDLE_LAUNCH(context, (gather<T, decltype(chosen)::value>), grid_for(context, args.y.rows, kWarps, 32), kThreads,
                    0, vector<const int32_t>(args.tokens), args.weight, args.y);
    });
  });
}

void embedding_backward(Context& context, const EmbeddingBackwardArgs& args) {
  const RowsView& d_weight = args.d_weight.view;
  if (d_weight.rows == 0 || d_weight.cols == 0) return;
  if (args.d_weight.mode == GradientMode::overwrite) zero_rows(context, d_weight);
  if (args.tokens.size == 0) return;
  const Sorted sorted = sort_tokens(context, args);
  visit_floating(args.d_y.dtype, [&](auto type) {
    using T = decltype(type);
    visit_same_or_accumulate<T>(d_weight.dtype, args.d_y.dtype,
                                [&](auto result) { add_rows<T, decltype(result)>(context, sorted, args); });
  });
}

}  // namespace heddle::kernels::cuda
