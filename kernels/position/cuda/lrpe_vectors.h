// The kernels of the position encodings for whole vectors.                                         docs/layers.md#lrpe
// Bytes: x (and d_y) read once, y (d_x) written once. A thread owns WIDTH units of one position and goes over the batch
// (the heads instead, where they share theta), so that sines and cosines are computed once for many rows: LrpeWork.
#pragma once

#include "kernels/common/cuda/async.h"
#include "kernels/position/cuda/lrpe.h"

namespace heddle::kernels::cuda {

enum class Act { none, elementwise, softmax, sequence };  // softmax: over features; sequence: over the sequence

// What a softmax over the sequence needs of a feature: a = exp(x - maximum) / sum. 16-bit types take one step,
// 2^(x log2 e - less).
template <class T>
struct SequenceScale {
  float most, factor;
  SequenceScale() = default;
  __device__ __forceinline__ SequenceScale(float maximum, float sum) : most(maximum), factor(1.0f / sum) {}
  __device__ __forceinline__ float operator()(float x) const { return exponential<T>(x - most) * factor; }
};
template <class T>
requires(sizeof(T) == 2) struct SequenceScale<T> {
  float less;
  SequenceScale() = default;
  __device__ __forceinline__ SequenceScale(float maximum, float sum)
      : less(rounded_product(maximum, kLog2E) + log2f(sum)) {}
  __device__ __forceinline__ float operator()(float x) const { return fast_exp2(rounded_product(x, kLog2E) - less); }
};

// Those of the features of a thread, from the row of a table that belongs to its batch and head.
template <class Encoding>
__device__ __forceinline__ void load_scales(const SequenceScale<typename Encoding::T>* row, int k, int dim,
                                            SequenceScale<typename Encoding::T> (&scales)[Encoding::kValues]) {
#pragma unroll
  for (int v = 0; v < Encoding::kInputs; ++v) {
    const auto* from = row + Encoding::input_at(v, k, dim);
    const auto* words = reinterpret_cast<const uint4*>(from);
    constexpr int kPerWord = 16 / static_cast<int>(sizeof(scales[0]));
#pragma unroll
    for (int i = 0; i < Encoding::WIDTH; i += kPerWord) {
      *reinterpret_cast<uint4*>(&scales[v * Encoding::WIDTH + i]) = words[i / kPerWord];
    }
  }
}

// act(x) in place, over the row that `lanes` neighbouring threads hold together.
template <class T, Act ACT, Activation act, class A, int COUNT>
__device__ __forceinline__ void activate_row(A (&x)[COUNT], int lanes) {
  if constexpr (ACT == Act::elementwise) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) x[i] = activate<act, T>(x[i]);
  }
  if constexpr (ACT == Act::softmax) {
    A most = x[0];
#pragma unroll
    for (int i = 1; i < COUNT; ++i) most = Max{}(most, x[i]);
    const ExponentialBelow<T> exponential(lanes_reduce(most, lanes, Max{}, most));
    A sum = A(0);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) sum += x[i] = exponential(x[i]);
    const A factor = reciprocal<T>(lanes_reduce(sum, lanes, Sum{}, 0.0f));
#pragma unroll
    for (int i = 0; i < COUNT; ++i) x[i] *= factor;
  }
}

// From the gradient of a (in place) to that of x.
template <class T, Act ACT, Activation act, class A, int COUNT>
__device__ __forceinline__ void activate_row_backward(A (&gradient)[COUNT], A (&x)[COUNT], int lanes) {
  if constexpr (ACT == Act::elementwise) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) gradient[i] *= activate_with_derivative<act, T>(x[i]).derivative;
  }
  if constexpr (ACT == Act::softmax) {
    activate_row<T, Act::softmax, act>(x, lanes);
    A dot = A(0);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) dot += x[i] * gradient[i];
    dot = lanes_reduce(dot, lanes, Sum{}, 0.0f);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) gradient[i] = x[i] * (gradient[i] - dot);
  }
}

// How the kernels of an encoding and an activation run, as measured on an H200: the replicas that a thread has at once,
// those of a part at least, the blocks that a multiprocessor holds where sines are shared. See LrpeWork.
template <class Encoding, Act ACT>
struct LrpeShape {
  static constexpr bool kIsRotation = Encoding::kInputs == 2;
  static constexpr bool kHasExponentials = ACT == Act::elementwise || ACT == Act::softmax;

  static constexpr int kForward = kIsRotation ? 2 : 4;
  static constexpr int kForwardPart = 4;
  static constexpr int kForwardBlocks = kIsRotation && kHasExponentials ? 9 : LrpeWork::kNotShared;

  // Backward copies that many replicas ahead while it works on as many. One where there is much to do: more blocks fit.
  static constexpr int kBackward = kHasExponentials ? 1 : kIsRotation ? 4 : 2;
  static constexpr int kBackwardPart = std::max(2, kBackward);
  static constexpr int kBackwardBlocks =
      kIsRotation ? (kHasExponentials ? 10 : LrpeWork::kNotShared) : (kHasExponentials ? 12 : 14);
};

template <class Encoding, Act ACT>
__global__ void __launch_bounds__(LrpeWork::kThreads)
    lrpe_forward(const __grid_constant__ typename Encoding::ForwardArgs args, const __grid_constant__ LrpeWork work,
                 const __grid_constant__ HeadsView table) {
  using T = typename Encoding::T;
  using A = typename Encoding::A;
  constexpr int kUnroll = LrpeShape<Encoding, ACT>::kForward;
  const LrpeItem item(work, Encoding::WIDTH);
  const typename Encoding::Thetas thetas(args.theta, item.theta_head, item.k);
  const int dim = static_cast<int>(args.x.dim);
  const ReplicaRows<const T> x_rows(args.x, work, item, Encoding::input_at(0, item.k, dim));
  const ReplicaRows<T> y_rows(args.y, work, item, Encoding::output_at(0, item.k, dim));
  const ReplicaRows<const SequenceScale<T>> scale_rows(table, work, item, Encoding::input_at(0, item.k, dim));
  InputVectors<Encoding> loaded[kUnroll];
  const auto fetch = [&](int base) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      loaded[u] = load_input<Encoding>(x_rows(min(base + u, item.last - 1)), 0, dim);
    }
  };
  if constexpr (ACT != Act::sequence) fetch(item.first);  // under way while the angles are worked out
  SinCos<A> angle[Encoding::WIDTH];
  typename Encoding::Angles(thetas).at(args.options, item.position, angle);
  if constexpr (ACT == Act::sequence) {  // x is in L2 in part, and comes soon
    fetch(item.first);
    grid_dependency_wait();  // it makes the table
  }
  with_activation<ACT == Act::elementwise>(args.options.act, [&](auto act) {
    for (int base = item.first; base < item.last; base += kUnroll) {
      if (base > item.first) fetch(base);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        A a[Encoding::kValues], y[2 * Encoding::WIDTH];
        loaded[u].widen_to(a);
        activate_row<T, ACT, decltype(act)::value>(a, work.vectors.divisor);
        if constexpr (ACT == Act::sequence) {
          alignas(16) SequenceScale<T> scales[Encoding::kValues];
          load_scales<Encoding>(scale_rows(min(base + u, item.last - 1)), 0, dim, scales);
#pragma unroll
          for (int i = 0; i < Encoding::kValues; ++i) a[i] = scales[i](a[i]);
        }
        Encoding::forward(a, angle, y);
        if (item.active && base + u < item.last) {
          store_output<Encoding>(y_rows(base + u), 0, dim, y);
        }
      }
    }
  });
}

// What a thread of backward reads of a row, vectors of d_y, x and the old d_x, and where its block keeps them.
template <class Encoding, Act ACT, bool ADD>
struct BackwardRow {
  static constexpr int kX = 2, kOld = kX + (ACT != Act::none ? Encoding::kInputs : 0);
  static constexpr int kVectors = kOld + (ADD ? Encoding::kInputs : 0);
  static constexpr int kVectorBytes = LrpeWork::kThreads * 16, kBytes = kVectors * kVectorBytes;
  static constexpr int kStages = 2;  // more of them are slower, a third by 1 us where there is little work
  static constexpr int kSharedBytes = kStages * LrpeShape<Encoding, ACT>::kBackward * kBytes;
};

// Rows are copied ahead into shared memory, each thread its own part: no barriers, and no registers for what is under
// way.
template <class Encoding, Act ACT, bool ADD>
__global__ void __launch_bounds__(LrpeWork::kThreads, std::max(8, LrpeShape<Encoding, ACT>::kBackwardBlocks))
    lrpe_backward(const __grid_constant__ typename Encoding::BackwardArgs args, const __grid_constant__ LrpeWork work) {
  static_assert(ACT != Act::sequence);
  using T = typename Encoding::T;
  using A = typename Encoding::A;
  using Row = BackwardRow<Encoding, ACT, ADD>;
  constexpr int kUnroll = LrpeShape<Encoding, ACT>::kBackward, kInputs = Encoding::kInputs;
  constexpr EvictionPriority kLeaves =
      ADD && ACT != Act::none ? EvictionPriority::normal : EvictionPriority::last;  // measured, up to 5 %
  extern __shared__ uint4 staged[];
  const LrpeItem item(work, Encoding::WIDTH);
  const typename Encoding::Thetas thetas(args.theta, item.theta_head, item.k);
  const int dim = static_cast<int>(args.d_x.view.dim);
  const int column = Encoding::input_at(0, item.k, dim);
  const ReplicaRows<const T> d_y_rows(args.d_y, work, item, Encoding::output_at(0, item.k, dim));
  const ReplicaRows<const T> x_rows(args.x, work, item, column);
  const ReplicaRows<T> d_x_rows(args.d_x.view, work, item, column);
  const uint32_t own_place = shared_address(staged) + threadIdx.x * 16;
  const auto place_of = [&](int stage, int u) { return own_place + (stage * kUnroll + u) * Row::kBytes; };
  const auto fetch = [&](int base, int stage) {
    if (base < item.last) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        uint32_t to = place_of(stage, u);
        hide_from_compiler(
            to);  // a register of the thread: with one of the warp added, ptxas 13.0 makes copies that are illegal
        const auto copy = [&](const auto& rows, int first, int count, const auto& at) {
          const T* from = rows(min(base + u, item.last - 1));
          hide_from_compiler(from);
#pragma unroll
          for (int v = 0; v < count; ++v) {
            copy_async(to + (first + v) * Row::kVectorBytes, from + at(v, 0, dim), kLeaves);
          }
        };
        copy(d_y_rows, 0, 2, Encoding::output_at);
        if constexpr (ACT != Act::none) copy(x_rows, Row::kX, kInputs, Encoding::input_at);
        if constexpr (ADD) copy(d_x_rows, Row::kOld, kInputs, Encoding::input_at);
      }
    }
    __pipeline_commit();
  };
#pragma unroll
  for (int stage = 0; stage < Row::kStages; ++stage) fetch(item.first + stage * kUnroll, stage);
  SinCos<A> angle[Encoding::WIDTH];  // worked out while the first rows are under way
  typename Encoding::Angles(thetas).at(args.options, item.position, angle);
  with_activation<ACT == Act::elementwise>(args.options.act, [&](auto act) {
    int stage = 0;
    for (int base = item.first; base < item.last; base += kUnroll) {
      __pipeline_wait_prior(Row::kStages - 1);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const auto read = [&](int first, auto& values) {
          RowVectors<T, Encoding::WIDTH, sizeof(values) / sizeof(A) / Encoding::WIDTH> row;
          int v = first;
          for (auto& vector : row.vectors) vector = load_shared<T>(place_of(stage, u) + v++ * Row::kVectorBytes);
          row.widen_to(values);
        };
        A upstream[2 * Encoding::WIDTH], gradient[Encoding::kValues];
        read(0, upstream);
        Encoding::backward(upstream, angle, gradient);
        if constexpr (ACT != Act::none) {
          A values[Encoding::kValues];
          read(Row::kX, values);
          activate_row_backward<T, ACT, decltype(act)::value>(gradient, values, work.vectors.divisor);
        }
        if constexpr (ADD) {
          A before[Encoding::kValues];
          read(Row::kOld, before);
#pragma unroll
          for (int i = 0; i < Encoding::kValues; ++i) gradient[i] += before[i];
        }
        if (item.active && base + u < item.last) {
          store_input<Encoding>(d_x_rows(base + u), 0, dim, gradient);
        }
      }
      fetch(base + Row::kStages * kUnroll, stage);
      stage = stage + 1 == Row::kStages ? 0 : stage + 1;
    }
  });
}

}  // namespace heddle::kernels::cuda
