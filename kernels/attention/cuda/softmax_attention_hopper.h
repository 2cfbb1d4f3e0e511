// What the softmax attention kernels for sm_90a share: who works on which tile, and how results leave the registers. A
// tile is up to 192 rows, queries or keys, of one head; a block of threads lives as long as the kernel and takes one
// tile after the other.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/attention/cuda/softmax_attention_tiles.h"
#include "kernels/attention/cuda/tensor_map.h"
#include "kernels/attention/cuda/wgmma.h"

namespace heddle::kernels::cuda::softmax {

// Whether kernels whose code is for sm_90a alone can run: the build has that code, and the GPU takes it.
inline bool can_use_hopper([[maybe_unused]] const Context& context) {
#ifdef HEDDLE_SM90A
  return context.properties().compute_capability == 90;
#else
  return false;
#endif
}

// The order of the tiles: heads in sections whose other tokens fit into L2 together; within a section the first or the
// last rows of all heads, then their neighbours, so that where causal the longest tiles come first and the shortest
// fill the gaps at the end. Which block takes a tile does not change its numbers.
struct TileOrder {
  int heads;        // batch times heads
  int row_tiles;    // of a head
  int section;      // heads of a section
  bool last_first;  // whether the last rows of a head come first
  unsigned* taken;  // how many tiles blocks have taken after their first, 0 at the start; or null: a fixed order

  struct Tile {
    int head, row_tile;  // the head counts over the batch, too
  };
  __device__ __forceinline__ int count() const { return heads * row_tiles; }
  __device__ __forceinline__ Tile at(int index) const {
    const int first_head = index / (section * row_tiles) * section;
    const int width = min(section, heads - first_head), rest = index - first_head * row_tiles;
    const int row = rest / width;
    return {first_head + rest % width, last_first ? row_tiles - 1 - row : row};
  }
  // The tile that the block takes in a round, count() or more where none is left; one thread of the block asks. The
  // fixed order goes forth and back, so that blocks get about as much work.
  __device__ __forceinline__ int take(int round) const {
    const int blocks = static_cast<int>(gridDim.x), own = static_cast<int>(blockIdx.x);
    if (round > 0 && taken != nullptr) return blocks + static_cast<int>(atomicAdd(taken, 1u));
    return round * blocks + (round % 2 == 0 ? own : blocks - 1 - own);
  }
  // The same where tiles wait for earlier ones: no block has a tile before it runs.
  __device__ __forceinline__ int take_in_order() const { return static_cast<int>(atomicAdd(taken, 1u)); }
};

// `bytes`: what a tile of a head meets, as keys and values of the head.
inline TileOrder tile_order(const Context& context, const HeadsView& rows, int tile_rows, int64_t bytes,
                            bool last_first, unsigned* taken) {
  const int64_t heads = rows.batch * rows.heads, row_tiles = ceil_div(rows.length, tile_rows);
  const auto fitting = static_cast<int64_t>(context.properties().l2_bytes) * 2 / 3 / std::max<int64_t>(bytes, 1);
  const int64_t sections = ceil_div(heads, std::clamp<int64_t>(fitting, 1, heads));
  return {static_cast<int>(heads), static_cast<int>(row_tiles), static_cast<int>(ceil_div(heads, sections)), last_first,
          taken};
}
// The blocks of a kernel that goes over the tiles.
inline unsigned blocks_for(const Context& context, const TileOrder& order) {
  return static_cast<unsigned>(
      std::min<int64_t>(int64_t{order.heads} * order.row_tiles, context.properties().multiprocessors));
}

// What all kernels here do: the first warpgroups compute, the warps of the last one assist them.
template <class Kernel>
__device__ __forceinline__ void run_groups(const Kernel& kernel) {
  kernel.init();
  const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
  if (group < Kernel::kGroups) {
    take_registers<Kernel::kGroupRegisters>();
    kernel.compute(group);
  } else {
    give_registers<Kernel::kOtherRegisters>();
    kernel.assist(__shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) % 128 / 32, 0));
  }
}

// Position in a ring of STAGES buffers. Its parity is that of the phase in which the buffer is filled.
template <int STAGES>
struct Ring {
  int stage = 0;
  unsigned parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1u;
    }
  }
};

// Sets the ranges of the warp's 16 rows from `first_row` on to range_of(row), by a warp that alone reads them.
template <int ROWS, class RangeOf>
__device__ __forceinline__ void fill_ranges(RowRanges<ROWS>& ranges, int first_row, const RangeOf& range_of) {
  const int row = first_row + static_cast<int>(threadIdx.x) % 32;
  if (row < first_row + 16) {
    const Range range = range_of(row);
    ranges.begin[row] = range.begin;
    ranges.end[row] = range.end;
  }
  __syncwarp();
}

// Which columns a tile meets: from `begin` to `end`, and those that all its rows meet, from `whole.begin` to
// `whole.end`.
struct TileColumns {
  Range all, whole;

  __device__ __forceinline__ bool are_whole(int column, int columns) const {
    return whole.begin <= column && whole.end >= column + columns;
  }
};

// The columns that rows meet of which the first meets `top`, the last `bottom`.
__device__ __forceinline__ TileColumns columns_between(Range top, Range bottom) {
  return {{top.begin, bottom.end}, {bottom.begin, top.end}};
}

// Tiles of queries, which meet keys KEYS at a time, from the last to the first.
template <int QUERIES, int KEYS>
struct QueryTiles {
  struct Place {
    int batch, head, kv_head, first;  // first: of the queries
  };

  __device__ __forceinline__ static Place place_of(const SoftmaxAttentionInputs& inputs, TileOrder::Tile tile) {
    const int heads = static_cast<int>(inputs.q.heads), group = heads / static_cast<int>(inputs.k.heads);
    const int head_index = tile.head % heads;
    return {tile.head / heads, head_index, head_index / group, tile.row_tile * QUERIES};
  }
  // Rows after the last query do as the last one does.
  __device__ __forceinline__ static Range keys_of_row(const SoftmaxAttentionInputs& inputs, const Place& place,
                                                      int row) {
    return keys_of(inputs, place.batch, min(place.first + row, static_cast<int>(inputs.q.length) - 1));
  }
  __device__ __forceinline__ static TileColumns columns_of(const SoftmaxAttentionInputs& inputs, const Place& place) {
    return columns_between(keys_of_row(inputs, place, 0), keys_of_row(inputs, place, QUERIES - 1));
  }
  // At least one, also for segments that decrease, which are an error: all warps wait for the copies of a first step.
  __device__ __forceinline__ static int steps_of(const TileColumns& columns) {
    return max(1, blocks_of(columns.all.end - columns.all.begin, KEYS));
  }
  __device__ __forceinline__ static int column_of(const TileColumns& columns, int steps, int step) {
    return columns.all.begin + (steps - 1 - step) * KEYS;
  }

  // Calls visit(query, key) for the pairs that see each other, of 64 queries from row `first_row` on and all steps, or
  // those that not all queries of the tile see; the warps of the group, of which `warp` is one, share the queries.
  template <bool NOT_WHOLE, class Visit>
  __device__ __forceinline__ static void for_pairs(const SoftmaxAttentionInputs& inputs, const Place& place,
                                                   int first_row, int warp, const Visit& visit) {
    const TileColumns columns = columns_of(inputs, place);
    const int end = min(place.first + first_row + 64, static_cast<int>(inputs.q.length)), steps = steps_of(columns);
    for (int query = place.first + first_row + warp; query < end; query += 4) {
      const Range keys = keys_of(inputs, place.batch, query);
      for (int step = 0; step < steps; ++step) {
        const int column = column_of(columns, steps, step);
        if (NOT_WHOLE && columns.are_whole(column, KEYS)) continue;
        for (int key = max(column, keys.begin); key < min(column + KEYS, keys.end); ++key) visit(query, key);
      }
    }
  }
};

// What is not finite in the features of one row, times `factor`, is added to another row, by the lanes of a warp.
template <class T>
__device__ __forceinline__ void add_what_is_not_finite(T* to, const T* from, int dim, float factor) {
  for (int c = static_cast<int>(threadIdx.x) % 32; c < dim; c += 32) {
    const float value = widen(from[c]);
    if (!(fabsf(value) < infinity<float>())) to[c] = narrow<T>(widen(to[c]) + value * factor);
  }
}

// Calls visit(row) for what is not finite in the thread's part of a matrix, one of COUNT. With DROP, puts 0 in its
// place.
template <int COUNT, bool DROP, class T, int ROWS, int COLS, class Visit>
__device__ __forceinline__ void find_not_finite(SwizzledMatrix<T, ROWS, COLS>& matrix, int thread, const Visit& visit) {
  constexpr int kUnits = ROWS * COLS / 8;
  const uint32_t data = shared_address(matrix.data);
#pragma unroll 4
  for (int i = thread; i < kUnits; i += COUNT) {
    const Vec<T, 8> values = load_shared<T>(data + i * 16);
    unsigned zeros = 0;
#pragma unroll
    for (int w = 0; w < 4; ++w) add_zero_times<T>(reinterpret_cast<const unsigned*>(&values)[w], zeros);
    if ((zeros & 0x7fff7fffu) == 0) continue;
    visit(i / 8 % ROWS);
    for (int e = 0; DROP && e < 8; ++e) {
      if (!(fabsf(widen(values[e])) < infinity<float>())) matrix.data[i * 8 + e] = narrow<T>(0.0f);
    }
  }
}

// One arrival for each warp.
__device__ __forceinline__ void arrive_warp(SharedBarrier& barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier.arrive();
}

// What a thread wrote before store_release() is seen by those that a load_acquire() of its value comes before.
__device__ __forceinline__ int load_acquire(const int* from) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ __forceinline__ void store_release(int* to, int value) {
  asm volatile("fence.acq_rel.gpu;\n\tst.relaxed.gpu.global.s32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
// Start to write (=) or to add (+=) floats from shared to device memory, a multiple of 16 bytes, by the copy engine.
__device__ __forceinline__ void copy_to_memory(float* to, const float* from, int bytes) {
  asm volatile(
      "cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n\t"
      "cp.async.bulk.commit_group;" ::"l"(to),
      "r"(shared_address(from)), "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void add_to_memory(float* to, const float* from, int bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;\n\t"
      "cp.async.bulk.commit_group;" ::"l"(to),
      "r"(shared_address(from)), "r"(bytes)
      : "memory");
}
// What a load_acquire() of this thread made visible comes before what the copy engine does for it from here on.
__device__ __forceinline__ void fence_async_memory() { asm volatile("fence.proxy.async.global;" ::: "memory"); }
// Wait until what this thread started has been read from shared memory, and until it is in device memory.
__device__ __forceinline__ void wait_for_reads() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ __forceinline__ void wait_for_writes() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// Weights, rounded to T, as operand A.
template <class T, int TILES>
__device__ __forceinline__ void round_weights(FragmentA (&a)[TILES / 2], const FragmentC (&weights)[TILES]) {
#pragma unroll
  for (int d = 0; d < TILES / 2; ++d) a[d] = as_a<T>(weights[2 * d], weights[2 * d + 1]);
}

// The binary logarithm of exp(scale score - lse). Float32 knows a large lse too coarsely for a fused product, and there
// the product is rounded as lse was, so that the only key of a row has the probability 1.
__device__ __forceinline__ bool is_large(float lse) { return fabsf(lse) > 0x1p15f; }
__device__ __forceinline__ float exponent_of(float score, float scale, float lse) {
  return is_large(lse) ? (rounded_product(score, scale) - lse) * kLog2E : fmaf(score, scale * kLog2E, -(lse * kLog2E));
}
__device__ __forceinline__ float small_exponent_of(float score, float scale, float lse) {
  return fmaf(score, scale * kLog2E, -(lse * kLog2E));
}

// Starts c (=) a b^T, 64 rows of a from `row` on, and all rows of b.
template <class T, int TILES, int ROWS, int COLS>
__device__ __forceinline__ void start_scores(FragmentC (&c)[TILES], const SwizzledMatrix<T, ROWS, COLS>& a, int row,
                                             const SwizzledMatrix<T, TILES * 8, COLS>& b) {
#pragma unroll
  for (int d = 0; d < COLS; d += 16) {
    if (d == 0) {
      wgmma<T, Stored::by_rows, Stored::by_rows>(c, a.by_rows(row, d), b.by_rows(0, d));
    } else {
      wgmma<T, Stored::by_rows, Stored::by_rows>(c, a.by_rows(row, d), b.by_rows(0, d), true);
    }
  }
  wgmma_commit();
}
// Starts c (+=) weights b.
template <class T, int TILES, int DEPTHS>
__device__ __forceinline__ void start_sum(FragmentC (&c)[TILES], const FragmentA (&weights)[DEPTHS],
                                          const SwizzledMatrix<T, DEPTHS * 16, TILES * 8>& b) {
#pragma unroll
  for (int d = 0; d < DEPTHS; ++d) wgmma<T, Stored::by_depth>(c, weights[d], b.by_depth(d * 16, 0), true);
  wgmma_commit();
}

// Writes (=) or adds (+=) the thread's row of a fragment of C, lane / 4 + 8 half of the warp's. Four lanes exchange
// what they hold, so that each writes 16 bytes at a time.
template <class T, int TILES>
__device__ __forceinline__ void store_row(T* row, const FragmentC (&c)[TILES], int half, bool stored, bool add) {
  const int lane = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < TILES; n += 4) {
    Vec<float, 8> values;
    float moved[4][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      moved[i][0] = c[n + i].values[half * 2];
      moved[i][1] = c[n + i].values[half * 2 + 1];
    }
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {  // the transpose of a matrix of 4 lanes by 4 pairs
      const bool upper = lane & distance;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i & distance) continue;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float got = __shfl_xor_sync(0xffffffffu, upper ? moved[i][e] : moved[i + distance][e], distance);
          moved[i][e] = upper ? got : moved[i][e];
          moved[i + distance][e] = upper ? moved[i + distance][e] : got;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = moved[i / 2][i % 2];
    if (stored) store_or_add(row + (n + lane) * 8, values, add);
  }
}

}  // namespace heddle::kernels::cuda::softmax
