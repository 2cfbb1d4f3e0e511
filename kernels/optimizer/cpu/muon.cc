// The kernels of Muon on the CPU.
#include "kernels/optimizer/muon.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/common/cpu/math.h"
#include "kernels/common/cpu/parallel.h"
#include "kernels/optimizer/cpu/step.h"

namespace heddle::kernels::cpu {
namespace {

template <class A, class T>
void direction_as(const Context& context, const MuonDirectionArgs& args) {
  const A scale = clipped_scale<A>(args.scalars);
  const auto momentum = MovingAverage<A>::of(args.momentum);
  // u = of_gradient * gradient + of_m * m
  const A of_gradient = args.nesterov ? momentum.rest * scale : A(0), of_m = args.nesterov ? momentum.decay : A(1);
  const A* gradient = vector<const A>(args.gradient);
  const A* m = vector<const A>(args.m);
  A* partials = vector<A>(args.partials);
  const auto u = [&](int64_t i) { return of_gradient * gradient[i] + of_m * m[i]; };
  parallel_ranges(context, args.m.size, kTaskSize, [&](int64_t begin, int64_t end) {
    partials[begin / kTaskSize] = norm_of<A>(end - begin, [&](int64_t i) { return u(begin + i); });
  });
  const double norm = norm_of_partials<A>(args.partials, args.m.size);
  const A factor = static_cast<A>(1.0 / std::max(norm, args.eps));
  T* direction = vector<T>(args.direction);
  parallel_ranges(context, args.m.size, kTaskSize, [&](int64_t begin, int64_t end) {
    for_each_chunk(end - begin, [&](int64_t offset, int64_t count) {
      Buffer<A> normalized;
      for (int64_t i = 0; i < count; ++i) normalized[i] = factor * u(begin + offset + i);
      store_chunk(direction + begin + offset, normalized.data(), count, GradientMode::overwrite);
    });
  });
}

template <class T>
void polynomial_as(const Context& context, const MuonPolynomialArgs& args) {
  using A = accumulate_t<T>;
  const A a = static_cast<A>(args.a), b = static_cast<A>(args.b), c = static_cast<A>(args.c);
  const int64_t n = args.gram.cols;
  parallel_ranges(context, n, std::max<int64_t>(1, kTaskSize / n), [&](int64_t begin, int64_t end) {
    Buffer<A> gram_buffer, squared_buffer, sums;
    for (int64_t i = begin; i < end; ++i) {
      for_each_chunk(n, [&](int64_t first, int64_t count) {
        T* to = row<T>(args.squared, i) + first;
        const A* gram = load_chunk(row<const T>(args.gram, i) + first, count, gram_buffer.data());
        const A* squared = load_chunk(static_cast<const T*>(to), count, squared_buffer.data());
        for (int64_t j = 0; j < count; ++j) sums[j] = b * gram[j] + c * squared[j];
        if (i >= first && i < first + count) sums[i - first] += a;
        store_chunk(to, sums.data(), count, GradientMode::overwrite);
      });
    }
  });
}

template <class A, class T>
void apply_as(const Context& context, const MuonApplyArgs& args) {
  if (!is_finite_step<A>(args.scalars)) return;
  const A* scalar = vector<const A>(args.scalars);
  const A learning_rate = scalar[scalar_learning_rate] * static_cast<A>(args.lr_scale);
  const A decay = A(1) - learning_rate * static_cast<A>(args.weight_decay);
  const A rate = learning_rate * static_cast<A>(args.direction_scale);
  parallel_ranges(context, args.master.size, kTaskSize, [&](int64_t begin, int64_t end) {
    Buffer<A> buffer;
    for_each_chunk(end - begin, [&](int64_t offset, int64_t count) {
      const int64_t at = begin + offset;
      A* __restrict master = vector<A>(args.master) + at;
      const A* direction = load_chunk(vector<const T>(args.direction) + at, count, buffer.data());
      for (int64_t i = 0; i < count; ++i) master[i] = decay * master[i] - rate * direction[i];
      store_master<A>(args.value, args.average, average_of_weights<A>(args.scalars), at, count, master);
    });
  });
}

// Calls visit(A{}, T{}): the types of a master and of a direction.
template <class Visit>
void visit_types(DType direction, const Visit& visit) {
  visit_floating(direction, [&](auto type) { visit(accumulate_t<decltype(type)>{}, type); });
}

}  // namespace

void muon_direction(Context& context, const MuonDirectionArgs& args) {
  visit_types(args.direction.dtype, [&]<class A, class T>(A, T) { direction_as<A, T>(context, args); });
}

void muon_polynomial(Context& context, const MuonPolynomialArgs& args) {
  if (args.gram.rows == 0) return;
  visit_floating(args.gram.dtype, [&](auto type) { polynomial_as<decltype(type)>(context, args); });
}

void muon_apply(Context& context, const MuonApplyArgs& args) {
  visit_types(args.direction.dtype, [&]<class A, class T>(A, T) { apply_as<A, T>(context, args); });
}

}  // namespace heddle::kernels::cpu
