// How a matrix product is cut into blocks, one task each, from its extents alone.
// docs/notes/dense.md#cpu-matrix-products
#pragma once

#include <algorithm>
#include <cstdint>

namespace heddle::kernels::cpu {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The extents of a block of a product: rows and columns of c, and the length of its part of the sum over k.
struct Block {
  int64_t rows, cols, depth;
};

// Largest number of splits of the sum over k.
inline constexpr int64_t kMaxSplits = 16;
// Partial sums of a product whose sum over k is split, at most.
inline constexpr int64_t kMaxPartialSums = int64_t{1} << 19;
// Elements of c in a block that was made by halving a larger one.
inline constexpr int64_t kSmallestTile = 16384, kLargestTile = 262144;

// Blocks are halved until there are enough of them to keep many threads busy, but not so far that packing the operands
// would take most of the time. Where c is small the sum over k is split.
inline Block choose_blocks(int64_t m, int64_t n, int64_t k) {
  constexpr int64_t smallest_work = int64_t{1} << 22;  // operations
  Block block{m, n, k};
  for (int64_t blocks = 1;; blocks *= 2) {
    const int64_t tile = block.rows * block.cols;
    const bool enough = blocks >= 32 || 2 * tile * block.depth <= smallest_work;
    if (tile > kLargestTile || (!enough && tile >= 2 * kSmallestTile)) {
      int64_t& longer = block.rows >= block.cols ? block.rows : block.cols;
      longer = ceil_div(longer, 2);
    } else if (!enough && blocks < kMaxSplits && block.depth >= 512) {
      block.depth = ceil_div(block.depth, 2);
    } else {
      return block;
    }
  }
}

// The same for bfloat16 on a CPU with instructions for it, which is several times as fast. Blocks have all columns of c
// where these are not too many, and all rows where the sum is split: then the elements of a block lie side by side in
// memory, in a, b and c, and need no copy.
inline Block choose_bfloat16_blocks(int64_t m, int64_t n, int64_t k) {
  constexpr int64_t smallest_work = int64_t{1} << 23;  // operations
  constexpr int64_t smallest_rows = 128, most_cols = 1024, smallest_cols = 128, smallest_depth = 512;
  Block block{m, ceil_div(n, ceil_div(n, most_cols)), k};
  int64_t blocks = ceil_div(n, block.cols), splits = 1;
  const auto few = [&](int64_t wanted) {
    return blocks < wanted && block.rows * block.cols * block.depth >= smallest_work;
  };
  const int64_t most_splits = m * n <= kLargestTile / 2 ? std::min(kMaxSplits, kMaxPartialSums / (m * n)) : 1;
  for (; few(kMaxSplits) && block.depth >= 2 * smallest_depth && 2 * splits <= most_splits; splits *= 2) {
    block.depth = ceil_div(block.depth, 2);
    blocks *= 2;
  }
  const int64_t wanted = splits > 1 ? 4 : 16;
  for (; block.rows * block.cols > kLargestTile / 2 || (few(wanted) && block.rows >= 2 * smallest_rows); blocks *= 2) {
    block.rows = ceil_div(block.rows, 2);
  }
  for (; few(wanted) && block.cols >= 2 * smallest_cols; blocks *= 2) block.cols = ceil_div(block.cols, 2);
  return block;
}

}  // namespace heddle::kernels::cpu
