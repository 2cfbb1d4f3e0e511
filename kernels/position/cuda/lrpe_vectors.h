// The kernels of the position encodings for rows of whole vectors of 16 bytes.                     docs/layers.md#lrpe
//   lrpe_forward    y (=)           reads x once
//   lrpe_backward   d_x (=|+=)      reads x and d_y once
// A thread owns WIDTH angles of one position and goes over the batch (over the heads instead, where all share theta),
// so that their sines and cosines are computed once for many rows; see LrpeWork.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/common/cuda/async.h"
#include "kernels/position/cuda/lrpe.h"

namespace heddle::kernels::cuda {

// The kinds of activation that have kernels of their own. `softmax` is over features, `sequence` a softmax over the
// sequence.
enum class Act { none, elementwise, softmax, sequence };

// A softmax over the sequence for one feature: (x) gives a = exp(x - maximum) / sum. 16-bit types compute
// 2^(x log2 e - shift) with shift = maximum log2 e + log2(sum).
template <class T>
struct SequenceScale {
  float maximum, factor;
  SequenceScale() = default;
  __device__ __forceinline__ SequenceScale(float maximum, float sum) : maximum(maximum), factor(1.0f / sum) {}
  __device__ __forceinline__ float operator()(float x) const { return exponential<T>(x - maximum) * factor; }
};
template <class T>
requires(sizeof(T) == 2) struct SequenceScale<T> {
  float shift;
  SequenceScale() = default;
  __device__ __forceinline__ SequenceScale(float maximum, float sum)
      : shift(rounded_product(maximum, kLog2E) + log2f(sum)) {}
  __device__ __forceinline__ float operator()(float x) const { return fast_exp2(rounded_product(x, kLog2E) - shift); }
};

// Loads the scales of the thread's features from `row`, the row of its batch and head in a table (batch * heads, dim).
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

// x = act(x), for the row that `lanes` neighbouring threads hold together.
template <class T, Act ACT, Activation act, class A, int COUNT>
__device__ __forceinline__ void activate_row(A (&x)[COUNT], int lanes) {
  if constexpr (ACT == Act::elementwise) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) x[i] = activate<act, T>(x[i]);
  }
  if constexpr (ACT == Act::softmax) {
    A maximum = x[0];
#pragma unroll
    for (int i = 1; i < COUNT; ++i) maximum = Max{}(maximum, x[i]);
    const ShiftedExponential<T> exponential(lanes_reduce(maximum, lanes, Max{}, maximum));
    A sum = A(0);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) sum += x[i] = exponential(x[i]);
    const A factor = reciprocal<T>(lanes_reduce(sum, lanes, Sum{}, 0.0f));
#pragma unroll
    for (int i = 0; i < COUNT; ++i) x[i] *= factor;
  }
}

// Turns the gradient of a = act(x) into that of x, in place. For a softmax x is overwritten with a.
template <class T, Act ACT, Activation act, class A, int COUNT>
__device__ __forceinline__ void activate_row_backward(A (&gradient)[COUNT], A (&x)[COUNT], int lanes) {
  if constexpr (ACT == Act::elementwise) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      gradient[i] = chain_rule<act>(gradient[i], activate_with_derivative<act, T>(x[i]).derivative);
    }
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

// Launch shapes measured on an H200, for each encoding and kind of activation. kForward and kBackward are the replicas
// that a thread works on at once; the splits and the resident blocks are parameters of LrpeWork.
template <class Encoding, Act ACT>
struct LrpeTuning {
  static constexpr bool kIsRotation = Encoding::kInputs == 2;
  static constexpr bool kHasExponentials = ACT == Act::elementwise || ACT == Act::softmax;

  static constexpr int kForward = kIsRotation ? 2 : 4;
  static constexpr int kForwardSplit = 4;
  static constexpr int kForwardResident = kIsRotation && kHasExponentials ? 9 : LrpeWork::kNotShared;
  // Minimum number of blocks on a multiprocessor, which bounds the registers of a thread. No choice makes it spill.
  static constexpr bool kTakesRegisters =
      kIsRotation ? !Encoding::kIsInterleaved || ACT == Act::sequence : ACT == Act::elementwise;
  static constexpr int kForwardBlocks = sizeof(typename Encoding::T) == 4 ? 18 : kTakesRegisters ? 14 : 16;

  // Each stage of backward holds kBackward replicas: one where exponentials take the time, so that more blocks fit.
  static constexpr int kBackward = kHasExponentials ? 1 : kIsRotation ? 4 : 2;
  static constexpr int kBackwardSplit = std::max(2, kBackward);
  static constexpr int kBackwardResident =
      kIsRotation ? (kHasExponentials ? 10 : LrpeWork::kNotShared) : (kHasExponentials ? 12 : 14);
};

// y (=). `table` (batch * heads, dim) holds the SequenceScales of a softmax over the sequence, else it is empty.
template <class Encoding, Act ACT>
__global__ void __launch_bounds__(LrpeWork::kThreads, LrpeTuning<Encoding, ACT>::kForwardBlocks)
    lrpe_forward(const __grid_constant__ typename Encoding::ForwardArgs args, const __grid_constant__ LrpeWork work,
                 const __grid_constant__ HeadsView table) {
  using T = typename Encoding::T;
  using A = typename Encoding::A;
  constexpr int kUnroll = LrpeTuning<Encoding, ACT>::kForward;
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
  if constexpr (ACT != Act::sequence) fetch(item.first);  // in flight while the angles are computed
  SinCos<A> angle[Encoding::WIDTH];
  typename Encoding::Angles(thetas).at(args.options, item.position, angle);
  const bool is_extra = Encoding::is_extra(args.options, item.position);
  if constexpr (ACT == Act::sequence) {  // later here: part of x is in L2 and arrives soon
    fetch(item.first);
    grid_dependency_wait();  // the previous grid writes the table
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
        Encoding::forward(a, angle, is_extra, y);
        if (item.active && base + u < item.last) {
          store_output<Encoding>(y_rows(base + u), 0, dim, y);
        }
      }
    }
  });
}

// The rows that a thread of lrpe_backward() has in shared memory: kStages stages of kBackward rows. A row is the
// thread's vectors of d_y, of x and of the previous d_x, those of them that are needed; vector v of all threads lies
// together.
template <class Encoding, Act ACT, bool ADD>
struct BackwardStages {
  static constexpr int kX = 2, kOld = kX + (ACT != Act::none ? Encoding::kInputs : 0);  // first vectors of x and d_x
  static constexpr int kVectors = kOld + (ADD ? Encoding::kInputs : 0);
  static constexpr int kVectorBytes = LrpeWork::kThreads * 16, kRowBytes = kVectors * kVectorBytes;
  static constexpr int kStages = 2;
  static constexpr int kSharedBytes = kStages * LrpeTuning<Encoding, ACT>::kBackward * kRowBytes;
};

// d_x (=|+=, by ADD). Rows are copied asynchronously into shared memory before they are used, each thread copying what
// it reads itself: that takes no barriers, and no registers for loads in flight.
template <class Encoding, Act ACT, bool ADD>
__global__ void __launch_bounds__(LrpeWork::kThreads, std::max(8, LrpeTuning<Encoding, ACT>::kBackwardResident))
    lrpe_backward(const __grid_constant__ typename Encoding::BackwardArgs args, const __grid_constant__ LrpeWork work) {
  static_assert(ACT != Act::sequence);
  using T = typename Encoding::T;
  using A = typename Encoding::A;
  using Stages = BackwardStages<Encoding, ACT, ADD>;
  constexpr int kUnroll = LrpeTuning<Encoding, ACT>::kBackward, kInputs = Encoding::kInputs;
  constexpr EvictionPriority kPriority =
      ADD && ACT != Act::none ? EvictionPriority::normal : EvictionPriority::last;  // measured, up to 5 %
  extern __shared__ uint4 staged[];
  const LrpeItem item(work, Encoding::WIDTH);
  const typename Encoding::Thetas thetas(args.theta, item.theta_head, item.k);
  const int dim = static_cast<int>(args.d_x.view.dim);
  const int column = Encoding::input_at(0, item.k, dim);
  const ReplicaRows<const T> d_y_rows(args.d_y, work, item, Encoding::output_at(0, item.k, dim));
  const ReplicaRows<const T> x_rows(args.x, work, item, column);
  const ReplicaRows<T> d_x_rows(args.d_x.view, work, item, column);
  const uint32_t thread_address = shared_address(staged) + threadIdx.x * 16;
  const auto row_at = [&](int stage, int u) { return thread_address + (stage * kUnroll + u) * Stages::kRowBytes; };
  const auto fetch = [&](int base, int stage) {
    if (base < item.last) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        uint32_t to = row_at(stage, u);
        // Keeps the address in a register of the thread: ptxas 13.0 makes illegal copies of a sum with a uniform one.
        hide_from_compiler(to);
        const auto copy = [&](const auto& rows, int first, int count, const auto& at) {
          const T* from = rows(min(base + u, item.last - 1));
          hide_from_compiler(from);
#pragma unroll
          for (int v = 0; v < count; ++v) {
            copy_async(to + (first + v) * Stages::kVectorBytes, from + at(v, 0, dim), kPriority);
          }
        };
        copy(d_y_rows, 0, 2, Encoding::output_at);
        if constexpr (ACT != Act::none) copy(x_rows, Stages::kX, kInputs, Encoding::input_at);
        if constexpr (ADD) copy(d_x_rows, Stages::kOld, kInputs, Encoding::input_at);
      }
    }
    __pipeline_commit();
  };
#pragma unroll
  for (int stage = 0; stage < Stages::kStages; ++stage) fetch(item.first + stage * kUnroll, stage);
  SinCos<A> angle[Encoding::WIDTH];  // computed while the first rows are in flight
  typename Encoding::Angles(thetas).at(args.options, item.position, angle);
  const bool is_extra = Encoding::is_extra(args.options, item.position);
  with_activation<ACT == Act::elementwise>(args.options.act, [&](auto act) {
    int stage = 0;
    for (int base = item.first; base < item.last; base += kUnroll) {
      __pipeline_wait_prior(Stages::kStages - 1);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        // Loads vectors from `first` on of row u in the type of arithmetic.
        const auto read = [&](int first, auto& values) {
          RowVectors<T, Encoding::WIDTH, sizeof(values) / sizeof(A) / Encoding::WIDTH> row;
          int v = first;
          for (auto& vector : row.vectors) vector = load_shared<T>(row_at(stage, u) + v++ * Stages::kVectorBytes);
          row.widen_to(values);
        };
        A upstream[2 * Encoding::WIDTH], gradient[Encoding::kValues];
        read(0, upstream);
        Encoding::backward(upstream, angle, is_extra, gradient);
        if constexpr (ACT != Act::none) {
          A values[Encoding::kValues];
          read(Stages::kX, values);
          activate_row_backward<T, ACT, decltype(act)::value>(gradient, values, work.vectors.divisor);
        }
        if constexpr (ADD) {
          A before[Encoding::kValues];
          read(Stages::kOld, before);
#pragma unroll
          for (int i = 0; i < Encoding::kValues; ++i) gradient[i] += before[i];
        }
        if (item.active && base + u < item.last) {
          store_input<Encoding>(d_x_rows(base + u), 0, dim, gradient);
        }
      }
      fetch(base + Stages::kStages * kUnroll, stage);
      stage = stage + 1 == Stages::kStages ? 0 : stage + 1;
    }
  });
}

}  // namespace heddle::kernels::cuda
