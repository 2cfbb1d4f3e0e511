// Backward of the position encodings on the CPU.
//   d_a = R(-phi) d_y;   d_x = act'(x) d_a, or for a softmax a (d_a - sum of a d_a over what it normalizes)
//   d_phi = d_a2 a1 - d_a1 a2 of each pair;   d_theta = sum over tokens of d_phi times the factor of theta in phi
// With one feature for each angle the pair is (a, 0): d_phi = d_a2 a1, and d_a2 is not used otherwise.
// Writes (=) or adds (+=) d_x and d_theta; writes (=) partials and dots. Each of lrpe_theta_partials(length) tasks
// handles a range of positions in order and sums their d_theta in its own row of partials.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/common/cpu/column_sums.h"
#include "kernels/common/cpu/parallel.h"
#include "kernels/position/cpu/lrpe_encoding.h"
#include "kernels/position/cpu/lrpe_row.h"

namespace heddle::kernels::cpu {

// The backward pass of single positions, with the buffers that they need.
template <class T, class Encoding>
class LrpeBackward {
  using A = accumulate_t<T>;
  using Args = typename Encoding::BackwardArgs;
  static constexpr int kSides = Encoding::kSides;

 public:
  explicit LrpeBackward(const Args& args)
      : args_(args),
        pairs_(args.d_y.dim / 2),
        group_(heads_per_theta(args.d_y, args.theta)),
        encoding_(args.theta, args.options) {}

  // Writes or adds d_x of one position, for all batches and heads, and adds (+=) the position's terms to d_theta
  // (theta_heads, E) unless that is null.
  void run(int64_t position, double* d_theta) {
    for (int64_t shared = 0; shared < args_.theta.rows; ++shared) {
      for (int64_t begin = 0; begin < pairs_; begin += kPairs) {
        select_pairs(shared, begin, std::min(kPairs, pairs_ - begin), position);
        std::fill_n(d_phi_.data(), count_, A(0));
        for (int64_t batch = 0; batch < args_.d_y.batch; ++batch) {
          for (int64_t index = shared * group_; index < (shared + 1) * group_; ++index) {
            differentiate(batch, position, index, d_theta != nullptr);
          }
        }
        if (d_theta == nullptr) continue;
        encoding_.add_d_theta(begin_, count_, position, d_phi_.data(), d_theta + shared * args_.theta.cols);
      }
    }
  }

  // Adds (+=) the position's terms to d_theta as run() does, with products and their sums in double, where those in A
  // overflow. d_y is still there after run(): where d_theta is wanted, d_x is never written over it.
  void add_exact_d_theta(int64_t position, double* d_theta) {
    std::vector<double> d_phi;
    for (int64_t shared = 0; shared < args_.theta.rows; ++shared) {
      for (int64_t begin = 0; begin < pairs_; begin += kPairs) {
        select_pairs(shared, begin, std::min(kPairs, pairs_ - begin), position);
        d_phi.assign(static_cast<size_t>(count_), 0.0);
        for (int64_t batch = 0; batch < args_.d_y.batch; ++batch) {
          for (int64_t index = shared * group_; index < (shared + 1) * group_; ++index) {
            const Pairs<A> d_a = rotate_back(batch, position, index);
            const Pairs<A> a = activations(batch, position, index);
            for (int64_t i = 0; i < count_; ++i) {
              double& sum = d_phi[static_cast<size_t>(i)];
              sum += static_cast<double>(d_a.side[1][i]) * static_cast<double>(a.side[0][i]);
              if constexpr (kSides == 1) continue;
              sum -= static_cast<double>(d_a.side[0][i]) * static_cast<double>(a.side[1][i]);
            }
          }
        }
        encoding_.add_d_theta(begin_, count_, position, d_phi.data(), d_theta + shared * args_.theta.cols);
      }
    }
  }

  // Writes (=) the dots of the pairs [begin, begin + count) of one batch and head: the sums of a d_a over positions.
  void sequence_dots(int64_t batch, int64_t index, int64_t begin, int64_t count) {
    ColumnSums<A, kPairs> sums[2] = {ColumnSums<A, kPairs>(count), ColumnSums<A, kPairs>(count)};
    for (int64_t position = 0; position < args_.d_y.length; ++position) {
      select_pairs(index / group_, begin, count, position);
      const Pairs<A> d_a = rotate_back(batch, position, index);
      const Pairs<A> a = activations(batch, position, index);
      for_each_side<kSides>([&](auto side) {
        sums[side].add([of_a = a.side[side], of_d_a = d_a.side[side]](int64_t i) { return of_a[i] * of_d_a[i]; });
      });
    }
    A* dots = vector<A>(args_.dots) + first_feature(batch, index);
    const Pairs<A> totals{sums[0].total(), sums[1].total()};
    store_pairs<kSides>(dots, encoding_.pairing(), pairs_, begin, count, totals, GradientMode::overwrite);
  }

 private:
  // Index of the first feature of a batch and head in maximum, sum and dots.
  int64_t first_feature(int64_t batch, int64_t index) const {
    return (batch * args_.d_y.heads + index) * pairs_ * kSides;
  }

  // Chooses the pairs that the members below work on and computes their angles.
  void select_pairs(int64_t shared, int64_t begin, int64_t count, int64_t position) {
    begin_ = begin;
    count_ = count;
    encoding_.angles(shared, begin, count, position, cosines_, sines_);
  }

  // The selected pairs of a row of x, or of a row of maximum, sum or dots.
  template <class U>
  Pairs<A> load(const U* row, PairBuffer<A>& buffer) {
    return load_pairs<kSides>(row, encoding_.pairing(), pairs_, begin_, count_, buffer);
  }

  // d_a of the selected pairs, in d_a_.
  Pairs<A> rotate_back(int64_t batch, int64_t position, int64_t index) {
    const T* row = head<T>(args_.d_y, batch, position, index);
    const Pairs<A> d_y = load_pairs<2>(row, encoding_.pairing(), pairs_, begin_, count_, d_a_);
    if (encoding_.is_extra(position)) {
      if (d_y.side[0] != d_a_.side[0]) std::copy_n(d_y.side[0], count_, d_a_.side[0].data());
      std::fill_n(d_a_.side[1].data(), count_, A(0));
      return d_a_;
    }
    HEDDLE_INDEPENDENT
    for (int64_t i = 0; i < count_; ++i) {
      const A first = d_y.side[0][i], second = d_y.side[1][i];
      d_a_.side[0][i] = first * cosines_[i] + second * sines_[i];
      d_a_.side[1][i] = second * cosines_[i] - first * sines_[i];
    }
    return d_a_;
  }

  // Sets x_ to the selected pairs of a row of x and returns the row.
  const T* load_x(int64_t batch, int64_t position, int64_t index) {
    const T* x = head<T>(args_.x, batch, position, index);
    x_ = load(x, x_buffer_);
    return x;
  }

  // a of the selected pairs; x_ is then the x that it was computed from.
  Pairs<A> activations(int64_t batch, int64_t position, int64_t index) {
    const T* x = load_x(batch, position, index);
    const Softmax softmax = args_.options.softmax;
    Pairs<A> maximum{}, sum{}, a{};
    if (softmax == Softmax::sequence) {
      const int64_t place = first_feature(batch, index);
      maximum = load(vector<A>(args_.maximum) + place, maximum_);
      sum = load(vector<A>(args_.sum) + place, sum_);
    }
    if (softmax == Softmax::feature) row_ = row_softmax(x, args_.x.dim);
    for_each_side<kSides>([&](auto side) {
      a.side[side] = activate(args_.options.act, softmax, row_, x_.side[side], maximum.side[side], sum.side[side],
                              count_, a_.side[side]);
    });
    return a;
  }

  // The sum of a d_a over all features of one row. The selected pairs are the same afterwards.
  A row_dot(int64_t batch, int64_t position, int64_t index) {
    const int64_t begin = begin_, count = count_;
    double dot = 0.0;
    for (int64_t at = 0; at < pairs_; at += kPairs) {
      if (pairs_ > kPairs) select_pairs(index / group_, at, std::min(kPairs, pairs_ - at), position);
      const Pairs<A> d_a = rotate_back(batch, position, index);
      const Pairs<A> a = activations(batch, position, index);
      dot += sum_of<A>(count_, [&](int64_t i) {
        A product = a.side[0][i] * d_a.side[0][i];
        if constexpr (kSides == 2) product += a.side[1][i] * d_a.side[1][i];
        return product;
      });
    }
    if (pairs_ > kPairs) select_pairs(index / group_, begin, count, position);
    return static_cast<A>(dot);
  }

  // Adds (+=) one row's terms to d_phi_ if they are wanted, and writes or adds its d_x, of the selected pairs.
  void differentiate(int64_t batch, int64_t position, int64_t index, bool wants_d_phi) {
    const auto& options = args_.options;
    const A dot = options.softmax == Softmax::feature ? row_dot(batch, position, index) : A(0);
    const Pairs<A> d_a = rotate_back(batch, position, index);
    const bool has_softmax = options.softmax != Softmax::none, has_act = options.act != Activation::none;
    Pairs<A> a{};
    if (has_softmax || wants_d_phi) a = activations(batch, position, index);
    if (wants_d_phi) {
      for (int64_t i = 0; i < count_; ++i) {
        A gradient = d_a.side[1][i] * a.side[0][i];
        if constexpr (kSides == 2) gradient -= d_a.side[0][i] * a.side[1][i];
        d_phi_[i] += gradient;
      }
    }
    if (!args_.d_x) return;
    if (has_softmax || has_act) {
      Pairs<A> dots{};
      if (options.softmax == Softmax::sequence) dots = load(vector<A>(args_.dots) + first_feature(batch, index), dots_);
      if (!has_softmax && !wants_d_phi) load_x(batch, position, index);
      for_each_side<kSides>([&](auto side) {
        differentiate_activation<A>(options.act, options.softmax, x_.side[side], a.side[side], dot, dots.side[side],
                                    count_, d_a_.side[side]);
      });
    }
    T* d_x = head<T>(args_.d_x.view, batch, position, index);
    store_pairs<kSides>(d_x, encoding_.pairing(), pairs_, begin_, count_, Pairs<A>(d_a_), args_.d_x.mode);
  }

  const Args& args_;
  const int64_t pairs_, group_;
  Encoding encoding_;
  int64_t begin_ = 0, count_ = 0;
  RowSoftmax<A> row_;
  Pairs<A> x_{};
  Buffer<A, kPairs> cosines_, sines_, d_phi_;
  PairBuffer<A> d_a_, a_, x_buffer_, maximum_, sum_, dots_;
};

// The sums of the tasks whose rows of partials, in A, are not finite; the others are empty.
using LargeSums = std::vector<std::vector<double>>;

// d_theta (=|+=) the partial sums, whose rows are added in order.
template <class A>
void add_theta_partials(Context& context, const RowsView& partials, const LargeSums& large,
                        const RowsDestination& d_theta) {
  const int64_t known = d_theta.view.cols;
  visit_floating(d_theta.view.dtype, [&](auto type) {
    parallel_ranges(context, d_theta.view.rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        for (int64_t k = 0; k < known; ++k) {
          double total = 0.0;
          for (int64_t part = 0; part < partials.rows; ++part) {
            const int64_t at = index * known + k;
            const std::vector<double>& sums = large[static_cast<size_t>(part)];
            total += sums.empty() ? static_cast<double>(row<A>(partials, part)[at]) : sums[static_cast<size_t>(at)];
          }
          store(row<decltype(type)>(d_theta.view, index) + k, static_cast<A>(total), d_theta.mode);
        }
      }
    });
  });
}

template <template <class> class Encoding, class Args>
void lrpe_backward(Context& context, const Args& args) {
  visit_floating(args.d_y.dtype, [&](auto type) {
    using T = decltype(type);
    using A = accumulate_t<T>;
    using Backward = LrpeBackward<T, Encoding<A>>;
    if (args.options.softmax == Softmax::sequence) {
      const int64_t heads = args.d_y.heads, pairs = args.d_y.dim / 2, chunks = (pairs + kPairs - 1) / kPairs;
      parallel_for(context, args.d_y.batch * heads * chunks, [&](int64_t task) {
        const int64_t begin = task % chunks * kPairs, index = task / chunks;
        Backward work(args);
        work.sequence_dots(index / heads, index % heads, begin, std::min(kPairs, pairs - begin));
      });
    }
    const int64_t length = args.d_y.length, tasks = lrpe_theta_partials(length);
    LargeSums large(static_cast<size_t>(tasks));
    parallel_for(context, tasks, [&](int64_t task) {
      std::vector<double> d_theta(args.d_theta ? args.theta.rows * args.theta.cols : 0);
      Backward work(args);
      const int64_t end = length * (task + 1) / tasks;
      for (int64_t position = length * task / tasks; position < end; ++position) {
        work.run(position, args.d_theta ? d_theta.data() : nullptr);
      }
      if (!args.d_theta) return;
      A* partial = row<A>(args.partials, task);
      const auto is_stored = [&] {  // 0 times what is not finite is NaN
        std::copy(d_theta.begin(), d_theta.end(), partial);
        return sum_of<A>(static_cast<int64_t>(d_theta.size()), [&](int64_t i) { return partial[i] * A(0); }) == A(0);
      };
      if (is_stored() || std::is_same_v<A, double>) return;
      std::fill(d_theta.begin(), d_theta.end(), 0.0);
      for (int64_t position = length * task / tasks; position < end; ++position) {
        work.add_exact_d_theta(position, d_theta.data());
      }
      if (!is_stored()) large[static_cast<size_t>(task)] = std::move(d_theta);
    });
    if (args.d_theta) add_theta_partials<A>(context, args.partials, large, args.d_theta);
  });
}

}  // namespace heddle::kernels::cpu
