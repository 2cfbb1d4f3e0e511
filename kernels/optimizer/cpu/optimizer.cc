// The optimizer's kernels on the CPU.
#include "kernels/optimizer/optimizer.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/math.h"
#include "kernels/common/cpu/parallel.h"

namespace heddle::kernels::cpu {
namespace {

// Elements of one task, of which gradient_norm makes one partial sum; gradient_norm_partials() counts with the same.
constexpr int64_t kTaskSize = 16384;

template <class A>
void gradient_norm_as(const Context& context, const GradientNormArgs& args) {
  const A* gradient = vector<const A>(args.gradient);
  A* partials = vector<A>(args.partials);
  parallel_ranges(context, args.gradient.size, kTaskSize, [&](int64_t begin, int64_t end) {
    partials[begin / kTaskSize] =
        sum_of<A>(end - begin, [&](int64_t i) { return gradient[begin + i] * gradient[begin + i]; });
  });
  double total = 0.0;
  for (int64_t i = 0; i < gradient_norm_partials(args.gradient.size); ++i) total += static_cast<double>(partials[i]);
  for (int64_t i = 0; i < args.losses.size; ++i) {
    if (!std::isfinite(vector<const A>(args.losses)[i])) total = std::numeric_limits<double>::quiet_NaN();
  }
  vector<A>(args.scalars)[scalar_gradient_norm] = static_cast<A>(std::sqrt(total));
}

// The numbers of one update, in the type of the master. gradient_scale includes clipping; correction1 and correction2
// are the reciprocals of those in the scalars; decay is what multiplies the master.
template <class A>
struct Step {
  A gradient_scale, beta1, beta2, learning_rate, correction1, correction2, eps, decay;
};

template <class A>
Step<A> read_step(const AdamWArgs& args) {
  const A* scalar = vector<const A>(args.scalars);
  A scale = scalar[scalar_gradient_scale];
  const A clip_norm = scalar[scalar_clip_norm];
  const A norm = scalar[scalar_gradient_norm] * scale;
  if (clip_norm > A(0) && norm > clip_norm) scale *= clip_norm / norm;
  const A learning_rate = scalar[scalar_learning_rate];
  return {scale,
          static_cast<A>(args.beta1),
          static_cast<A>(args.beta2),
          learning_rate,
          A(1) / scalar[scalar_correction1],
          A(1) / scalar[scalar_correction2],
          static_cast<A>(args.eps),
          A(1) - learning_rate * static_cast<A>(args.weight_decay)};
}

template <class A>
void adamw_as(const Context& context, const AdamWArgs& args) {
  if (!std::isfinite(vector<const A>(args.scalars)[scalar_gradient_norm])) return;
  const Step<A> step = read_step<A>(args);
  parallel_ranges(context, args.master.size, kTaskSize, [&](int64_t begin, int64_t end) {
    A* __restrict master = vector<A>(args.master) + begin;
    A* __restrict m = vector<A>(args.m) + begin;
    A* __restrict v = vector<A>(args.v) + begin;
    const A* __restrict gradient = vector<const A>(args.gradient) + begin;
    for_each_chunk(end - begin, [&](int64_t first, int64_t count) {
      for (int64_t i = first; i < first + count; ++i) {
        const A g = gradient[i] * step.gradient_scale;
        m[i] = step.beta1 * m[i] + (A(1) - step.beta1) * g;
        v[i] = step.beta2 * v[i] + (A(1) - step.beta2) * (g * g);
        const A direction = m[i] * step.correction1 / (std::sqrt(v[i] * step.correction2) + step.eps);
        master[i] = step.decay * master[i] - step.learning_rate * direction;
      }
      if (!args.value) return;
      visit_floating(args.value.dtype, [&](auto type) {
        using T = decltype(type);
        if constexpr (std::is_same_v<accumulate_t<T>, A>) {
          store_chunk(vector<T>(args.value) + begin + first, master + first, count, GradientMode::overwrite);
        }
      });
    });
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
  if (args.master.dtype == DType::float64) {
    adamw_as<double>(context, args);
  } else {
    adamw_as<float>(context, args);
  }
}

}  // namespace heddle::kernels::cpu
