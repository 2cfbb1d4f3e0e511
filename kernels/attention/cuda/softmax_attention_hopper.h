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

// The order of the tiles: heads in sections whose other tokens fit into L2 together; within a section the first or the
// last rows of all heads, then their neighbours, so that where causal the longest tiles come first and the shortest fill
// the gaps at the end.
struct TileOrder {
  int heads;       // batch times heads
  int row_tiles;   // of a head
  int section;     // heads of a section
  bool last_first;  // whether the last rows of a head come first

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
  // The block's tile of a round: forth and back, so that all blocks get about as much work.
  __device__ __forceinline__ static int of_round(int round) {
    const int blocks = static_cast<int>(gridDim.x), own = static_cast<int>(blockIdx.x);
    return round * blocks + (round % 2 == 0 ? own : blocks - 1 - own);
  }
};

// `bytes`: what a tile of a head meets, as keys and values of the head.
inline TileOrder tile_order(const Context& context, const HeadsView& rows, int tile_rows, int64_t bytes,
                            bool last_first) {
  const int64_t heads = rows.batch * rows.heads;
  const auto fitting = static_cast<int64_t>(context.properties().l2_bytes) * 2 / 3 / std::max<int64_t>(bytes, 1);
  return {static_cast<int>(heads), static_cast<int>(ceil_div(rows.length, tile_rows)),
          static_cast<int>(std::clamp<int64_t>(fitting, 1, heads)), last_first};
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

// Which columns a tile meets: from `begin` to `end`, and those that all its rows meet, from `whole.begin` to `whole.end`.
struct TileColumns {
  Range all, whole;

  __device__ __forceinline__ bool are_whole(int column, int columns) const {
    return whole.begin <= column && whole.end >= column + columns;
  }
};

// Puts 0 in place of what is not finite in the thread's part of a matrix, with COUNT threads, and returns whether there
// was such a number.
template <int COUNT, class T, int ROWS, int COLS>
__device__ __forceinline__ bool drop_not_finite(SwizzledMatrix<T, ROWS, COLS>& matrix, int thread) {
  constexpr int kUnits = ROWS * COLS / 8;
  const uint32_t data = shared_address(matrix.data);
  bool found = false;
#pragma unroll 4
  for (int i = thread; i < kUnits; i += COUNT) {
    const Vec<T, 8> values = load_shared<T>(data + i * 16);
    unsigned zeros = 0;
#pragma unroll
    for (int w = 0; w < 4; ++w) add_zero_times<T>(reinterpret_cast<const unsigned*>(&values)[w], zeros);
    if ((zeros & 0x7fff7fffu) == 0) continue;
    found = true;
    for (int e = 0; e < 8; ++e) {
      if (!(fabsf(widen(values[e])) < infinity<float>())) matrix.data[i * 8 + e] = narrow<T>(0.0f);
    }
  }
  return found;
}

// Writes (=) or adds (+=) the thread's row of a fragment of C, lane / 4 + 8 half of the warp's. Four lanes exchange what
// they hold, so that each writes 16 bytes at a time.
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
          (upper ? moved[i] : moved[i + distance])[e] = got;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = moved[i / 2][i % 2];
    if (stored) store_or_add(row + (n + lane) * 8, values, add);
  }
}

}  // namespace heddle::kernels::cuda::softmax
