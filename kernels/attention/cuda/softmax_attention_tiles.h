// What the tensor core kernels of softmax attention share. A warp owns 16 rows, queries or keys, and goes over blocks
// of columns, the tokens that its rows may meet; weights (16, columns) of such a block, probabilities or gradients of
// scores, multiply the block's rows of features. Of each row the columns that it meets are one range, and neither end
// of it moves back from one row to the next. A weight of a pair that does not meet is 0, and there an infinity or NaN
// of the features counts for nothing: the other numbers are, bit for bit, what they are without it.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>
#include <type_traits>

#include "kernels/attention/cuda/softmax_attention_visibility.h"
#include "kernels/common/cuda/activation.h"
#include "kernels/common/cuda/async.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/pieces.h"
#include "kernels/common/cuda/reduce.h"

namespace heddle::kernels::cuda::softmax {

// The ranges of the rows of a block, in shared memory.
template <int ROWS>
struct RowRanges {
  int begin[ROWS], end[ROWS];

  __device__ __forceinline__ Range of(int row) const { return {begin[row], end[row]}; }
  // From the first column that a row of the block meets to the last.
  __device__ __forceinline__ Range all() const { return {begin[0], end[ROWS - 1]}; }
  // Whether no row of the warp's 16 from `row` on meets the columns from `column` on; whether each meets all of them.
  __device__ __forceinline__ bool are_outside(int row, int column, int columns) const {
    return end[row + 15] <= column || begin[row] >= column + columns;
  }
  __device__ __forceinline__ bool are_whole(int row, int column, int columns) const {
    return begin[row + 15] <= column && end[row] >= column + columns;
  }
};

// Copies the rows [first, first + ROWS) of a head, or starts to: the caller commits and waits. What lies at or after
// `end`, or after the last feature, is 0. `wide`: rows can be read 16 bytes at a time.
template <class T, int THREADS, class E, int PLANES, int ROWS, int COLS>
__device__ __forceinline__ void load_rows(PlaneMatrix<E, PLANES, ROWS, COLS>& to, const HeadsView& view, int64_t batch,
                                          int64_t head_index, int first, int end, bool wide) {
  constexpr int kWidth = vector_width<T>, kVectors = COLS / kWidth, kStep = THREADS / kVectors;
  static_assert(THREADS % kVectors == 0 && ROWS % kStep == 0);
  const int begin = threadIdx.x / kVectors, col = threadIdx.x % kVectors * kWidth;
  const int features = static_cast<int>(view.dim) - col;
  const int rows = features > 0 ? end - first : 0;  // rows from here on are 0
  const T* source = head<const T>(view, batch, int64_t{first} + begin, head_index) + col;
  const int64_t stride = view.length_stride * kStep;
  const auto put = [&](int row, const Vec<T, kWidth>& values) {
    if constexpr (sizeof(T) == 2) {
      store(to.row(row) + col, values);
    } else {
      to.template put_pair<T>(row, col, values[0], values[1]);
      to.template put_pair<T>(row, col + 2, values[2], values[3]);
    }
  };
  if (wide) {
#pragma unroll 4
    for (int row = begin; row < ROWS; row += kStep, source += stride) {
      if constexpr (sizeof(T) == 2) {
        copy_async_if(row < rows, shared_address(to.row(row) + col), source);
      } else {
        put(row, load_if<kWidth>(row < rows, source, 0.0f));
      }
    }
  } else {
#pragma unroll 1
    for (int row = begin; row < ROWS; row += kStep, source += stride) {
      Vec<T, kWidth> values;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) values[i] = row < rows && i < features ? source[i] : narrow<T>(0.0f);
      put(row, values);
    }
  }
}

// Calls fetch(step, stage) for each of `steps` steps, ahead of compute(step, stage), which follows once what was
// fetched has arrived for all threads.
template <int STAGES, class Fetch, class Compute>
__device__ __forceinline__ void pipeline(int steps, const Fetch& fetch, const Compute& compute) {
  if (STAGES == 2 && steps > 0) fetch(0, 0);
  __pipeline_commit();
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    const int stage = STAGES == 2 ? step % 2 : 0;
    if constexpr (STAGES == 2) {
      __pipeline_wait_prior(0);
      __syncthreads();  // this step has arrived, and no warp reads the other stage any more
      if (step + 1 < steps) fetch(step + 1, stage ^ 1);
      __pipeline_commit();
    } else {
      __syncthreads();
      fetch(step, stage);
      __pipeline_commit();
      __pipeline_wait_prior(0);
      __syncthreads();
    }
    compute(step, stage);
  }
  __pipeline_wait_prior(0);
}

// Whether all numbers of neighbouring tiles are finite.
template <int TILES>
__device__ __forceinline__ bool are_finite(const FragmentC (&c)[TILES]) {
  float zero = 0.0f;
#pragma unroll
  for (int e = 0; e < TILES * 4; ++e) zero = fmaf(c[e / 4].values[e % 4], 0.0f, zero);
  return zero == 0.0f;
}

// Computes in float again what is not finite in c (16, 8 TILES) = a b^T, for rows of a from `row` on.
template <int TILES, class A, class B>
__device__ __noinline__ void multiply_again(FragmentC* c, const A& a, int row, const B& b, int dim) {
  const int lane = threadIdx.x % 32;
  for (int n = 0; n < TILES; ++n) {
    for (int e = 0; e < 4; ++e) {
      if (fabsf(c[n].values[e]) < infinity<float>()) continue;
      float sum = 0.0f;
      for (int i = 0; i < dim; ++i) {
        sum = fmaf(a.value(row + lane / 4 + e / 2 * 8, i), b.value(n * 8 + lane % 4 * 2 + e % 2, i), sum);
      }
      c[n].values[e] = sum;
    }
  }
}

// c (=) a b^T for the warp's rows of a from `row` on and all rows of b. Numbers of T are multiplied exactly and summed
// in float. Products of pieces turn an infinity into NaN, so there what is not finite is computed again.
template <class T, bool SWAPPED, int TILES, class E, int PLANES, int ROWS_A, int ROWS_B, int DIM>
__device__ __forceinline__ void multiply_rows(FragmentC (&c)[TILES], const PlaneMatrix<E, PLANES, ROWS_A, DIM>& a,
                                              int row, const PlaneMatrix<E, PLANES, ROWS_B, DIM>& b) {
  static_assert(TILES * 8 == ROWS_B);
#pragma unroll
  for (int n = 0; n < TILES; ++n) c[n] = FragmentC{};
#pragma unroll
  for (int d = 0; d < DIM; d += 16) {
    const PiecesA<PLANES> rows = load_a(a, row, d);
#pragma unroll
    for (int n = 0; n < TILES; n += 2) {
      const PiecesB<PLANES> columns = load_b_transposed(b, n * 8, d);
      if constexpr (PLANES == 1) {
        mma<T>(c[n], rows.parts[0], columns.parts[0].parts[0]);
        mma<T>(c[n + 1], rows.parts[0], columns.parts[0].parts[1]);
      } else {
        FragmentC sum[2];
        multiply_pair<SWAPPED>(sum, rows, columns);
#pragma unroll
        for (int e = 0; e < 8; ++e) c[n + e / 4].values[e % 4] += sum[e / 4].values[e % 4];
      }
    }
  }
  if constexpr (PLANES > 1) {
    if (are_finite(c)) return;
    FragmentC copy[TILES];  // only the copy leaves the registers
#pragma unroll
    for (int n = 0; n < TILES; ++n) copy[n] = c[n];
    multiply_again<TILES>(copy, a, row, b, DIM);
#pragma unroll
    for (int n = 0; n < TILES; ++n) c[n] = copy[n];
  }
}

// Adds to out what drop_not_finite() left out, for the pairs that meet. Column 0 of the weights is token `column`.
template <int TILES, int DEPTHS, int P, class Matrix>
__device__ __noinline__ void add_left_out(FragmentC* out, const PiecesA<P>* weights, const Matrix& b, int column,
                                          Range upper, Range lower) {
  const int lane = threadIdx.x % 32, t2 = lane % 4 * 2;
  for (int depth = 0; depth < DEPTHS * 16; ++depth) {
    for (int half = 0; half < 2; ++half) {
      float weight = 0.0f;
      for (int p = 0; p < P; ++p) {
        const unsigned own = weights[depth / 16].parts[p].words[depth % 16 / 8 * 2 + half];
        const float2 pair = unpack<bf16>(__shfl_sync(0xffffffffu, own, lane / 4 * 4 + depth % 8 / 2));
        weight += depth % 2 == 0 ? pair.x : pair.y;
      }
      if (!(half == 0 ? upper : lower).contains(column + depth)) continue;
      for (int n = 0; n < TILES; ++n) {
        for (int e = 0; e < 2; ++e) {
          const float value = b.value(depth, n * 8 + t2 + e);
          if (!(fabsf(value) < infinity<float>())) out[n].values[half * 2 + e] += weight * value;
        }
      }
    }
  }
}

// out += weights b. Tensor cores cut what they add to a sum instead of rounding it, so each block of columns is summed
// there and added here. A number of b that is not finite would reach all rows, and its products with pieces are NaN; so
// it is left out there, and added here for the rows that meet it. Column 0 of the weights is token `column`.
template <class T, int TILES, int DEPTHS, int P, class E, int PLANES, int ROWS>
__device__ __forceinline__ void add_product(FragmentC (&out)[TILES], const PiecesA<P> (&weights)[DEPTHS],
                                            const PlaneMatrix<E, PLANES, ROWS, TILES * 8>& b, int column,
                                            const Range (&ranges)[2]) {
  static_assert(DEPTHS * 16 == ROWS);
  bool found = false;
#pragma unroll
  for (int n = 0; n < TILES; n += 2) {
    FragmentC sum[2];
#pragma unroll
    for (int d = 0; d < DEPTHS; ++d) multiply_pair(sum, weights[d], pieces<T>(load_b(b, d * 16, n * 8)));
    if (__any_sync(0xffffffffu, !are_finite(sum))) {
      sum[0] = sum[1] = FragmentC{};
#pragma unroll
      for (int d = 0; d < DEPTHS; ++d) {
        PiecesB<PLANES> features = load_b(b, d * 16, n * 8);
        found = drop_not_finite<E>(features) || found;
        multiply_pair(sum, weights[d], pieces<T>(features));
      }
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) out[n + e / 4].values[e % 4] += sum[e / 4].values[e % 4];
  }
  if (!__any_sync(0xffffffffu, found)) return;
  FragmentC out_copy[TILES];  // only copies leave the registers
  PiecesA<P> weights_copy[DEPTHS];
#pragma unroll
  for (int n = 0; n < TILES; ++n) out_copy[n] = out[n];
#pragma unroll
  for (int d = 0; d < DEPTHS; ++d) weights_copy[d] = weights[d];
  add_left_out<TILES, DEPTHS>(out_copy, weights_copy, b, column, ranges[0], ranges[1]);
#pragma unroll
  for (int n = 0; n < TILES; ++n) out[n] = out_copy[n];
}
template <class T, int TILES, int COLUMN_TILES, class Matrix>
__device__ __forceinline__ void add_product(FragmentC (&out)[TILES], const FragmentC (&weights)[COLUMN_TILES],
                                            const Matrix& b, int column, const Range (&ranges)[2]) {
  PiecesA<kComputedPieces<T>> a[COLUMN_TILES / 2];
#pragma unroll
  for (int d = 0; d < COLUMN_TILES / 2; ++d) a[d] = pieces_of<kComputedPieces<T>>(weights[2 * d], weights[2 * d + 1]);
  add_product<T>(out, a, b, column, ranges);
}

// Calls visit(value, half, column) for the thread's numbers of (16, 8 TILES): its row is lane / 4 + 8 half.
template <int TILES, class Visit>
__device__ __forceinline__ void for_each_value(FragmentC (&c)[TILES], const Visit& visit) {
  const int t2 = threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < TILES; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) visit(c[n].values[e], e / 2, n * 8 + t2 + e % 2);
  }
}

// Calls visit(a value, b value, half, column).
template <int TILES, class Visit>
__device__ __forceinline__ void for_each_pair(FragmentC (&a)[TILES], FragmentC (&b)[TILES], const Visit& visit) {
  const int t2 = threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < TILES; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) visit(a[n].values[e], b[n].values[e], e / 2, n * 8 + t2 + e % 2);
  }
}

// Writes (=) or adds (+=) the warp's rows from `first` on, those before view.length. `pairs`: numbers can be accessed
// two at a time.
template <class T, int TILES>
__device__ __forceinline__ void store_rows(const HeadsDestination& to, int64_t batch, int64_t head_index, int first,
                                           const FragmentC (&values)[TILES], bool pairs) {
  const int lane = threadIdx.x % 32, dim = static_cast<int>(to.view.dim);
  const bool add = to.mode == GradientMode::accumulate;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = int64_t{first} + lane / 4 + half * 8;
    if (row >= to.view.length) continue;
    T* start = head<T>(to.view, batch, row, head_index);
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
      const int col = n * 8 + lane % 4 * 2;
      const float* pair = values[n].values + half * 2;
      if (pairs && col < dim) {
        store_or_add(start + col, Vec<float, 2>{{pair[0], pair[1]}}, add);
      } else {
        if (col < dim) store_or_add(start + col, Vec<float, 1>{{pair[0]}}, add);
        if (col + 1 < dim) store_or_add(start + col + 1, Vec<float, 1>{{pair[1]}}, add);
      }
    }
  }
}

// Calls launch(std::integral_constant<int, DIM>) with the number of features that a kernel for these has, and returns
// true; false where there is none.
template <class Launch>
bool with_dim(int64_t dim, const Launch& launch) {
  if (dim <= 32) return launch(std::integral_constant<int, 32>{});
  if (dim <= 64) return launch(std::integral_constant<int, 64>{});
  if (dim <= 128) return launch(std::integral_constant<int, 128>{});
  if (dim <= 256) return launch(std::integral_constant<int, 256>{});
  return false;
}

}  // namespace heddle::kernels::cuda::softmax
