// The kernels of the position encodings for whole vectors.                                         docs/layers.md#lrpe
// Bytes: x (and d_y) read once, y (d_x) written once. A thread owns WIDTH units of one position and goes over the batch
// (the heads instead, where they share theta), so that sines and cosines are computed once for many rows: LrpeWork.
#pragma once

#include "kernels/cuda/detail/lrpe.h"

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

// Calls work(chosen) with the activation of elements as a type. One branch around all of a kernel's work: each jump in
// it leads to instructions that, in a kernel just begun, have to come from memory.
template <Act ACT, class Work>
__device__ __forceinline__ void with_activation(Activation act, const Work& work) {
  if constexpr (ACT == Act::elementwise) {
    visit_activation(act, work);
  } else {
    work(std::integral_constant<Activation, Activation::none>{});
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

// How the kernels of an encoding and an activation run, as measured on an H200: the replicas that a thread reads at
// once, those of a part at least, the blocks that a multiprocessor holds where sines are shared. See LrpeWork.
template <class Encoding, Act ACT>
struct LrpeShape {
  static constexpr bool kIsRotation = Encoding::kInputs == 2;
  static constexpr bool kHasExponentials = ACT == Act::elementwise || ACT == Act::softmax;

  static constexpr int kForward = kIsRotation && !kHasExponentials ? 2 : 4;
  static constexpr int kForwardPart = 4;
  static constexpr int kForwardBlocks = kIsRotation && kHasExponentials ? 9 : LrpeWork::kNotShared;

  // Also those of a part at least.
  static constexpr int kBackward = (kIsRotation ? kHasExponentials : ACT != Act::elementwise) ? 2 : 4;
  // Cosine reads two rows for each that it writes: that is enough under way.
  static constexpr int backward_blocks(bool add) {
    if (kIsRotation) return !kHasExponentials ? LrpeWork::kNotShared : 8;
    return ACT == Act::elementwise ? 8 : ACT == Act::softmax ? (add ? 10 : 12) : 14;
  }
};

template <class Encoding, Act ACT, int UNROLL>
__global__ void __launch_bounds__(LrpeWork::kThreads)
    lrpe_forward(const __grid_constant__ typename Encoding::ForwardArgs args, const __grid_constant__ LrpeWork work,
                 const __grid_constant__ HeadsView table) {
  using T = typename Encoding::T;
  using A = typename Encoding::A;
  const LrpeItem item(work, Encoding::WIDTH);
  const typename Encoding::Thetas thetas(args.theta, item.theta_head, item.k);
  const int dim = static_cast<int>(args.x.dim);
  const ReplicaRows<const T> x_rows(args.x, work, item, Encoding::input_at(0, item.k, dim));
  const ReplicaRows<T> y_rows(args.y, work, item, Encoding::output_at(0, item.k, dim));
  const ReplicaRows<const SequenceScale<T>> scale_rows(table, work, item, Encoding::input_at(0, item.k, dim));
  InputVectors<Encoding> loaded[UNROLL];
  const auto fetch = [&](int base) {
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
      loaded[u] = load_input<Encoding>(x_rows(min(base + u, item.last - 1)), 0, dim);
    }
  };
  if constexpr (ACT != Act::sequence) fetch(item.first);  // under way while the angles are worked out
  SinCos<A> angle[Encoding::WIDTH];
  typename Encoding::Angles(thetas).at(args.options, item.position, angle);
  if constexpr (ACT == Act::sequence) {  // x is in L2 in part, and comes soon
    fetch(item.first);
    await_previous();  // it makes the table
  }
  with_activation<ACT>(args.options.act, [&](auto act) {
    for (int base = item.first; base < item.last; base += UNROLL) {
      if (base > item.first) fetch(base);
#pragma unroll
      for (int u = 0; u < UNROLL; ++u) {
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

template <class Encoding, Act ACT, bool ADD>
__global__ void __launch_bounds__(LrpeWork::kThreads, std::max(8, LrpeShape<Encoding, ACT>::backward_blocks(ADD)))
    lrpe_backward(const __grid_constant__ typename Encoding::BackwardArgs args, const __grid_constant__ LrpeWork work) {
  static_assert(ACT != Act::sequence);
  using T = typename Encoding::T;
  using A = typename Encoding::A;
  constexpr int kUnroll = LrpeShape<Encoding, ACT>::kBackward;
  const LrpeItem item(work, Encoding::WIDTH);
  const typename Encoding::Thetas thetas(args.theta, item.theta_head, item.k);
  const int dim = static_cast<int>(args.d_x.view.dim);
  const int column = Encoding::input_at(0, item.k, dim);
  const ReplicaRows<const T> d_y_rows(args.d_y, work, item, Encoding::output_at(0, item.k, dim));
  const ReplicaRows<const T> x_rows(args.x, work, item, column);
  const ReplicaRows<T> d_x_rows(args.d_x.view, work, item, column);
  OutputVectors<Encoding> d_y[kUnroll];
  InputVectors<Encoding> x[kUnroll], old[kUnroll];
  const auto fetch = [&](int base) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int r = min(base + u, item.last - 1);
      d_y[u] = load_output<Encoding>(d_y_rows(r), 0, dim);
      if constexpr (ACT != Act::none) {
        x[u] = load_input<Encoding>(x_rows(r), 0, dim);
      }
    }
    if constexpr (ADD) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        old[u] = load_input<Encoding>(d_x_rows(min(base + u, item.last - 1)), 0, dim);
      }
    }
  };
  fetch(item.first);  // under way while the angles are worked out
  SinCos<A> angle[Encoding::WIDTH];
  typename Encoding::Angles(thetas).at(args.options, item.position, angle);
  with_activation<ACT>(args.options.act, [&](auto act) {
    for (int base = item.first; base < item.last; base += kUnroll) {
      if (base > item.first) fetch(base);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        A upstream[2 * Encoding::WIDTH], gradient[Encoding::kValues];
        d_y[u].widen_to(upstream);
        Encoding::backward(upstream, angle, gradient);
        if constexpr (ACT != Act::none) {
          A values[Encoding::kValues];
          x[u].widen_to(values);
          activate_row_backward<T, ACT, decltype(act)::value>(gradient, values, work.vectors.divisor);
        }
        if constexpr (ADD) {
          A before[Encoding::kValues];
          old[u].widen_to(before);
#pragma unroll
          for (int i = 0; i < Encoding::kValues; ++i) gradient[i] += before[i];
        }
        if (item.active && base + u < item.last) {
          store_input<Encoding>(d_x_rows(base + u), 0, dim, gradient);
        }
      }
    }
  });
}

}  // namespace heddle::kernels::cuda
