// Forward of the normalization on the CPU. Memory is passed once: a chunk of a row stays in the cache while its
// statistics are computed and its outputs written (=). Sums have the fixed order of Lanes.
//
// The variance is computed from d = p - mean and corrected for the rounding error of the mean,
//   shift = mean(d);   q = d - shift;   mean(q^2) = mean(d^2) - shift^2
// so that a mean far larger than the deviation costs no digits.
// A group whose variance has left the ordinary range, or of which that difference leaves few digits, is computed by
// wide_group.h, after the chunk that it lies in.
#include "kernels/norm/norm.h"

#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/common/cpu/parallel.h"
#include "kernels/norm/cpu/norm_group.h"
#include "kernels/norm/cpu/wide_thread.h"
#include "kernels/norm/ordinary_range.h"

namespace heddle::kernels::cpu {
namespace {

template <class A>
struct Statistics {
  A mean = 0, shift = 0;
  A variance = 0;  // eps included
  A inv_std = 0;
};

// The statistics of one group of `size` features. Each call of chunks(visit) calls visit(p, count) for all chunks of
// the group in order. Sums is Lanes, or LongLanes where there are several chunks.
template <class A, template <class, int> class Sums, class Chunks>
Statistics<A> statistics_of(int64_t size, const NormOptions& options, const Chunks& chunks) {
  Statistics<A> result;
  const A share = A(1) / static_cast<A>(size);
  A variance;
  if (options.center) {
    Sums<A, 1> sum;
    chunks([&](const A* p, int64_t count) { sum.add(count, [p](int64_t i) { return p[i]; }); });
    const A mean = sum.total() * share;
    Sums<A, 2> moments;
    chunks([&](const A* p, int64_t count) {
      moments.add(count, [p, mean](int64_t i) {
        const A d = p[i] - mean;
        return std::array<A, 2>{d, d * d};
      });
    });
    result.mean = mean;
    result.shift = moments.total(0) * share;
    variance = moments.total(1) * share - result.shift * result.shift;
    variance = variance < A(0) ? A(0) : variance;
  } else {
    Sums<A, 1> squares;
    chunks([&](const A* p, int64_t count) { squares.add(count, [p](int64_t i) { return p[i] * p[i]; }); });
    variance = squares.total() * share;
  }
  result.variance = variance + static_cast<A>(options.eps);
  result.inv_std = A(1) / std::sqrt(result.variance);
  return result;
}

// The forward pass of single rows, with the buffers that they need.
template <class T>
class ForwardRow {
  using A = accumulate_t<T>;

 public:
  explicit ForwardRow(const NormForwardArgs& args)
      : args_(args),
        size_(args.x.cols / args.options.groups),
        ordinary_(args.options),
        weight_(args.weight, args.x.dtype),
        bias_(args.bias, args.x.dtype) {}

  void run(int64_t index) {
    index_ = index;
    x_ = row<T>(args_.x, index);
    residual_ = args_.residual ? row<T>(args_.residual, index) : nullptr;
    gate_ = args_.gate ? row<T>(args_.gate, index) : nullptr;
    y_ = row<T>(args_.y, index);
    r_ = args_.r ? row<T>(args_.r, index) : nullptr;
    for_each_chunk_of_groups(
        args_.x.cols, args_.options.groups, [this](int64_t begin, int64_t count) { whole_groups(begin, count); },
        [this](int64_t begin) { large_group(begin); });
  }

 private:
  void whole_groups(int64_t begin, int64_t count) {
    const A* p = load_p(begin, count, /*store=*/true);
    A* out = target_chunk(y_ + begin, GradientMode::overwrite, output_);
    const A *weight = weight_.at(begin, count), *bias = bias_.at(begin, count);
    for (int64_t at = 0; at < count; at += size_) {
      const Statistics<A> statistics =
          statistics_of<A, Lanes>(size_, args_.options, [&](const auto& visit) { visit(p + at, size_); });
      if (!ordinary_.holds(statistics.variance, statistics.shift)) wide_groups_.push_back(begin + at);
      store_statistics(statistics, begin + at);
      normalize(statistics, p + at, weight + (weight != nullptr ? at : 0), bias + (bias != nullptr ? at : 0), out + at,
                size_);
    }
    finish(begin, count, out);
    for (const int64_t first : wide_groups_) wide_group(first);
    wide_groups_.clear();
  }

  void large_group(int64_t begin) {
    bool store = true;
    const auto chunks = [&](const auto& visit) {
      for_each_chunk(size_, [&](int64_t at, int64_t count) { visit(load_p(begin + at, count, store), count); });
      store = false;
    };
    const Statistics<A> statistics = statistics_of<A, LongLanes>(size_, args_.options, chunks);
    if (!ordinary_.holds(statistics.variance, statistics.shift)) return wide_group(begin);
    store_statistics(statistics, begin);
    for_each_chunk(size_, [&](int64_t at, int64_t count) {
      const int64_t from = begin + at;
      A* out = target_chunk(y_ + from, GradientMode::overwrite, output_);
      normalize(statistics, load_p(from, count, false), weight_.at(from, count), bias_.at(from, count), out, count);
      finish(from, count, out);
    });
  }

  // p of a chunk, in memory or in input_. r is written (=) too if `store` is set and it is wanted.
  const A* load_p(int64_t begin, int64_t count, bool store) {
    const A* r = load_r(x_ + begin, residual_ != nullptr ? residual_ + begin : nullptr,
                        store && r_ != nullptr ? r_ + begin : nullptr, count, input_);
    if (gate_ == nullptr || args_.options.gate_position == GatePosition::post) return r;
    multiply_by_activation(args_.options.gate_act, r, load_chunk(gate_ + begin, count, scratch_), input_, count);
    return input_;
  }

  // Index of the statistics of the group that begins at feature `begin`.
  int64_t place_of(int64_t begin) const { return index_ * args_.options.groups + begin / size_; }

  void wide_group(int64_t begin) {
    visit_same_or_accumulate<T>(parameter_dtype(args_), args_.x.dtype, [&](auto type) {
      normalize_wide<T, decltype(type)>(args_, WideThread{}, {index_, begin, size_, place_of(begin)});
    });
  }

  void store_statistics(const Statistics<A>& statistics, int64_t begin) {
    const int64_t place = place_of(begin);
    if (args_.mean) vector<A>(args_.mean)[place] = statistics.mean + statistics.shift;
    if (args_.inv_std) vector<A>(args_.inv_std)[place] = statistics.inv_std;
  }

  // Everything but a post gate: to (=) scale * q / std * weight + bias. weight and bias may be null.
  void normalize(const Statistics<A>& statistics, const A* p, const A* weight, const A* bias, A* to, int64_t count) {
    const A mean = statistics.mean, shift = statistics.shift;
    const A factor = statistics.inv_std * static_cast<A>(args_.options.scale);
    with_flags(
        [&](auto center, auto has_weight, auto has_bias) {
          HEDDLE_INDEPENDENT
          for (int64_t i = 0; i < count; ++i) {
            A value = p[i];
            if constexpr (center) value = (value - mean) - shift;
            value *= factor;
            if constexpr (has_weight) value *= weight[i];
            if constexpr (has_bias) value += bias[i];
            to[i] = value;
          }
        },
        args_.options.center, weight != nullptr, bias != nullptr);
  }

  // Applies a post gate to `out`, the normalized features of a chunk, and writes (=) y.
  void finish(int64_t begin, int64_t count, A* out) {
    if (gate_ != nullptr && args_.options.gate_position == GatePosition::post) {
      multiply_by_activation(args_.options.gate_act, out, load_chunk(gate_ + begin, count, scratch_), out, count);
    }
    store_chunk(y_ + begin, out, count, GradientMode::overwrite);
  }

  const NormForwardArgs& args_;
  const int64_t size_;
  const OrdinaryVariance<A> ordinary_;
  int64_t index_ = 0;
  std::vector<int64_t> wide_groups_;  // first features of those in the chunk
  const T *x_ = nullptr, *residual_ = nullptr, *gate_ = nullptr;
  T *y_ = nullptr, *r_ = nullptr;
  ParameterChunk<T> weight_, bias_;
  Buffer<A> input_, output_, scratch_;
};

}  // namespace

void norm_forward(Context& context, const NormForwardArgs& args) {
  visit_floating(args.x.dtype, [&](auto type) {
    parallel_ranges(context, args.x.rows, rows_per_task(args.x.cols), [&](int64_t begin, int64_t end) {
      ForwardRow<decltype(type)> work(args);
      for (int64_t index = begin; index < end; ++index) work.run(index);
    });
  });
}

}  // namespace heddle::kernels::cpu
