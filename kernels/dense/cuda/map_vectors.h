// Elementwise work on matrices (rows, cols) with row strides: outputs that are functions of the same elements of
// inputs.
//   map<In, Out, inputs, outputs>(context, {inputs...}, {outputs...}, op)
// The kernel map_vectors loads one or two vectors of each input, calls op(first, in, out) for each and stores (=) or
// adds
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

#include "core/runtime/host_device.h"
#include "kernels/common/cuda/divider.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/vec.h"

namespace heddle::kernels::cuda {

inline constexpr int kMapThreads = 256;
// Vectors of each input that a thread has in flight. With several inputs two take so many registers that fewer threads
// fit: 0.82 of the time with one.
HEDDLE_HOST_DEVICE constexpr int map_vectors_in_flight(int inputs) { return inputs == 1 ? 2 : 1; }

// A matrix in memory. Matrices without gaps between rows are passed as one long row, which saves a division.
struct Rows {
  void* data = nullptr;
  int64_t stride = 0;
};

// The shape of all matrices of a launch, in vectors of `width` elements, which are counted row by row.
class Grid {
 public:
  struct Place {
    int64_t row, element;  // of the row
  };

  Grid(int64_t rows, int64_t cols, int width)
      : vectors_(rows * cols / width), vectors_per_row_(cols / width), width_(width) {
    if (is_small()) by_row_ = Divider(vectors_per_row_);
  }

  HEDDLE_HOST_DEVICE int64_t vectors() const { return vectors_; }
  // Where a vector begins.
  __device__ __forceinline__ Place place(int64_t vector) const {
    if (vectors_ == vectors_per_row_) return {0, vector * width_};
    const int64_t row = is_small() ? by_row_.quotient(static_cast<uint32_t>(vector)) : vector / vectors_per_row_;
    return {row, (vector - row * vectors_per_row_) * width_};
  }
  template <class T>
  __device__ __forceinline__ T* at(const Rows& rows, const Place& place) const {
    return static_cast<T*>(rows.data) + place.row * rows.stride + place.element;
  }

 private:
  HEDDLE_HOST_DEVICE bool is_small() const { return vectors_ <= 0x7fffffff; }

  int64_t vectors_, vectors_per_row_;
  int width_;
  Divider by_row_;
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
  constexpr int kVectors = map_vectors_in_flight(inputs);
  const int64_t first = blockIdx.x * int64_t{kMapThreads * kVectors} + threadIdx.x;
  Vec<In, width> loaded[kVectors][inputs];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t vector = first + v * kMapThreads;
    if (vector >= grid.vectors()) break;
    const Grid::Place place = grid.place(vector);
#pragma unroll
    for (int i = 0; i < inputs; ++i) loaded[v][i] = load<width>(grid.at<const In>(from.rows[i], place));
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t vector = first + v * kMapThreads;
    if (vector >= grid.vectors()) break;
    Vec<accumulate_t<In>, width> in[inputs];
    Vec<accumulate_t<Out>, width> out[outputs];
#pragma unroll
    for (int i = 0; i < inputs; ++i) {
#pragma unroll
      for (int j = 0; j < width; ++j) in[i][j] = widen(loaded[v][i][j]);
    }
    op(vector * width, in, out);
    const Grid::Place place = grid.place(vector);
#pragma unroll
    for (int i = 0; i < outputs; ++i) {
      if (to.rows[i].data == nullptr) continue;
      store_or_add(grid.at<Out>(to.rows[i], place), out[i], to.add[i]);
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
    const Grid grid(rows, cols, width);
    const auto blocks = static_cast<unsigned>(ceil_div(grid.vectors(), kMapThreads * map_vectors_in_flight(inputs)));
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
