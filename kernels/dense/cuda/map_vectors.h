// Elementwise work on matrices (rows, cols) with row strides: outputs that are functions of the same elements of
// inputs.
//   map<In, Out, inputs, outputs>(context, {inputs...}, {outputs...}, op)
// The kernel map_vectors loads a few vectors of each input, calls op(first, in, out) for each and stores (=) or adds
// (+=) the outputs:
//   int64_t first                       the number of the vectors' first element, counted row by row
//   const Vec<A, width> (&in)[inputs]   a vector of each input, of dtype In, in its type of arithmetic
//   Vec<B, width> (&out)[outputs]       a vector of each output, of dtype Out, for op to write
// An empty output is not written. Outputs may be the memory of inputs: a thread loads the elements that it overwrites
// first.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/vec.h"

namespace heddle::kernels::cuda {

inline constexpr int kMapThreads = 256;
inline constexpr int kMapVectors = 2;  // vectors of each input that a thread has in flight

// A matrix in memory. Matrices without gaps between rows are passed as one long row, which saves a division.
struct Rows {
  void* data = nullptr;
  int64_t stride = 0;
};

// The shape of all matrices of a launch, in vectors of `width` elements. at() is the address of vector `vector`,
// counted row by row.
struct Grid {
  int64_t vectors;  // of all rows
  int64_t vectors_per_row;
  int width;

  template <class T>
  __device__ __forceinline__ T* at(const Rows& rows, int64_t vector) const {
    if (vectors == vectors_per_row) return static_cast<T*>(rows.data) + vector * width;
    const int64_t row = vectors <= 0x7fffffff ? static_cast<unsigned>(vector) / static_cast<unsigned>(vectors_per_row)
                                              : vector / vectors_per_row;
    return static_cast<T*>(rows.data) + row * rows.stride + (vector - row * vectors_per_row) * width;
  }
};

template <int count>
struct Outputs {
  Rows rows[count];
  bool add[count];
};

template <int count>
struct Inputs {
  Rows rows[count];
};

// Inputs have dtype In, outputs Out. An output may be null.
template <class In, class Out, int width, int inputs, int outputs, class Op>
__global__ void __launch_bounds__(kMapThreads) map_vectors(Grid grid, Inputs<inputs> from, Outputs<outputs> to, Op op) {
  const int64_t first = blockIdx.x * int64_t{kMapThreads * kMapVectors} + threadIdx.x;
  Vec<In, width> loaded[kMapVectors][inputs];
#pragma unroll
  for (int v = 0; v < kMapVectors; ++v) {
    const int64_t vector = first + v * kMapThreads;
    if (vector >= grid.vectors) break;
#pragma unroll
    for (int i = 0; i < inputs; ++i) loaded[v][i] = load<width>(grid.at<const In>(from.rows[i], vector));
  }
#pragma unroll
  for (int v = 0; v < kMapVectors; ++v) {
    const int64_t vector = first + v * kMapThreads;
    if (vector >= grid.vectors) break;
    Vec<accumulate_t<In>, width> in[inputs];
    Vec<accumulate_t<Out>, width> out[outputs];
#pragma unroll
    for (int i = 0; i < inputs; ++i) {
#pragma unroll
      for (int j = 0; j < width; ++j) in[i][j] = widen(loaded[v][i][j]);
    }
    op(vector * width, in, out);
#pragma unroll
    for (int i = 0; i < outputs; ++i) {
      if (to.rows[i].data == nullptr) continue;
      store_or_add(grid.at<Out>(to.rows[i], vector), out[i], to.add[i]);
    }
  }
}

inline bool is_dense(const RowsView& view) { return !view || view.rows <= 1 || view.row_stride == view.cols; }

template <class In, class Out, int inputs, int outputs, class Op>
void map(Context& context, std::array<RowsView, inputs> from, std::array<RowsDestination, outputs> to, Op op) {
  const RowsView shape = from[0];
  if (shape.rows == 0 || shape.cols == 0) return;
  bool dense = true;
  for (const RowsView& view : from) dense = dense && is_dense(view);
  for (const RowsDestination& output : to) dense = dense && is_dense(output.view);
  const int64_t rows = dense ? 1 : shape.rows;
  const int64_t cols = dense ? shape.rows * shape.cols : shape.cols;

  // Vectors hold 16 bytes of the narrower type, but at most 32 bytes of the wider.
  constexpr int widest =
      std::min(std::max(vector_width<In>, vector_width<Out>), 2 * std::min(vector_width<In>, vector_width<Out>));
  bool vectorized = true;
  Inputs<inputs> input;
  Outputs<outputs> output;
  const auto take = [&](const RowsView& view) {
    vectorized = vectorized && can_vectorize(view.data, view.dtype, cols, dense ? cols : view.row_stride, widest);
    return Rows{view.data, view.row_stride};
  };
  for (int i = 0; i < inputs; ++i) input.rows[i] = take(from[i]);
  for (int i = 0; i < outputs; ++i) {
    output.rows[i] = take(to[i].view);
    output.add[i] = to[i].mode == GradientMode::accumulate;
  }
  const auto run = [&](auto chosen) {
    constexpr int width = decltype(chosen)::value;
    const Grid grid = {rows * cols / width, cols / width, width};
    const auto blocks = static_cast<unsigned>(ceil_div(grid.vectors, kMapThreads * kMapVectors));
    HEDDLE_LAUNCH(context, (map_vectors<In, Out, width, inputs, outputs, Op>), blocks, kMapThreads, 0, grid, input,
                  output, op);
  };
  if (vectorized) {
    run(std::integral_constant<int, widest>{});
  } else {
    run(std::integral_constant<int, 1>{});
  }
}

inline RowsDestination written(const RowsView& view) { return {view, GradientMode::overwrite}; }

}  // namespace heddle::kernels::cuda
