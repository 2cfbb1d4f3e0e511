// Gradient norm and AdamW on flat vectors.                                             kernels/optimizer/optimizer.h
//   gradient_norm   partials (=) and scalars[scalar_gradient_norm] (=): a block sums the squares of one chunk of 16384
//                   numbers, then a single block adds up the partial sums in order and looks at the losses
//   adamw           master, m, v and the compute copy `value` (=), in one pass; scalars are read from device memory
#include <cmath>
#include <cstdint>

#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/reduce.h"
#include "kernels/common/cuda/vec.h"
#include "kernels/optimizer/optimizer.h"

namespace heddle::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 16384;  // the same as in gradient_norm_partials()

// partials[block] (=) the sum of squares of one chunk.
template <class A, int width>
__global__ void __launch_bounds__(kThreads) sum_squares(const A* gradient, int64_t size, A* partials) {
  __shared__ ReduceShared<A, kThreads> shared;
  const int64_t begin = blockIdx.x * int64_t{kChunk};
  const int64_t end = begin + kChunk < size ? begin + kChunk : size;
  Vec<A, width> sum = {};
#pragma unroll 4
  for (int64_t i = begin + threadIdx.x * width; i < end; i += kThreads * width) {
    const Vec<A, width> g = load<width>(gradient + i);
#pragma unroll
    for (int j = 0; j < width; ++j) sum[j] += g[j] * g[j];
  }
  A total = 0;
#pragma unroll
  for (int j = 0; j < width; ++j) total += sum[j];
  total = block_sum<kThreads>(total, shared);
  if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

// scalars[scalar_gradient_norm] (=) the root of the sum of all partial sums, added up in double, or NaN when one of the
// losses is not finite; one block.
template <class A>
__global__ void __launch_bounds__(kThreads)
    finish_norm(const A* partials, int64_t count, const A* losses, int64_t loss_count, A* scalars) {
  __shared__ ReduceShared<double, kThreads> shared;
  double total = 0.0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += kThreads) total += static_cast<double>(partials[i]);
  for (int64_t i = threadIdx.x; i < loss_count; i += kThreads) {
    if (!isfinite(losses[i])) total = static_cast<double>(NAN);
  }
  total = block_sum<kThreads>(total, shared);
  if (threadIdx.x == 0) scalars[scalar_gradient_norm] = static_cast<A>(sqrt(total));
}

template <class A>
void gradient_norm_as(Context& context, const GradientNormArgs& args) {
  const int64_t chunks = gradient_norm_partials(args.gradient.size);
  if (chunks > 0) {
    with_width<A>(can_vectorize(args.gradient, vector_width<A>), [&](auto width) {
      HEDDLE_LAUNCH(context, (sum_squares<A, decltype(width)::value>), static_cast<unsigned>(chunks), kThreads, 0,
                    vector<const A>(args.gradient), args.gradient.size, vector<A>(args.partials));
    });
  }
  HEDDLE_LAUNCH(context, finish_norm<A>, 1, kThreads, 0, vector<const A>(args.partials), chunks,
                vector<const A>(args.losses), args.losses.size, vector<A>(args.scalars));
}

template <class A>
struct AdamW {
  A *master, *m, *v;
  const A *gradient, *scalars;
  int64_t size;
  A beta1, beta2, eps, weight_decay;
};

// One AdamW step; `value` may be null. A gradient whose norm is not finite changes nothing.
template <class A, class T, int width>
__global__ void __launch_bounds__(kThreads) update(AdamW<A> p, T* value) {
  A scale = p.scalars[scalar_gradient_scale];
  const A clip_norm = p.scalars[scalar_clip_norm];
  const A norm = p.scalars[scalar_gradient_norm] * scale;
  if (!isfinite(norm)) return;
  if (clip_norm > A(0) && norm > clip_norm) scale *= clip_norm / norm;
  const A learning_rate = p.scalars[scalar_learning_rate];
  const A correction1 = A(1) / p.scalars[scalar_correction1];
  const A correction2 = A(1) / p.scalars[scalar_correction2];
  const A decay = A(1) - learning_rate * p.weight_decay;

  const int64_t stride = gridDim.x * int64_t{kThreads * width};
  for (int64_t i = (blockIdx.x * int64_t{kThreads} + threadIdx.x) * width; i < p.size; i += stride) {
    const Vec<A, width> gradient = load<width>(p.gradient + i);
    Vec<A, width> m = load<width>(p.m + i);
    Vec<A, width> v = load<width>(p.v + i);
    Vec<A, width> master = load<width>(p.master + i);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      const A g = gradient[j] * scale;
      m[j] = p.beta1 * m[j] + (A(1) - p.beta1) * g;
      v[j] = p.beta2 * v[j] + (A(1) - p.beta2) * (g * g);
      const A direction = m[j] * correction1 / (sqrt(v[j] * correction2) + p.eps);
      master[j] = decay * master[j] - learning_rate * direction;
    }
    store(p.m + i, m);
    store(p.v + i, v);
    store(p.master + i, master);
    if (value != nullptr) store_narrow(value + i, master);
  }
}

template <class A, class T>
void adamw_as(Context& context, const AdamWArgs& args) {
  if (args.master.size == 0) return;
  const AdamW<A> parameters = {vector<A>(args.master),
                               vector<A>(args.m),
                               vector<A>(args.v),
                               vector<const A>(args.gradient),
                               vector<const A>(args.scalars),
                               args.master.size,
                               static_cast<A>(args.beta1),
                               static_cast<A>(args.beta2),
                               static_cast<A>(args.eps),
                               static_cast<A>(args.weight_decay)};
  const bool aligned = can_vectorize_all(vector_width<A>, args.master, args.gradient, args.m, args.v, args.value);
  with_width<A>(aligned, [&](auto chosen) {
    constexpr int width = decltype(chosen)::value;
    HEDDLE_LAUNCH(context, (update<A, T, width>), grid_for(context, args.master.size, kThreads * width, 8), kThreads, 0,
                  parameters, vector<T>(args.value));
  });
}

}  // namespace

void gradient_norm(Context& context, const GradientNormArgs& args) {
  if (args.gradient.dtype == DType::float64) {
    gradient_norm_as<double>(context, args);
  } else {
    gradient_norm_as<float>(context, args);
  }
}

void adamw(Context& context, const AdamWArgs& args) {
  const DType value = args.value ? args.value.dtype : args.master.dtype;
  visit_floating(value, [&](auto type) {
    using T = decltype(type);
    adamw_as<accumulate_t<T>, T>(context, args);
  });
}

}  // namespace heddle::kernels::cuda
