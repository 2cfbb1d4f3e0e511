// Elementwise operations on (rows, cols) with row strides.                              kernels/dense/elementwise.h
//   activation   y (=);    d_x (=|+=)
//   glu          y (=);    d_a, d_b (=|+=)
//   accumulate   to (=|+=)
// All run the kernel map_vectors, which loads a few vectors of each input, applies an operation and stores (=) or adds
// (+=) its outputs. Outputs may be the memory of inputs: a thread loads the elements that it overwrites first.
#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

#include "kernels/common/cuda/activation.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/vec.h"
#include "kernels/dense/elementwise.h"

namespace heddle::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kVectors = 2;  // vectors of each input that a thread has in flight

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

// Inputs have dtype In, outputs Out; op(in, out) works on vectors in their types of arithmetic. An output may be null.
template <class In, class Out, int width, int inputs, int outputs, class Op>
__global__ void __launch_bounds__(kThreads) map_vectors(Grid grid, Inputs<inputs> from, Outputs<outputs> to, Op op) {
  const int64_t first = blockIdx.x * int64_t{kThreads * kVectors} + threadIdx.x;
  Vec<In, width> loaded[kVectors][inputs];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t vector = first + v * kThreads;
    if (vector >= grid.vectors) break;
#pragma unroll
    for (int i = 0; i < inputs; ++i) loaded[v][i] = load<width>(grid.at<const In>(from.rows[i], vector));
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int64_t vector = first + v * kThreads;
    if (vector >= grid.vectors) break;
    Vec<accumulate_t<In>, width> in[inputs];
    Vec<accumulate_t<Out>, width> out[outputs];
#pragma unroll
    for (int i = 0; i < inputs; ++i) {
#pragma unroll
      for (int j = 0; j < width; ++j) in[i][j] = widen(loaded[v][i][j]);
    }
    op(in, out);
#pragma unroll
    for (int i = 0; i < outputs; ++i) {
      if (to.rows[i].data == nullptr) continue;
      store_or_add(grid.at<Out>(to.rows[i], vector), out[i], to.add[i]);
    }
  }
}

bool is_dense(const RowsView& view) { return !view || view.rows <= 1 || view.row_stride == view.cols; }

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
    const auto blocks = static_cast<unsigned>(ceil_div(grid.vectors, kThreads * kVectors));
    HEDDLE_LAUNCH(context, (map_vectors<In, Out, width, inputs, outputs, Op>), blocks, kThreads, 0, grid, input, output,
                  op);
  };
  if (vectorized) {
    run(std::integral_constant<int, widest>{});
  } else {
    run(std::integral_constant<int, 1>{});
  }
}

// in: x; out: y
template <class T>
struct ActivationForward {
  Activation act;
  template <class A, int width>
  __device__ __forceinline__ void operator()(const Vec<A, width> (&in)[1], Vec<A, width> (&out)[1]) const {
    visit_activation(act, [&](auto chosen) {
#pragma unroll
      for (int j = 0; j < width; ++j) out[0][j] = activate<decltype(chosen)::value, T>(in[0][j]);
    });
  }
};

// in: x, d_y; out: d_x
template <class T>
struct ActivationBackward {
  Activation act;
  template <class A, int width>
  __device__ __forceinline__ void operator()(const Vec<A, width> (&in)[2], Vec<A, width> (&out)[1]) const {
    visit_activation(act, [&](auto chosen) {
#pragma unroll
      for (int j = 0; j < width; ++j) {
        constexpr Activation kAct = decltype(chosen)::value;
        out[0][j] = chain_rule<kAct>(in[1][j], activate_with_derivative<kAct, T>(in[0][j]).derivative);
      }
    });
  }
};

// in: a, b; out: y
template <class T>
struct GluForward {
  Activation act;
  template <class A, int width>
  __device__ __forceinline__ void operator()(const Vec<A, width> (&in)[2], Vec<A, width> (&out)[1]) const {
    visit_activation(act, [&](auto chosen) {
#pragma unroll
      for (int j = 0; j < width; ++j) out[0][j] = activate<decltype(chosen)::value, T>(in[0][j]) * in[1][j];
    });
  }
};

// in: a, b, d_y; out: d_a, d_b
template <class T>
struct GluBackward {
  Activation act;
  template <class A, int width>
  __device__ __forceinline__ void operator()(const Vec<A, width> (&in)[3], Vec<A, width> (&out)[2]) const {
    visit_activation(act, [&](auto chosen) {
#pragma unroll
      for (int j = 0; j < width; ++j) {
        constexpr Activation kAct = decltype(chosen)::value;
        const auto gate = activate_with_derivative<kAct, T>(in[0][j]);
        out[0][j] = chain_rule<kAct>(in[2][j] * in[1][j], gate.derivative);
        out[1][j] = in[2][j] * gate.value;
      }
    });
  }
};

// out = scale * in; the product is computed in the wider of the two types.
struct Scale {
  double scale;
  template <class A, class B, int width>
  __device__ __forceinline__ void operator()(const Vec<A, width> (&in)[1], Vec<B, width> (&out)[1]) const {
    using Wide = std::conditional_t<(sizeof(A) > sizeof(B)), A, B>;
#pragma unroll
    for (int j = 0; j < width; ++j) {
      out[0][j] = static_cast<B>(static_cast<Wide>(scale) * static_cast<Wide>(in[0][j]));
    }
  }
};

RowsDestination written(const RowsView& view) { return {view, GradientMode::overwrite}; }

}  // namespace

void activation_forward(Context& context, const ActivationForwardArgs& args) {
  visit_floating(args.x.dtype, [&](auto type) {
    using T = decltype(type);
    map<T, T, 1, 1>(context, {args.x}, {written(args.y)}, ActivationForward<T>{args.act});
  });
}

void activation_backward(Context& context, const ActivationBackwardArgs& args) {
  visit_floating(args.x.dtype, [&](auto type) {
    using T = decltype(type);
    map<T, T, 2, 1>(context, {args.x, args.d_y}, {args.d_x}, ActivationBackward<T>{args.act});
  });
}

void glu_forward(Context& context, const GluForwardArgs& args) {
  visit_floating(args.a.dtype, [&](auto type) {
    using T = decltype(type);
    map<T, T, 2, 1>(context, {args.a, args.b}, {written(args.y)}, GluForward<T>{args.act});
  });
}

void glu_backward(Context& context, const GluBackwardArgs& args) {
  visit_floating(args.a.dtype, [&](auto type) {
    using T = decltype(type);
    map<T, T, 3, 2>(context, {args.a, args.b, args.d_y}, {args.d_a, args.d_b}, GluBackward<T>{args.act});
  });
}

void accumulate(Context& context, const AccumulateArgs& args) {
  visit_floating(args.from.dtype, [&](auto from) {
    visit_floating(args.to.view.dtype, [&](auto to) {
      map<decltype(from), decltype(to), 1, 1>(context, {args.from}, {args.to}, Scale{args.scale});
    });
  });
}

}  // namespace heddle::kernels::cuda
