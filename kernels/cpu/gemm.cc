// Matrix products by Eigen, one tile of the output a piece of work. docs/performance.md#cpu-matrix-products
#include "kernels/gemm.h"

#include <array>

#include "kernels/cpu/detail/convert.h"
#include "kernels/cpu/detail/gemm_tile.h"
#include "kernels/cpu/detail/parallel.h"
#include "kernels/cpu/detail/types.h"

namespace heddle::kernels::cpu {
namespace {

struct TileSize {
  int64_t rows, cols;
};

constexpr int64_t half_of(int64_t size) { return (size + 1) / 2; }

// Tiles of c (m, n) made from the sizes alone: halved until one is about 16 million operations, so that many threads
// stay busy, but not to tiles so small that most of the time would go into packing.
TileSize choose_tiles(int64_t m, int64_t n, int64_t k) {
  constexpr int64_t operations_per_tile = int64_t{1} << 24;
  TileSize tile{m, n};
  int64_t tiles = 1;
  while (tiles < 64 && 2 * tile.rows * tile.cols * k > operations_per_tile) {
    const int64_t area = tile.rows * tile.cols;
    if (area < 4096 || (area < 8192 && tiles >= 8)) break;
    (tile.rows >= tile.cols ? tile.rows : tile.cols) = half_of(std::max(tile.rows, tile.cols));
    tiles *= 2;
  }
  return tile;
}

// Calls tile(row, col, rows, cols) for each tile of (m, n).
template <class Tile>
void for_tiles(const Context& context, int64_t m, int64_t n, TileSize size, const Tile& tile) {
  const int64_t down = (m + size.rows - 1) / size.rows;
  const int64_t across = (n + size.cols - 1) / size.cols;
  parallel_pieces(context, down * across, [&](int64_t index) {
    const int64_t row = index / across * size.rows;
    const int64_t col = index % across * size.cols;
    tile(row, col, std::min(size.rows, m - row), std::min(size.cols, n - col));
  });
}

// What a row of c holds before the product is added: c itself when adding, then the bias.
template <class T>
void start_row(T* c, const T* bias, int64_t cols, Accumulate mode) {
  if (mode == Accumulate::overwrite) {
    if (bias != nullptr) {
      std::copy_n(bias, cols, c);
    } else {
      std::fill_n(c, cols, T{0});
    }
  } else if (bias != nullptr) {
    for (int64_t col = 0; col < cols; ++col) c[col] += bias[col];
  }
}

template <class T>
GemmOperand<T> operand(const RowsView& view, Transpose transpose) {
  return {static_cast<const T*>(view.data), view.row_stride, transpose};
}

int64_t inner_size(const GemmArgs& args) { return args.transpose_a == Transpose::no ? args.a.cols : args.a.rows; }

// float and double: Eigen reads a and b and writes c where they are.
template <class T>
void gemm_in_place(const Context& context, const GemmArgs& args) {
  const RowsView& c = args.c.view;
  const int64_t k = inner_size(args);
  const auto a = operand<T>(args.a, args.transpose_a);
  const auto b = operand<T>(args.b, args.transpose_b);
  const T* bias = vector<const T>(args.bias);
  for_tiles(context, c.rows, c.cols, choose_tiles(c.rows, c.cols, k),
            [&](int64_t row, int64_t col, int64_t rows, int64_t cols) {
              T* tile = cpu::row<T>(c, row) + col;
              for (int64_t i = 0; i < rows; ++i) {
                start_row(tile + i * c.row_stride, bias != nullptr ? bias + col : nullptr, cols, args.c.mode);
              }
              if (k > 0) add_product(rows, cols, k, a.at(row, 0), b.at(0, col), tile, c.row_stride);
            });
}

// 16-bit types: panels are converted to float, tiles are summed in float and rounded once.
constexpr TileSize kConvertedTile{64, 128};  // at most
constexpr int64_t kConvertedDepth = 256;

struct ConversionScratch {
  std::array<float, kConvertedTile.rows * kConvertedDepth> a;
  std::array<float, kConvertedDepth * kConvertedTile.cols> b;
  std::array<float, kConvertedTile.rows * kConvertedTile.cols> c;
};

// The (rows, cols) part of op(x) as float, in x's own order of memory.
template <class T>
GemmOperand<float> convert_panel(const GemmOperand<T>& x, int64_t rows, int64_t cols, float* to) {
  if (x.transpose == Transpose::yes) std::swap(rows, cols);
  for (int64_t i = 0; i < rows; ++i) to_float(x.data + i * x.stride, to + i * cols, cols);
  return {to, cols, x.transpose};
}

template <class T, class C>
void gemm_converted(const Context& context, const GemmArgs& args) {
  const RowsView& c = args.c.view;
  const int64_t k = inner_size(args);
  const auto a = operand<T>(args.a, args.transpose_a);
  const auto b = operand<T>(args.b, args.transpose_b);
  const T* bias = vector<const T>(args.bias);
  const TileSize size = choose_tiles(c.rows, c.cols, k);
  const TileSize tile{std::min(size.rows, kConvertedTile.rows), std::min(size.cols, kConvertedTile.cols)};
  for_tiles(context, c.rows, c.cols, tile, [&](int64_t row, int64_t col, int64_t rows, int64_t cols) {
    static thread_local ConversionScratch scratch;
    float* sums = scratch.c.data();
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j)
        sums[i * cols + j] = bias != nullptr ? static_cast<float>(bias[col + j]) : 0.0f;
    }
    for (int64_t begin = 0; begin < k; begin += kConvertedDepth) {
      const int64_t depth = std::min(kConvertedDepth, k - begin);
      const auto left = convert_panel(a.at(row, begin), rows, depth, scratch.a.data());
      const auto right = convert_panel(b.at(begin, col), depth, cols, scratch.b.data());
      add_product(rows, cols, depth, left, right, sums, cols);
    }
    for (int64_t i = 0; i < rows; ++i) {
      store_chunk(cpu::row<C>(c, row + i) + col, sums + i * cols, cols, args.c.mode);
    }
  });
}

// Columns are summed in blocks of rows, which keeps the rounding error small in long sums.
template <class T, class S>
void column_sum_as(const Context& context, const ColumnSumArgs& args) {
  using A = accumulate_t<T>;
  constexpr int64_t block_cols = 64, block_rows = 64;
  S* sums = vector<S>(args.sums.view);
  parallel_ranges(context, args.x.cols, block_cols, [&](int64_t begin, int64_t end) {
    const int64_t cols = end - begin;
    std::array<A, block_cols> total{}, buffer;
    for (int64_t first = 0; first < args.x.rows; first += block_rows) {
      std::array<A, block_cols> part{};
      const int64_t last = std::min(args.x.rows, first + block_rows);
      for (int64_t i = first; i < last; ++i) {
        const A* x = load_chunk(row<const T>(args.x, i) + begin, cols, buffer.data());
        for (int64_t j = 0; j < cols; ++j) part[j] += x[j];
      }
      for (int64_t j = 0; j < cols; ++j) total[j] += part[j];
    }
    store_chunk(sums + begin, total.data(), cols, args.sums.mode);
  });
}

}  // namespace

void gemm(Context& context, const GemmArgs& args) {
  if (args.c.view.rows == 0 || args.c.view.cols == 0) return;
  visit_floating(args.a.dtype, [&]<class T>(T) {
    if constexpr (sizeof(T) > 2) {
      gemm_in_place<T>(context, args);
    } else if (args.c.view.dtype == args.a.dtype) {
      gemm_converted<T, T>(context, args);
    } else {
      gemm_converted<T, float>(context, args);
    }
  });
}

void column_sum(Context& context, const ColumnSumArgs& args) {
  visit_floating(args.x.dtype, [&]<class T>(T) {
    if (args.sums.view.dtype == args.x.dtype) {
      column_sum_as<T, T>(context, args);
    } else {
      column_sum_as<T, accumulate_t<T>>(context, args);
    }
  });
}

}  // namespace heddle::kernels::cpu
