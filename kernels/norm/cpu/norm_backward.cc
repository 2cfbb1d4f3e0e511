// Backward of the normalization on the CPU.
//   n = q * inv_std;  z = scale * n * weight + bias;  d_z = post gate ? d_y * act(gate) : d_y
//   d_weight = sum over rows of d_z * scale * n;  d_bias = sum over rows of d_z
//   d_n = d_z * weight * scale;   d_p = inv_std * (d_n - n * mean(d_n * n) - (center ? mean(d_n) : 0))
//   post gate:  d_gate = d_y * z * act'(gate);   d_x = d_p + d_r
//   pre gate:   d_gate = d_p * r * act'(gate);   d_x = d_p * act(gate) + d_r
// Writes (=) or adds (+=) d_x, d_residual, d_gate, d_weight and d_bias; writes (=) partials. Task i of
// tasks = norm_partials(rows) handles the rows [rows * i / tasks, rows * (i + 1) / tasks) in order and sums their
// d_weight and d_bias in row i of partials.
// A group whose sums have left the ordinary range is computed by wide_group.h.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/common/cpu/column_sums.h"
#include "kernels/common/cpu/parallel.h"
#include "kernels/norm/cpu/norm_group.h"
#include "kernels/norm/cpu/wide_thread.h"
#include "kernels/norm/norm.h"
#include "kernels/norm/ordinary_range.h"

namespace heddle::kernels::cpu {
namespace {

// The statistics and sums of one group, with g = d_z * weight and n = (p - mean - shift) * inv_std:
//   d_p = factor * (g - n * along - constant)
// The scale is a part of `factor` alone. d_z * scale could be infinite where d_p is not.
template <class A>
struct GroupSums {
  A mean = 0, shift = 0, inv_std = 0, factor = 0, along = 0, constant = 0;
  bool is_ordinary = true;
};

// The backward pass of single rows, with the buffers that they need.
template <class T>
class BackwardRow {
  using A = accumulate_t<T>;

 public:
  explicit BackwardRow(const NormBackwardArgs& args)
      : args_(args),
        size_(args.x.cols / args.options.groups),
        scale_(static_cast<A>(args.options.scale)),
        has_pre_gate_(args.gate && args.options.gate_position == GatePosition::pre),
        has_post_gate_(args.gate && args.options.gate_position == GatePosition::post),
        weights_(args.weight, args.x.dtype),
        biases_(args.bias, args.x.dtype) {}

  // The row's terms of d_weight and d_bias (dim elements each) are added (+=) to `d_weight` and `d_bias`, if wanted.
  void run(int64_t index, A* d_weight, A* d_bias) {
    index_ = index;
    d_weight_ = args_.d_weight ? d_weight : nullptr;
    d_bias_ = args_.d_bias ? d_bias : nullptr;
    for_each_chunk_of_groups(
        args_.x.cols, args_.options.groups, [this](int64_t begin, int64_t count) { whole_groups(begin, count); },
        [this](int64_t begin) { large_group(begin); });
  }

 private:
  const T* at(const RowsView& view, int64_t begin) const { return view ? row<T>(view, index_) + begin : nullptr; }

  void whole_groups(int64_t begin, int64_t count) {
    load(begin, count);
    int64_t finished = 0;
    for (int64_t at = 0; at < count; at += size_) {
      const GroupSums<A> sums = sums_of<Lanes>(begin + at, [&](const auto& visit) { visit(at, size_); });
      if (sums.is_ordinary) {
        differentiate(sums, at, size_);
        continue;
      }
      finish(finished, at - finished);
      wide_group(begin + at);
      finished = at + size_;
    }
    finish(finished, count - finished);
  }

  void large_group(int64_t begin) {
    const GroupSums<A> sums = sums_of<LongLanes>(begin, [&](const auto& visit) {
      for_each_chunk(size_, [&](int64_t at, int64_t count) {
        load(begin + at, count);
        visit(0, count);
      });
    });
    if (!sums.is_ordinary) return wide_group(begin);
    for_each_chunk(size_, [&](int64_t at, int64_t count) {
      load(begin + at, count);
      differentiate(sums, 0, count);
      finish(0, count);
    });
  }

  // Index of the statistics of the group that begins at feature `begin`.
  int64_t place_of(int64_t begin) const { return index_ * args_.options.groups + begin / size_; }

  // All gradients of the group that begins at feature `begin`.
  void wide_group(int64_t begin) {
    const auto add_parameters = [this](int64_t feature, double d_weight, double d_bias) {
      if (d_weight_ != nullptr) d_weight_[feature] += static_cast<A>(d_weight);
      if (d_bias_ != nullptr) d_bias_[feature] += static_cast<A>(d_bias);
    };
    visit_same_or_accumulate<T>(parameter_dtype(args_), args_.x.dtype, [&](auto type) {
      differentiate_wide<T, decltype(type)>(args_, WideThread{}, {index_, begin, size_, place_of(begin)},
                                            add_parameters);
    });
  }

  // Loads a chunk. p_, d_z_ and weight_ are then buffers or the memory itself; gated_ and derivative_ are r (pre gate)
  // or d_y (post gate) times act(gate) and act'(gate); d_p_ is where d_p and then d_x is computed.
  void load(int64_t begin, int64_t count) {
    begin_ = begin;
    count_ = count;
    p_ = load_r<T>(at(args_.x, begin), at(args_.residual, begin), nullptr, count, r_buffer_);
    const A* d_y = load_chunk(at(args_.d_y, begin), count, d_y_buffer_.data());
    d_z_ = d_y;
    weight_ = weights_.at(begin, count);
    d_p_ = d_p_buffer_;
    if (args_.d_x) d_p_ = target_chunk(row<T>(args_.d_x.view, index_) + begin, args_.d_x.mode, d_p_buffer_.data());
    if (!args_.gate) return;
    const A* gates = load_chunk(at(args_.gate, begin), count, scratch_);
    const A* factor = has_pre_gate_ ? p_ : d_y;
    visit_activation(args_.options.gate_act, [&](auto kind) {
      HEDDLE_INDEPENDENT
      for (int64_t i = 0; i < count; ++i) {
        const Activated<A> gate = activate_with_derivative<kind.value>(gates[i]);
        act_[i] = gate.value;
        derivative_[i] = factor[i] * gate.derivative;
        gated_[i] = factor[i] * gate.value;
      }
    });
    (has_pre_gate_ ? p_ : d_z_) = gated_;
  }

  // The sums of one group. chunks(visit) loads all chunks of the group in order and calls visit(offset, count) for
  // each, where `offset` counts from the first feature of the loaded chunk. Sums is Lanes, or LongLanes where there are
  // several chunks.
  template <template <class, int> class Sums, class Chunks>
  GroupSums<A> sums_of(int64_t begin, const Chunks& chunks) {
    const int64_t place = place_of(begin);
    const A share = A(1) / static_cast<A>(size_);
    GroupSums<A> result;
    result.inv_std = vector<A>(args_.inv_std)[place];
    result.factor = result.inv_std * scale_;
    const A mean = args_.options.center ? vector<A>(args_.mean)[place] : A(0);
    Sums<A, 1> products;
    Sums<A, 3> moments;
    with_flags(
        [&](auto center, auto has_weight) {
          chunks([&](int64_t offset, int64_t count) {
            const A *p = p_ + offset, *d_z = d_z_ + offset, *weight = has_weight ? weight_ + offset : nullptr;
            const auto d_n = [=](int64_t i) {
              if constexpr (decltype(has_weight)::value) return d_z[i] * weight[i];
              return d_z[i];
            };
            if constexpr (center) {
              moments.add(count, [p, d_n, mean](int64_t i) {
                const A d = p[i] - mean, g = d_n(i);
                return std::array<A, 3>{d * g, g, d};
              });
            } else {
              products.add(count, [p, d_n](int64_t i) { return d_n(i) * p[i]; });
            }
          });
        },
        args_.options.center, static_cast<bool>(args_.weight));
    A product = products.total();
    if (args_.options.center) {
      result.mean = mean;
      result.shift = moments.total(2) * share;
      result.constant = moments.total(1) * share;
      product = moments.total(0);
    }
    result.along = (product * share - result.shift * result.constant) * result.inv_std;
    const A inv_std = result.inv_std, factor = result.factor;
    result.is_ordinary =
        is_ordinary_gradient(inv_std, product, result.along * inv_std * factor, result.constant * factor);
    return result;
  }

  // Writes (=) d_p_ of features of one group, adds (+=) their terms of d_weight and d_bias, and writes (=) normalized_
  // if the gradient of the gate needs it.
  void differentiate(const GroupSums<A>& sums, int64_t offset, int64_t count) {
    const A *p = p_ + offset, *d_z = d_z_ + offset, *weight = args_.weight ? weight_ + offset : nullptr;
    A *d_p = d_p_ + offset, *normalized = normalized_ + offset;
    A* d_weight = d_weight_ != nullptr ? d_weight_ + begin_ + offset : nullptr;
    A* d_bias = d_bias_ != nullptr ? d_bias_ + begin_ + offset : nullptr;
    const A mean = sums.mean, shift = sums.shift, inv_std = sums.inv_std, scale = scale_;
    const A factor = sums.factor, along = sums.along, constant = sums.constant;
    with_flags(
        [&](auto center, auto has_weight, auto wants_weight, auto wants_bias, auto keeps) {
          HEDDLE_INDEPENDENT
          for (int64_t i = 0; i < count; ++i) {
            A n = p[i];
            if constexpr (center) n = (n - mean) - shift;
            n *= inv_std;
            if constexpr (wants_weight) d_weight[i] += d_z[i] * (n * scale);
            if constexpr (wants_bias) d_bias[i] += d_z[i];
            A g = d_z[i];
            if constexpr (has_weight) g *= weight[i];
            g -= n * along;
            if constexpr (center) g -= constant;
            d_p[i] = g * factor;
            if constexpr (keeps) normalized[i] = n;
          }
        },
        args_.options.center, weight != nullptr, d_weight != nullptr, d_bias != nullptr,
        has_post_gate_ && args_.d_gate);
  }

  // Computes d_gate, d_x and d_residual from d_p_, of `count` elements of the loaded chunk from `offset` on.
  void finish(int64_t offset, int64_t count) {
    if (args_.d_gate) store_d_gate(offset, count);
    A* d_p = d_p_ + offset;
    if (has_pre_gate_) {
      const A* act = act_ + offset;
      HEDDLE_INDEPENDENT
      for (int64_t i = 0; i < count; ++i) d_p[i] *= act[i];
    }
    const int64_t begin = begin_ + offset;
    if (args_.d_r) {
      const A* d_r = load_chunk(at(args_.d_r, begin), count, scratch_.data());
      HEDDLE_INDEPENDENT
      for (int64_t i = 0; i < count; ++i) d_p[i] += d_r[i];
    }
    if (args_.d_x) store_chunk(row<T>(args_.d_x.view, index_) + begin, d_p, count, args_.d_x.mode);
    if (args_.d_residual) store_chunk(row<T>(args_.d_residual.view, index_) + begin, d_p, count, args_.d_residual.mode);
  }

  // d_gate is d_p * r * act'(gate) for a pre gate and z * d_y * act'(gate) with z = scale * n * weight + bias for a
  // post gate.
  void store_d_gate(int64_t offset, int64_t count) {
    T* to = row<T>(args_.d_gate.view, index_) + begin_ + offset;
    A* d_gate = target_chunk(to, args_.d_gate.mode, scratch_.data());
    const A *d_p = d_p_ + offset, *derivative = derivative_ + offset, *normalized = normalized_ + offset;
    const A *weight = args_.weight ? weight_ + offset : nullptr, *bias = biases_.at(begin_ + offset, count);
    const A scale = scale_;
    if (has_pre_gate_) {
      HEDDLE_INDEPENDENT
      for (int64_t i = 0; i < count; ++i) d_gate[i] = d_p[i] * derivative[i];
    } else {
      with_flags(
          [&](auto has_weight, auto has_bias) {
            HEDDLE_INDEPENDENT
            for (int64_t i = 0; i < count; ++i) {
              A z = normalized[i] * scale;
              if constexpr (has_weight) z *= weight[i];
              if constexpr (has_bias) z += bias[i];
              d_gate[i] = z * derivative[i];
            }
          },
          weight != nullptr, bias != nullptr);
    }
    store_chunk(to, d_gate, count, args_.d_gate.mode);
  }

  const NormBackwardArgs& args_;
  const int64_t size_;
  const A scale_;
  const bool has_pre_gate_, has_post_gate_;
  int64_t index_ = 0, begin_ = 0, count_ = 0;
  A *d_weight_ = nullptr, *d_bias_ = nullptr;
  const A *p_ = nullptr, *d_z_ = nullptr, *weight_ = nullptr;
  A* d_p_ = nullptr;
  ParameterChunk<T> weights_, biases_;
  Buffer<A> r_buffer_, d_y_buffer_, act_, derivative_, gated_;
  Buffer<A> normalized_, d_p_buffer_, scratch_;
};

// sums (=|+=) columns [begin, begin + sums.view.size) of partials, whose rows are added in order.
template <class A>
void add_partials(Context& context, const RowsView& partials, int64_t begin, const VectorDestination& sums) {
  if (!sums) return;
  visit_floating(sums.view.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_ranges(context, sums.view.size, 512, [&](int64_t from, int64_t to) {
      ColumnSums<A, 512> columns(to - from);
      for (int64_t index = 0; index < partials.rows; ++index) {
        columns.add([part = row<A>(partials, index) + begin + from](int64_t i) { return part[i]; });
      }
      const A* total = columns.total();
      for (int64_t i = 0; i < to - from; ++i) store(vector<T>(sums.view) + from + i, total[i], sums.mode);
    });
  });
}

// The sums over the rows of a task. Rows are added to `sums`; every few rows these are passed on to sums in double, so
// that the error does not grow with the number of rows.
template <class A>
class TaskSums {
 public:
  TaskSums(A* sums, int64_t size) : sums_(sums), size_(size) {
    if (sums != nullptr) std::fill_n(sums, size, A(0));
  }
  void row_added() {
    if (sums_ == nullptr || ++rows_ < kRows) return;
    rows_ = 0;
    total_.resize(static_cast<size_t>(size_));
    for (int64_t i = 0; i < size_; ++i) {
      total_[i] += static_cast<double>(sums_[i]);
      sums_[i] = A(0);
    }
  }
  void finish() {
    for (size_t i = 0; i < total_.size(); ++i) sums_[i] = static_cast<A>(total_[i] + static_cast<double>(sums_[i]));
  }

 private:
  static constexpr int kRows = 12;
  A* sums_;
  int64_t size_;
  int rows_ = 0;
  std::vector<double> total_;
};

template <class T>
void backward(Context& context, const NormBackwardArgs& args) {
  using A = accumulate_t<T>;
  const int64_t rows = args.x.rows, dim = args.x.cols, tasks = norm_partials(rows);
  parallel_for(context, tasks, [&](int64_t task) {
    A *d_weight = nullptr, *d_bias = nullptr;
    if (args.partials) {
      d_weight = row<A>(args.partials, task);
      d_bias = d_weight + dim;
    }
    TaskSums<A> sums(d_weight, 2 * dim);
    BackwardRow<T> work(args);
    const int64_t end = rows * (task + 1) / tasks;
    for (int64_t index = rows * task / tasks; index < end; ++index) {
      work.run(index, d_weight, d_bias);
      sums.row_added();
    }
    sums.finish();
  });
  add_partials<A>(context, args.partials, 0, args.d_weight);
  add_partials<A>(context, args.partials, dim, args.d_bias);
}

}  // namespace

void norm_backward(Context& context, const NormBackwardArgs& args) {
  visit_floating(args.x.dtype, [&](auto type) { backward<decltype(type)>(context, args); });
}

}  // namespace heddle::kernels::cpu
