// Cross entropy on the CPU, one row after the other. Sums have the fixed order of sum_of().
#include "kernels/loss/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/math.h"
#include "kernels/common/cpu/parallel.h"
#include "kernels/loss/cross_entropy_row.h"

namespace heddle::kernels::cpu {
namespace {

// Rows of one task.
int64_t rows_per_task(int64_t classes) { return std::max<int64_t>(1, 16 * kChunk / std::max<int64_t>(1, classes)); }

void check_targets(const VectorView& targets, int64_t classes, int32_t ignore_index) {
  const int32_t* target = vector<const int32_t>(targets);
  for (int64_t i = 0; i < targets.size; ++i) {
    check(target[i] == ignore_index || (target[i] >= 0 && target[i] < classes),
          "[cross_entropy] target {} is {}, expected one of [0, {}) or ignore_index {}", i, target[i], classes,
          ignore_index);
  }
}

struct Exponential {
  template <class A>
  [[gnu::always_inline]] A operator()(A x) const {
    return exponential(x);
  }
};

// The sums over the classes of one row but its target; gaps only when they are needed.
template <class T>
OtherClasses<accumulate_t<T>> sum_other_classes(const T* z, int64_t classes, int64_t target, bool needs_gaps) {
  using A = accumulate_t<T>;
  constexpr A kNothing = -std::numeric_limits<A>::infinity();
  Buffer<A> buffer;
  // Calls visit(values, count) for all chunks of the row, with `instead` in place of the target's logit.
  const auto for_each_part = [&](A instead, const auto& visit) {
    for_each_chunk(classes, [&](int64_t begin, int64_t count) {
      const A* part = load_chunk(z + begin, count, buffer.data());
      if (target >= begin && target < begin + count) {
        if (part != buffer.data()) std::copy_n(part, count, buffer.data());
        buffer[target - begin] = instead;
        part = buffer;
      }
      visit(part, count);
    });
  };
  A maximum = kNothing;
  for_each_part(kNothing, [&](const A* part, int64_t count) {
    maximum = std::max(maximum, maximum_of<A>(count, [part](int64_t i) { return part[i]; }));
  });
  if (maximum == kNothing) return {maximum, A(0), A(0)};
  double terms = 0.0, gaps = 0.0;
  for_each_part(kNothing, [&, maximum](const A* part, int64_t count) {
    terms += sum_of<A>(count, [part, maximum](int64_t i) { return exponential(part[i] - maximum); });
  });
  if (needs_gaps) {
    const A share = A(1) / static_cast<A>(classes);
    for_each_part(maximum, [&, maximum, share](const A* part, int64_t count) {
      gaps += sum_of<A>(count, [part, maximum, share](int64_t i) { return half_gap(maximum, part[i]) * share; });
    });
  }
  return {maximum, static_cast<A>(terms), static_cast<A>(gaps)};
}

// d_z (=|+=) the gradient of one row's logits z, which may be the same memory.
template <class T>
void write_gradient(const T* z, int64_t classes, int64_t target, accumulate_t<T> maximum,
                    const CrossEntropyRowGradient<accumulate_t<T>>& of_row, T* d_z, GradientMode mode) {
  using A = accumulate_t<T>;
  const auto term = [maximum](A logit) { return exponential_of_difference(logit, maximum, Exponential{}); };
  Buffer<A> buffer, gradient;  // two buffers, because d_z may be the same memory as z
  for_each_chunk(classes, [&](int64_t begin, int64_t size) {
    const A* part = load_chunk(z + begin, size, buffer.data());
    HEDDLE_INDEPENDENT
    for (int64_t j = 0; j < size; ++j) gradient[j] = of_row.of_other(term(part[j]));
    const int64_t hit = target - begin;
    if (hit >= 0 && hit < size) gradient[hit] = of_row.of_target(term(part[hit]));
    store_chunk(d_z + begin, gradient.data(), size, mode);
  });
}

// d_z (=) 0, or += 0.
template <class T>
void write_no_gradient(int64_t classes, T* d_z, GradientMode mode) {
  if (mode == GradientMode::overwrite) std::fill_n(d_z, classes, T(0.0F));
}

template <class T>
void forward_as(const Context& context, const CrossEntropyForwardArgs& args) {
  using A = accumulate_t<T>;
  const int64_t rows = args.logits.rows, classes = args.logits.cols;
  const int32_t* target = vector<const int32_t>(args.targets);
  const int32_t ignored = args.options.ignore_index;
  const A smoothing = static_cast<A>(args.options.label_smoothing), z_loss = static_cast<A>(args.options.z_loss);
  const auto label = SmoothedLabel<A>::of(args.options.label_smoothing, classes);
  A *losses = vector<A>(args.row_losses), *maxima = vector<A>(args.maxima), *rests = vector<A>(args.rests);
  parallel_ranges(context, rows, rows_per_task(classes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      CrossEntropyRow<A> result{};
      const T* z = row<const T>(args.logits, i);
      T* d_z = args.d_logits ? row<T>(args.d_logits, i) : nullptr;
      if (target[i] != ignored) {
        const OtherClasses<A> others = sum_other_classes(z, classes, target[i], smoothing != A(0));
        result = finish_row(others, static_cast<A>(z[target[i]]), classes, smoothing, z_loss, Exponential{});
        if (d_z != nullptr) {
          const CrossEntropyRowGradient<A> of_row(A(1), label, classes, result.maximum, result.rest, z_loss);
          write_gradient(z, classes, target[i], result.maximum, of_row, d_z, GradientMode::overwrite);
        }
      } else if (d_z != nullptr) {
        write_no_gradient(classes, d_z, GradientMode::overwrite);
      }
      maxima[i] = result.maximum;
      rests[i] = result.rest;
      losses[i] = result.loss;
    }
  });
}

template <class A>
void reduce_losses_as(const ReduceLossesArgs& args) {
  const int64_t rows = args.targets.size;
  const int32_t* target = vector<const int32_t>(args.targets);
  const A* losses = vector<const A>(args.row_losses);
  const int64_t count = rows - std::count(target, target + rows, args.options.ignore_index);
  const double sum = sum_of<double>(rows, [losses](int64_t i) { return static_cast<double>(losses[i]); });
  const double divisor = args.options.reduction == Reduction::mean ? static_cast<double>(count) : 1.0;
  *vector<A>(args.count) = static_cast<A>(count);
  *vector<A>(args.loss) = count > 0 ? static_cast<A>(sum / divisor) : A(0);
}

template <class T>
void backward_as(const Context& context, const CrossEntropyBackwardArgs& args) {
  using A = accumulate_t<T>;
  const int64_t classes = args.logits.cols;
  const int32_t* target = vector<const int32_t>(args.targets);
  const A *maxima = vector<const A>(args.maxima), *rests = vector<const A>(args.rests);
  const Reduction reduction = args.options.reduction;
  const A* d_loss = vector<const A>(args.d_loss);
  const A divisor = reduction == Reduction::mean ? *vector<const A>(args.count) : A(1);
  const auto label = SmoothedLabel<A>::of(args.options.label_smoothing, classes);
  const A z_loss = static_cast<A>(args.options.z_loss);
  parallel_ranges(context, args.logits.rows, rows_per_task(classes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* d_z = row<T>(args.d_logits.view, i);
      if (target[i] == args.options.ignore_index) {
        write_no_gradient(classes, d_z, args.d_logits.mode);
        continue;
      }
      const A upstream = d_loss == nullptr ? A(1) : d_loss[reduction == Reduction::none ? i : 0];
      const CrossEntropyRowGradient<A> of_row(upstream / divisor, label, classes, maxima[i], rests[i], z_loss);
      write_gradient(row<const T>(args.logits, i), classes, target[i], maxima[i], of_row, d_z, args.d_logits.mode);
    }
  });
}

}  // namespace

void cross_entropy_forward(Context& context, const CrossEntropyForwardArgs& args) {
  check_targets(args.targets, args.logits.cols, args.options.ignore_index);
  visit_floating(args.logits.dtype, [&](auto type) { forward_as<decltype(type)>(context, args); });
  if (args.options.reduction == Reduction::none) return;
  reduce_losses(context, {args.row_losses, args.targets, args.loss, args.count, args.options});
}

void reduce_losses(Context&, const ReduceLossesArgs& args) {
  visit_floating(args.loss.dtype, [&](auto type) { reduce_losses_as<accumulate_t<decltype(type)>>(args); });
}

void cross_entropy_backward(Context& context, const CrossEntropyBackwardArgs& args) {
  visit_floating(args.logits.dtype, [&](auto type) { backward_as<decltype(type)>(context, args); });
}

}  // namespace heddle::kernels::cpu
