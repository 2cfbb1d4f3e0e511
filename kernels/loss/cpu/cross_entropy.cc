// Mean cross entropy on the CPU, one row after the other. Sums have the fixed order of Lanes.
#include "kernels/loss/cross_entropy.h"

#include <cmath>

#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/math.h"
#include "kernels/common/cpu/parallel.h"

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

// The sums of one row of logits z. logsumexp(z) is largest + logarithm; the two are kept apart because their sum would
// lose the digits of a small loss.
template <class T>
struct RowSums {
  accumulate_t<T> largest;    // max(z)
  accumulate_t<T> logarithm;  // log(sum(exp(z - largest)))
  accumulate_t<T> sum;        // sum(z)
};

template <class T>
RowSums<T> sum_row(const T* z, int64_t classes) {
  using A = accumulate_t<T>;
  A buffer[kChunk];
  A largest = -std::numeric_limits<A>::infinity();
  for_each_chunk(classes, [&](int64_t begin, int64_t count) {
    const A* part = load_chunk(z + begin, count, buffer);
    largest = std::max(largest, maximum_of<A>(count, [&](int64_t i) { return part[i]; }));
  });
  Lanes<A> exponentials, plain;
  for_each_chunk(classes, [&](int64_t begin, int64_t count) {
    const A* part = load_chunk(z + begin, count, buffer);
    exponentials.add(count, [&](int64_t i) { return exponential(part[i] - largest); });
    plain.add(count, [&](int64_t i) { return part[i]; });
  });
  return {largest, std::log(exponentials.total()), plain.total()};
}

template <class T>
void forward_as(const Context& context, const CrossEntropyForwardArgs& args) {
  using A = accumulate_t<T>;
  const int64_t rows = args.logits.rows, classes = args.logits.cols;
  const int32_t* target = vector<const int32_t>(args.targets);
  const int32_t ignored = args.options.ignore_index;
  const A smoothing = static_cast<A>(args.options.label_smoothing);
  A* losses = vector<A>(args.row_losses);
  A* log_sum_exp = vector<A>(args.log_sum_exp);
  parallel_ranges(context, rows, rows_per_task(classes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      losses[i] = log_sum_exp[i] = A(0);
      if (target[i] == ignored) continue;
      const T* z = row<const T>(args.logits, i);
      const RowSums<T> sums = sum_row(z, classes);
      const A hit = static_cast<A>(z[target[i]]);
      log_sum_exp[i] = sums.largest + sums.logarithm;
      losses[i] = (sums.largest - hit) + sums.logarithm;
      if (smoothing != A(0)) losses[i] += smoothing * (hit - sums.sum / static_cast<A>(classes));
    }
  });
  const auto count = static_cast<A>(rows - std::count(target, target + rows, ignored));
  *vector<A>(args.count) = count;
  *vector<A>(args.loss) = count > A(0) ? sum_of<A>(rows, [&](int64_t i) { return losses[i]; }) / count : A(0);
}

template <class T>
void backward_as(const Context& context, const CrossEntropyBackwardArgs& args) {
  using A = accumulate_t<T>;
  const int64_t classes = args.logits.cols;
  const int32_t* target = vector<const int32_t>(args.targets);
  const A* log_sum_exp = vector<const A>(args.log_sum_exp);
  const A count = *vector<const A>(args.count);
  const A scale = count > A(0) ? *vector<const A>(args.d_loss) / count : A(0);
  const A smoothing = static_cast<A>(args.options.label_smoothing);
  const A spread = scale * smoothing / static_cast<A>(classes);
  parallel_ranges(context, args.logits.rows, rows_per_task(classes), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const bool ignored = target[i] == args.options.ignore_index || count == A(0);
      const A normalizer = log_sum_exp[i];
      for_each_chunk(classes, [&](int64_t begin, int64_t size) {
        A buffer[kChunk], gradient[kChunk];  // two buffers, because d_logits may be the same memory as logits
        if (ignored) {
          std::fill_n(gradient, size, A(0));
        } else {
          const A* z = load_chunk(row<const T>(args.logits, i) + begin, size, buffer);
          for (int64_t j = 0; j < size; ++j) gradient[j] = scale * exponential(z[j] - normalizer) - spread;
          const int64_t hit = target[i] - begin;
          if (hit >= 0 && hit < size) gradient[hit] -= scale * (A(1) - smoothing);
        }
        store_chunk(row<T>(args.d_logits.view, i) + begin, gradient, size, args.d_logits.mode);
      });
    }
  });
}

}  // namespace

void cross_entropy_forward(Context& context, const CrossEntropyForwardArgs& args) {
  check_targets(args.targets, args.logits.cols, args.options.ignore_index);
  visit_floating(args.logits.dtype, [&](auto type) { forward_as<decltype(type)>(context, args); });
}

void cross_entropy_backward(Context& context, const CrossEntropyBackwardArgs& args) {
  visit_floating(args.logits.dtype, [&](auto type) { backward_as<decltype(type)>(context, args); });
}

}  // namespace heddle::kernels::cpu
