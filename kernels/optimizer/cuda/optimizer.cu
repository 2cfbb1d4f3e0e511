// Gradient norm and the update of parameters on flat vectors.                          kernels/optimizer/optimizer.h
//   gradient_norm       partials (=) and scalars[scalar_gradient_norm] (=): a block takes the norm of one chunk of
//                       16384 numbers, then a single block that of the partial norms, in order, and looks at the
//                       losses
//   update_parameters   m, v, master, the compute copy `value` and the average (=), in one pass over all parts; scalars
//                       and the table of parts are read from device memory
//   exchange            two vectors, in one pass
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/reduce.h"
#include "kernels/optimizer/cuda/step.h"
#include "kernels/optimizer/optimizer.h"

namespace heddle::kernels::cuda {
namespace {

// partials[block] (=) the norm of one chunk.
template <class A, int width>
__global__ void __launch_bounds__(kThreads) norm_of_chunk(const A* gradient, int64_t size, A* partials) {
  __shared__ ReduceShared<double, kThreads> shared;
  const int64_t begin = blockIdx.x * int64_t{kChunk};
  const int64_t end = begin + kChunk < size ? begin + kChunk : size;
  const SumOfSquares squares = sum_within_range<A>([&](double factor) {
    Vec<double, width> sum = {};
#pragma unroll 4
    for (int64_t i = begin + threadIdx.x * width; i < end; i += kThreads * width) {
      const Vec<A, width> g = load<width>(gradient + i);
#pragma unroll
      for (int j = 0; j < width; ++j) sum[j] += square(g[j], factor);
    }
    double total = 0.0;
#pragma unroll
    for (int j = 0; j < width; ++j) total += sum[j];
    return block_sum<kThreads>(total, shared);
  });
  if (threadIdx.x == 0) partials[blockIdx.x] = static_cast<A>(squares.root());
}

// scalars[scalar_gradient_norm] (=) the norm of all partial norms, or NaN when one of the losses is not finite; one
// block.
template <class A>
__global__ void __launch_bounds__(kThreads)
    finish_norm(const A* partials, int64_t count, const A* losses, int64_t loss_count, A* scalars) {
  __shared__ ReduceShared<double, kThreads> shared;
  const SumOfSquares squares = sum_within_range<A>([&](double factor) {
    double total = 0.0;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < count; i += kThreads) total += square(partials[i], factor);
    for (int64_t i = threadIdx.x; i < loss_count; i += kThreads) {
      if (!isfinite(losses[i])) total = static_cast<double>(NAN);
    }
    return block_sum<kThreads>(total, shared);
  });
  if (threadIdx.x == 0) scalars[scalar_gradient_norm] = static_cast<A>(squares.root());
}

template <class A>
void gradient_norm_as(Context& context, const GradientNormArgs& args) {
  const int64_t chunks = gradient_norm_partials(args.gradient.size);
  if (chunks > 0) {
    with_width<A>(can_vectorize(args.gradient, vector_width<A>), [&](auto width) {
      HEDDLE_LAUNCH(context, (norm_of_chunk<A, decltype(width)::value>), static_cast<unsigned>(chunks), kThreads, 0,
                    vector<const A>(args.gradient), args.gradient.size, vector<A>(args.partials));
    });
  }
  HEDDLE_LAUNCH(context, finish_norm<A>, 1, kThreads, 0, vector<const A>(args.partials), chunks,
                vector<const A>(args.losses), args.losses.size, vector<A>(args.scalars));
}

template <class A>
struct Update {
  A *master, *m, *v;
  const A *gradient, *scalars;
  const double* parts;
  int part_count;
  int64_t size;
  MovingAverage<A> beta1, beta2, momentum;
  A eps;
  bool nesterov;
};

// A part of the flat vectors. It is looked up anew only when a thread has come to its end.
template <class A>
struct Part {
  int64_t begin, end;
  int64_t begin_v;  // -1: no second moments
  A learning_rate, weight_decay;
};

// The part that element i is in, found by halving the table.
template <class A>
__device__ __forceinline__ Part<A> find_part(const Update<A>& p, A learning_rate, int64_t i) {
  int first = 0, last = p.part_count - 1;
  while (first < last) {
    const int middle = (first + last) / 2;
    if (static_cast<double>(i) < p.parts[middle * part_columns + part_end]) {
      last = middle;
    } else {
      first = middle + 1;
    }
  }
  const double* columns = p.parts + first * part_columns;
  return {first == 0 ? 0 : static_cast<int64_t>(columns[part_end - part_columns]),
          static_cast<int64_t>(columns[part_end]), static_cast<int64_t>(columns[part_begin_v]),
          learning_rate * static_cast<A>(columns[part_lr_scale]), static_cast<A>(columns[part_weight_decay])};
}

// One step of the rule. m may be null with sgd. A gradient whose norm is not finite changes nothing. The elements of an
// access are all of one part, since parts begin at multiples of 128. The bound of blocks in double keeps the compiler
// from taking so few registers that it spills.
template <UpdateRule rule, class A, class T, int width>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 8 ? 2 : 1) update(Update<A> p, MasterCopies<A, T> copies) {
  if (!is_finite_step(p.scalars)) return;
  const A scale = clipped_scale(p.scalars);
  const A learning_rate = p.scalars[scalar_learning_rate];
  const A correction1 = A(1) / p.scalars[scalar_correction1];
  const A correction2 = A(1) / p.scalars[scalar_correction2];
  const MovingAverage<A> averaged = average_of_weights(p.scalars);
  Part<A> part = {};

  const int64_t stride = gridDim.x * int64_t{kThreads * width};
#pragma unroll 1
  for (int64_t i = (blockIdx.x * int64_t{kThreads} + threadIdx.x) * width; i < p.size; i += stride) {
    if (i >= part.end) part = find_part(p, learning_rate, i);
    const A decay = A(1) - part.learning_rate * part.weight_decay;
    const Vec<A, width> gradient = load<width>(p.gradient + i);
    Vec<A, width> m = {};
    if (rule != UpdateRule::sgd || p.m != nullptr) m = load<width>(p.m + i);
    if (rule == UpdateRule::muon && part.begin_v < 0) {
#pragma unroll
      for (int j = 0; j < width; ++j) m[j] = p.momentum.next(m[j], gradient[j] * scale);
      store(p.m + i, m);
      continue;
    }
    Vec<A, width> master = load<width>(p.master + i);
    if constexpr (rule == UpdateRule::adamw || rule == UpdateRule::muon) {
      A* const place_of_v = p.v + part.begin_v + (i - part.begin);
      Vec<A, width> v = load<width>(place_of_v);
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const A g = gradient[j] * scale;
        m[j] = p.beta1.next(m[j], g);
        v[j] = bounded_moment(p.beta2.next(v[j], g * g));
        const A direction = m[j] * correction1 / (sqrt(v[j] * correction2) + p.eps);
        master[j] = decay * master[j] - part.learning_rate * direction;
      }
      store(place_of_v, v);
    } else if constexpr (rule == UpdateRule::lion) {
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const A g = gradient[j] * scale;
        const A mixed = p.beta1.next(m[j], g);
        const A sign = mixed > A(0) ? A(1) : mixed < A(0) ? A(-1) : A(0);
        m[j] = p.beta2.next(m[j], g);
        master[j] = decay * master[j] - part.learning_rate * sign;
      }
    } else {
#pragma unroll
      for (int j = 0; j < width; ++j) {
        const A g = gradient[j] * scale + part.weight_decay * master[j];
        m[j] = p.momentum.decay * m[j] + g;
        const A direction = p.m == nullptr ? g : p.nesterov ? g + p.momentum.decay * m[j] : m[j];
        master[j] -= part.learning_rate * direction;
      }
    }
    if (rule != UpdateRule::sgd || p.m != nullptr) store(p.m + i, m);
    store(p.master + i, master);
    store_copies<width>(copies, i, master, averaged);
  }
}

// Calls visit with the rule as a constant.
template <class Visit>
void visit_rule(UpdateRule rule, const Visit& visit) {
  switch (rule) {
    case UpdateRule::adamw:
      return visit(std::integral_constant<UpdateRule, UpdateRule::adamw>{});
    case UpdateRule::lion:
      return visit(std::integral_constant<UpdateRule, UpdateRule::lion>{});
    case UpdateRule::sgd:
      return visit(std::integral_constant<UpdateRule, UpdateRule::sgd>{});
    case UpdateRule::muon:
      return visit(std::integral_constant<UpdateRule, UpdateRule::muon>{});
  }
}

template <class A, class T>
void update_as(Context& context, const UpdateArgs& args) {
  if (args.master.size == 0) return;
  const Update<A> parameters = {vector<A>(args.master),
                                vector<A>(args.m),
                                vector<A>(args.v),
                                vector<const A>(args.gradient),
                                vector<const A>(args.scalars),
                                static_cast<const double*>(args.parts.data),
                                static_cast<int>(args.parts.rows),
                                args.master.size,
                                MovingAverage<A>::of(args.beta1),
                                MovingAverage<A>::of(args.beta2),
                                MovingAverage<A>::of(args.momentum),
                                static_cast<A>(args.eps),
                                args.nesterov};
  const MasterCopies<A, T> copies = {vector<T>(args.value), vector<A>(args.average)};
  const bool aligned =
      can_vectorize_all(vector_width<A>, args.master, args.gradient, args.m, args.v, args.value, args.average);
  with_width<A>(aligned, [&](auto chosen) {
    constexpr int width = decltype(chosen)::value;
    visit_rule(args.rule, [&](auto rule) {
      HEDDLE_LAUNCH(context, (update<decltype(rule)::value, A, T, width>),
                    grid_for(context, args.master.size, kThreads * width, 8), kThreads, 0, parameters, copies);
    });
  });
}

template <class A>
__global__ void __launch_bounds__(kThreads) exchange_elements(A* a, A* b, int64_t size) {
  const int64_t stride = gridDim.x * int64_t{kThreads};
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < size; i += stride) {
    const A from_a = a[i], from_b = b[i];
    a[i] = from_b;
    b[i] = from_a;
  }
}

template <class A>
void exchange_as(Context& context, const ExchangeArgs& args) {
  if (args.a.size == 0) return;
  HEDDLE_LAUNCH(context, exchange_elements<A>, grid_for(context, args.a.size, kThreads, 8), kThreads, 0,
                vector<A>(args.a), vector<A>(args.b), args.a.size);
}

}  // namespace

void gradient_norm(Context& context, const GradientNormArgs& args) {
  if (args.gradient.dtype == DType::float64) {
    gradient_norm_as<double>(context, args);
  } else {
    gradient_norm_as<float>(context, args);
  }
}

void update_parameters(Context& context, const UpdateArgs& args) {
  const DType value = args.value ? args.value.dtype : args.master.dtype;
  visit_floating(value, [&](auto type) {
    using T = decltype(type);
    update_as<accumulate_t<T>, T>(context, args);
  });
}

void exchange(Context& context, const ExchangeArgs& args) {
  if (args.a.dtype == DType::float64) {
    exchange_as<double>(context, args);
  } else {
    exchange_as<float>(context, args);
  }
}

}  // namespace heddle::kernels::cuda
