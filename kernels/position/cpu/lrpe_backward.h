// Backward of the position encodings on the CPU.
//   d_a = R(-phi) d_y;   d_x = act'(x) d_a, for a softmax a (d_a - sum of a d_a over what it normalizes)
//   d_phi = d_a2 a1 - d_a1 a2 of each pair;   d_theta = sum over tokens of d_phi times what theta was multiplied by
// With one feature for each angle the pair is (a, 0): d_phi = d_a2 a1, and d_a2 serves nothing else.
// Writes or adds d_x and d_theta; writes (=) partials and dots. A piece of work is a stretch of positions; piece i of
// lrpe_theta_partials(length) pieces adds its positions in order into row i of partials.
#pragma once

#include "kernels/common/cpu/parallel.h"
#include "kernels/position/cpu/lrpe_encoding.h"
#include "kernels/position/cpu/lrpe_row.h"

namespace heddle::kernels::cpu {

template <class T, class Encoding>
class LrpeBackward {
  using A = accumulate_t<T>;
  using Args = typename Encoding::BackwardArgs;
  static constexpr int kSides = Encoding::kSides;

 public:
  explicit LrpeBackward(const Args& args)
      : args_(args),
        pairs_(args.d_y.dim / 2),
        group_(args.d_y.heads / args.theta.rows),
        encoding_(args.theta, args.options) {}

  // d_theta: (theta_heads, E), where this position's share is added, or null.
  void run(int64_t position, A* d_theta) {
    for (int64_t shared = 0; shared < args_.theta.rows; ++shared) {
      for (int64_t begin = 0; begin < pairs_; begin += kPairs) {
        stretch(shared, begin, std::min(kPairs, pairs_ - begin), position);
        std::fill_n(d_phi_.data(), count_, A(0));
        for (int64_t batch = 0; batch < args_.d_y.batch; ++batch) {
          for (int64_t index = shared * group_; index < (shared + 1) * group_; ++index) {
            differentiate(batch, position, index, d_theta != nullptr);
          }
        }
        if (d_theta == nullptr) continue;
        encoding_.add_d_theta(begin_, count_, position, d_phi_, d_theta + shared * args_.theta.cols);
      }
    }
  }

  // dots of the pairs [begin, begin + count) of one batch and head: sum over positions of a d_a.
  void column(int64_t batch, int64_t index, int64_t begin, int64_t count) {
    for_each_side<kSides>([&](auto side) { std::fill_n(dots_.side[side].data(), count, A(0)); });
    for (int64_t position = 0; position < args_.d_y.length; ++position) {
      stretch(index / group_, begin, count, position);
      const Pairs<A> d_a = rotate_back(batch, position, index);
      const Pairs<A> a = activations(batch, position, index);
      for_each_side<kSides>([&](auto side) {
        for (int64_t i = 0; i < count; ++i) dots_.side[side][i] += a.side[side][i] * d_a.side[side][i];
      });
    }
    A* dots = vector<A>(args_.dots) + column_of(batch, index);
    store_pairs<kSides>(dots, encoding_.pairing(), pairs_, begin, count, Pairs<A>(dots_), GradientMode::overwrite);
  }

 private:
  int64_t column_of(int64_t batch, int64_t index) const { return (batch * args_.d_y.heads + index) * pairs_ * kSides; }

  // The pairs that the members below work on, and their angles.
  void stretch(int64_t shared, int64_t begin, int64_t count, int64_t position) {
    begin_ = begin;
    count_ = count;
    encoding_.angles(shared, begin, count, position, cosines_, sines_);
  }

  // That stretch of a row of x, or of a vector of its columns.
  template <class U>
  Pairs<A> load(const U* row, PairBuffer<A>& buffer) {
    return load_pairs<kSides>(row, encoding_.pairing(), pairs_, begin_, count_, buffer);
  }

  Pairs<A> rotate_back(int64_t batch, int64_t position, int64_t index) {
    const T* row = head<T>(args_.d_y, batch, position, index);
    const Pairs<A> d_y = load_pairs<2>(row, encoding_.pairing(), pairs_, begin_, count_, d_a_);
    HEDDLE_INDEPENDENT
    for (int64_t i = 0; i < count_; ++i) {
      const A first = d_y.side[0][i], second = d_y.side[1][i];
      d_a_.side[0][i] = first * cosines_[i] + second * sines_[i];
      d_a_.side[1][i] = second * cosines_[i] - first * sines_[i];
    }
    return d_a_;
  }

  const T* load_x(int64_t batch, int64_t position, int64_t index) {
    const T* x = head<T>(args_.x, batch, position, index);
    x_ = load(x, x_buffer_);
    return x;
  }

  // a, with x_ left as the x it was made of.
  Pairs<A> activations(int64_t batch, int64_t position, int64_t index) {
    const T* x = load_x(batch, position, index);
    const Softmax softmax = args_.options.softmax;
    Pairs<A> maximum{}, sum{}, a{};
    if (softmax == Softmax::sequence) {
      const int64_t place = column_of(batch, index);
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

  // sum over the features of one row of a d_a. Leaves the stretch as it was.
  A row_dot(int64_t batch, int64_t position, int64_t index) {
    const int64_t begin = begin_, count = count_;
    A dot = 0;
    for (int64_t at = 0; at < pairs_; at += kPairs) {
      if (pairs_ > kPairs) stretch(index / group_, at, std::min(kPairs, pairs_ - at), position);
      const Pairs<A> d_a = rotate_back(batch, position, index);
      const Pairs<A> a = activations(batch, position, index);
      dot += sum_of<A>(count_, [&](int64_t i) {
        A product = a.side[0][i] * d_a.side[0][i];
        if constexpr (kSides == 2) product += a.side[1][i] * d_a.side[1][i];
        return product;
      });
    }
    if (pairs_ > kPairs) stretch(index / group_, begin, count, position);
    return dot;
  }

  void differentiate(int64_t batch, int64_t position, int64_t index, bool wants_d_phi) {
    const auto& options = args_.options;
    const A dot = options.softmax == Softmax::feature ? row_dot(batch, position, index) : A(0);
    const Pairs<A> d_a = rotate_back(batch, position, index);
    const bool has_softmax = options.softmax != Softmax::none, has_act = options.act != Activation::none;
    Pairs<A> a{};
    if (has_softmax || wants_d_phi) a = activations(batch, position, index);
    if (wants_d_phi) {
      for (int64_t i = 0; i < count_; ++i) {
        A turn = d_a.side[1][i] * a.side[0][i];
        if constexpr (kSides == 2) turn -= d_a.side[0][i] * a.side[1][i];
        d_phi_[i] += turn;
      }
    }
    if (!args_.d_x) return;
    if (has_softmax || has_act) {
      Pairs<A> dots{};
      if (options.softmax == Softmax::sequence) dots = load(vector<A>(args_.dots) + column_of(batch, index), dots_);
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

// d_theta (=|+=) the partial sums, added in the order of the stretches.
template <class A>
void finish_theta(Context& context, const RowsView& partials, const RowsDestination& d_theta) {
  const int64_t known = d_theta.view.cols;
  visit_floating(d_theta.view.dtype, [&](auto type) {
    parallel_ranges(context, d_theta.view.rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        for (int64_t k = 0; k < known; ++k) {
          A total = 0;
          for (int64_t part = 0; part < partials.rows; ++part) total += row<A>(partials, part)[index * known + k];
          store(row<decltype(type)>(d_theta.view, index) + k, total, d_theta.mode);
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
      const int64_t pairs = args.d_y.dim / 2, stretches = (pairs + kPairs - 1) / kPairs;
      parallel_pieces(context, args.d_y.batch * args.d_y.heads * stretches, [&](int64_t piece) {
        const int64_t begin = piece % stretches * kPairs, column = piece / stretches;
        Backward work(args);
        work.column(column / args.d_y.heads, column % args.d_y.heads, begin, std::min(kPairs, pairs - begin));
      });
    }
    const int64_t length = args.d_y.length, pieces = lrpe_theta_partials(length);
    parallel_pieces(context, pieces, [&](int64_t piece) {
      A* d_theta = nullptr;
      if (args.d_theta) {
        d_theta = row<A>(args.partials, piece);
        std::fill_n(d_theta, args.theta.rows * args.theta.cols, A(0));
      }
      Backward work(args);
      const int64_t end = length * (piece + 1) / pieces;
      for (int64_t position = length * piece / pieces; position < end; ++position) work.run(position, d_theta);
    });
    if (args.d_theta) finish_theta<A>(context, args.partials, args.d_theta);
  });
}

}  // namespace heddle::kernels::cpu
