// The optimizer's kernels on the CPU.
#include "kernels/optimizer/optimizer.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/common/cpu/math.h"
#include "kernels/common/cpu/parallel.h"
#include "kernels/optimizer/cpu/step.h"

namespace heddle::kernels::cpu {
namespace {

template <class A>
void gradient_norm_as(const Context& context, const GradientNormArgs& args) {
  const A* gradient = vector<const A>(args.gradient);
  A* partials = vector<A>(args.partials);
  parallel_ranges(context, args.gradient.size, kTaskSize, [&](int64_t begin, int64_t end) {
    partials[begin / kTaskSize] = norm_of<A>(end - begin, [&](int64_t i) { return gradient[begin + i]; });
  });
  double total = norm_of_partials<A>(args.partials, args.gradient.size);
  for (int64_t i = 0; i < args.losses.size; ++i) {
    if (!std::isfinite(vector<const A>(args.losses)[i])) total = std::numeric_limits<double>::quiet_NaN();
  }
  vector<A>(args.scalars)[scalar_gradient_norm] = static_cast<A>(total);
}

// The numbers of one update, in the type of the master. gradient_scale includes clipping; correction1 and correction2
// are the reciprocals of those in the scalars.
template <class A>
struct Step {
  MovingAverage<A> beta1, beta2, momentum, average;
  A gradient_scale, learning_rate, correction1, correction2, eps;
};

template <class A>
Step<A> read_step(const UpdateArgs& args) {
  const A* scalar = vector<const A>(args.scalars);
  return {.beta1 = MovingAverage<A>::of(args.beta1),
          .beta2 = MovingAverage<A>::of(args.beta2),
          .momentum = MovingAverage<A>::of(args.momentum),
          .average = average_of_weights<A>(args.scalars),
          .gradient_scale = clipped_scale<A>(args.scalars),
          .learning_rate = scalar[scalar_learning_rate],
          .correction1 = A(1) / scalar[scalar_correction1],
          .correction2 = A(1) / scalar[scalar_correction2],
          .eps = static_cast<A>(args.eps)};
}

// A part of the flat vectors: the elements begin .. end - 1.
template <class A>
struct Part {
  int64_t begin, end;
  int64_t begin_v;  // -1: no second moments
  A learning_rate, weight_decay;
};

// Calls visit(part, first, last) for the ranges [first, last) into which the parts divide [begin, end).
template <class A, class Visit>
void for_each_part(const RowsView& parts, A learning_rate, int64_t begin, int64_t end, const Visit& visit) {
  int64_t begin_of_part = 0;
  for (int64_t i = 0; i < parts.rows && begin < end; ++i) {
    const double* columns = row<const double>(parts, i);
    const Part<A> part{
        begin_of_part, static_cast<int64_t>(columns[part_end]), static_cast<int64_t>(columns[part_begin_v]),
        learning_rate * static_cast<A>(columns[part_lr_scale]), static_cast<A>(columns[part_weight_decay])};
    begin_of_part = part.end;
    if (begin >= part.end) continue;
    const int64_t last = std::min(end, part.end);
    visit(part, begin, last);
    begin = last;
  }
}

// The rules, for the `count` elements of one part that begin at these addresses.
template <class A>
void adamw(const Step<A>& step, const Part<A>& part, int64_t count, const A* __restrict gradient, A* __restrict m,
           A* __restrict v, A* __restrict master) {
  const A decay = A(1) - part.learning_rate * part.weight_decay;
  for (int64_t i = 0; i < count; ++i) {
    const A g = gradient[i] * step.gradient_scale;
    m[i] = step.beta1.next(m[i], g);
    v[i] = bounded_moment(step.beta2.next(v[i], g * g));
    const A direction = m[i] * step.correction1 / (std::sqrt(v[i] * step.correction2) + step.eps);
    master[i] = decay * master[i] - part.learning_rate * direction;
  }
}

template <class A>
void lion(const Step<A>& step, const Part<A>& part, int64_t count, const A* __restrict gradient, A* __restrict m,
          A* __restrict master) {
  const A decay = A(1) - part.learning_rate * part.weight_decay;
  for (int64_t i = 0; i < count; ++i) {
    const A g = gradient[i] * step.gradient_scale;
    const A mixed = step.beta1.next(m[i], g);
    const A sign = mixed > A(0) ? A(1) : mixed < A(0) ? A(-1) : A(0);
    m[i] = step.beta2.next(m[i], g);
    master[i] = decay * master[i] - part.learning_rate * sign;
  }
}

template <class A>
void sgd(const Step<A>& step, const Part<A>& part, int64_t count, const A* __restrict gradient, A* __restrict master) {
  for (int64_t i = 0; i < count; ++i) {
    const A g = gradient[i] * step.gradient_scale + part.weight_decay * master[i];
    master[i] -= part.learning_rate * g;
  }
}

template <class A>
void sgd_with_momentum(const Step<A>& step, const Part<A>& part, bool nesterov, int64_t count,
                       const A* __restrict gradient, A* __restrict m, A* __restrict master) {
  const A of_gradient = nesterov ? A(1) : A(0), of_m = nesterov ? step.momentum.decay : A(1);
  for (int64_t i = 0; i < count; ++i) {
    const A g = gradient[i] * step.gradient_scale + part.weight_decay * master[i];
    m[i] = step.momentum.decay * m[i] + g;
    master[i] -= part.learning_rate * (of_gradient * g + of_m * m[i]);
  }
}

template <class A>
void add_momentum(const Step<A>& step, int64_t count, const A* __restrict gradient, A* __restrict m) {
  for (int64_t i = 0; i < count; ++i) {
    m[i] = step.momentum.next(m[i], gradient[i] * step.gradient_scale);
  }
}

// The elements at .. at + count - 1, all of one part. Returns whether their masters are new.
template <class A>
bool update_chunk(const UpdateArgs& args, const Step<A>& step, const Part<A>& part, int64_t at, int64_t count) {
  const A* gradient = vector<const A>(args.gradient) + at;
  A* master = vector<A>(args.master) + at;
  A* m = args.m ? vector<A>(args.m) + at : nullptr;
  switch (args.rule) {
    case UpdateRule::lion:
      lion(step, part, count, gradient, m, master);
      return true;
    case UpdateRule::sgd:
      if (m == nullptr) {
        sgd(step, part, count, gradient, master);
      } else {
        sgd_with_momentum(step, part, args.nesterov, count, gradient, m, master);
      }
      return true;
    case UpdateRule::muon:
      if (part.begin_v < 0) {
        add_momentum(step, count, gradient, m);
        return false;
      }
      break;
    case UpdateRule::adamw:
      break;
  }
  adamw(step, part, count, gradient, m, vector<A>(args.v) + part.begin_v + (at - part.begin), master);
  return true;
}

template <class A>
void update_as(const Context& context, const UpdateArgs& args) {
  if (!is_finite_step<A>(args.scalars)) return;
  const Step<A> step = read_step<A>(args);
  parallel_ranges(context, args.master.size, kTaskSize, [&](int64_t begin, int64_t end) {
    for_each_part<A>(args.parts, step.learning_rate, begin, end, [&](const Part<A>& part, int64_t first, int64_t last) {
      for_each_chunk(last - first, [&](int64_t offset, int64_t count) {
        const int64_t at = first + offset;
        if (!update_chunk(args, step, part, at, count)) return;
        store_master<A>(args.value, args.average, step.average, at, count, vector<const A>(args.master) + at);
      });
    });
  });
}

template <class A>
void exchange_as(const Context& context, const ExchangeArgs& args) {
  parallel_ranges(context, args.a.size, kTaskSize, [&](int64_t begin, int64_t end) {
    std::swap_ranges(vector<A>(args.a) + begin, vector<A>(args.a) + end, vector<A>(args.b) + begin);
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

void update_parameters(Context& context, const UpdateArgs& args) {
  if (args.master.dtype == DType::float64) {
    update_as<double>(context, args);
  } else {
    update_as<float>(context, args);
  }
}

void exchange(Context& context, const ExchangeArgs& args) {
  if (args.a.dtype == DType::float64) {
    exchange_as<double>(context, args);
  } else {
    exchange_as<float>(context, args);
  }
}

}  // namespace heddle::kernels::cpu
