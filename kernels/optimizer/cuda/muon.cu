// The kernels of Muon beside its matrix products, for one matrix.                          kernels/optimizer/muon.h
//   muon_direction    partials (=): a block takes the norm of one chunk of 16384 numbers of u; then direction (=):
//                     every block takes the norm of all partial norms, in the same order
//   muon_polynomial   squared (=), element by element
//   muon_apply        master, the compute copy `value` and the average (=), in one pass
#include <cstdint>
#include <type_traits>

#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/reduce.h"
#include "kernels/optimizer/cuda/step.h"
#include "kernels/optimizer/muon.h"

namespace heddle::kernels::cuda {
namespace {

template <class A>
struct Momentum {
  const A *gradient, *m, *scalars;
  int64_t size;
  MovingAverage<A> momentum;
  bool nesterov;
};

// What is to be orthogonalized, before it is normalized: of_gradient * gradient + of_m * m.
template <class A>
struct Mixture {
  A of_gradient, of_m;
};

template <class A>
__device__ __forceinline__ Mixture<A> mixture_of(const Momentum<A>& p) {
  if (!p.nesterov) return {A(0), A(1)};
  return {p.momentum.rest * clipped_scale(p.scalars), p.momentum.decay};
}

// partials[block] (=) the norm of one chunk.
template <class A>
__global__ void __launch_bounds__(kThreads) norm_of_chunk(Momentum<A> p, A* partials) {
  __shared__ ReduceShared<double, kThreads> shared;
  const Mixture<A> mixture = mixture_of(p);
  const int64_t begin = blockIdx.x * int64_t{kChunk};
  const int64_t end = begin + kChunk < p.size ? begin + kChunk : p.size;
  const SumOfSquares squares = sum_within_range<A>([&](double factor) {
    double sum = 0.0;
#pragma unroll 4
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
      const A u = mixture.of_gradient * p.gradient[i] + mixture.of_m * p.m[i];
      sum += square(u, factor);
    }
    return block_sum<kThreads>(sum, shared);
  });
  if (threadIdx.x == 0) partials[blockIdx.x] = static_cast<A>(squares.root());
}

template <class A, class T>
__global__ void __launch_bounds__(kThreads)
    normalize(Momentum<A> p, const A* partials, int count, double eps, T* direction) {
  __shared__ ReduceShared<double, kThreads> shared;
  const SumOfSquares squares = sum_within_range<A>([&](double factor) {
    double total = 0.0;
    for (int i = threadIdx.x; i < count; i += kThreads) total += square(partials[i], factor);
    return block_sum<kThreads>(total, shared);
  });
  const A factor = static_cast<A>(1.0 / fmax(squares.root(), eps));
  const Mixture<A> mixture = mixture_of(p);
  const int64_t stride = gridDim.x * int64_t{kThreads};
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < p.size; i += stride) {
    direction[i] = narrow<T>(factor * (mixture.of_gradient * p.gradient[i] + mixture.of_m * p.m[i]));
  }
}

template <class A, class T>
void direction_as(Context& context, const MuonDirectionArgs& args) {
  const Momentum<A> momentum = {vector<const A>(args.gradient),      vector<const A>(args.m),
                                vector<const A>(args.scalars),       args.m.size,
                                MovingAverage<A>::of(args.momentum), args.nesterov};
  const int64_t chunks = gradient_norm_partials(args.m.size);
  if (chunks == 0) return;
  HEDDLE_LAUNCH(context, norm_of_chunk<A>, static_cast<unsigned>(chunks), kThreads, 0, momentum,
                vector<A>(args.partials));
  HEDDLE_LAUNCH(context, (normalize<A, T>), grid_for(context, args.m.size, kThreads, 8), kThreads, 0, momentum,
                vector<const A>(args.partials), static_cast<int>(chunks), args.eps, vector<T>(args.direction));
}

// squared (=) a I + b gram + c squared, of matrices with n columns.
template <class A, class T>
__global__ void __launch_bounds__(kThreads) polynomial(const T* gram, T* squared, int64_t n, A a, A b, A c) {
  const int64_t stride = gridDim.x * int64_t{kThreads};
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < n * n; i += stride) {
    const A sum = b * static_cast<A>(widen(gram[i])) + c * static_cast<A>(widen(squared[i]));
    squared[i] = narrow<T>(i % (n + 1) == 0 ? sum + a : sum);
  }
}

template <class A>
struct Apply {
  const A* scalars;
  A* master;
  int64_t size;
  A lr_scale, weight_decay, direction_scale;
};

template <class A, class T, class D>
__global__ void __launch_bounds__(kThreads) apply(Apply<A> p, const D* direction, MasterCopies<A, T> copies) {
  if (!is_finite_step(p.scalars)) return;
  const A learning_rate = p.scalars[scalar_learning_rate] * p.lr_scale;
  const A decay = A(1) - learning_rate * p.weight_decay;
  const A rate = learning_rate * p.direction_scale;
  const MovingAverage<A> averaged = average_of_weights(p.scalars);
  const int64_t stride = gridDim.x * int64_t{kThreads};
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < p.size; i += stride) {
    const Vec<A, 1> master = {decay * p.master[i] - rate * static_cast<A>(widen(direction[i]))};
    p.master[i] = master[0];
    store_copies<1>(copies, i, master, averaged);
  }
}

template <class A, class D>
void apply_as(Context& context, const MuonApplyArgs& args) {
  if (args.master.size == 0) return;
  const Apply<A> parameters = {vector<const A>(args.scalars),
                               vector<A>(args.master),
                               args.master.size,
                               static_cast<A>(args.lr_scale),
                               static_cast<A>(args.weight_decay),
                               static_cast<A>(args.direction_scale)};
  visit_floating(args.value ? args.value.dtype : args.master.dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (std::is_same_v<accumulate_t<T>, A>) {
      const MasterCopies<A, T> copies = {vector<T>(args.value), vector<A>(args.average)};
      HEDDLE_LAUNCH(context, (apply<A, T, D>), grid_for(context, args.master.size, kThreads, 8), kThreads, 0,
                    parameters, vector<const D>(args.direction), copies);
    }
  });
}

}  // namespace

void muon_direction(Context& context, const MuonDirectionArgs& args) {
  visit_floating(args.direction.dtype, [&](auto type) {
    using T = decltype(type);
    direction_as<accumulate_t<T>, T>(context, args);
  });
}

void muon_polynomial(Context& context, const MuonPolynomialArgs& args) {
  const int64_t n = args.gram.cols;
  if (n == 0) return;
  visit_floating(args.gram.dtype, [&](auto type) {
    using T = decltype(type);
    using A = accumulate_t<T>;
    HEDDLE_LAUNCH(context, (polynomial<A, T>), grid_for(context, n * n, kThreads, 8), kThreads, 0,
                  row<const T>(args.gram, 0), row<T>(args.squared, 0), n, static_cast<A>(args.a),
                  static_cast<A>(args.b), static_cast<A>(args.c));
  });
}

void muon_apply(Context& context, const MuonApplyArgs& args) {
  visit_floating(args.direction.dtype, [&](auto type) {
    using D = decltype(type);
    apply_as<accumulate_t<D>, D>(context, args);
  });
}

}  // namespace heddle::kernels::cuda
