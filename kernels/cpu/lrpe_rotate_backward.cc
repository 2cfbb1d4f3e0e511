// Position encoding by rotation, backward, on the CPU.
//   d_a = R(-phi) d_y;   d_x = act'(x) d_a, for a softmax a (d_a - sum of a d_a over what it normalizes)
//   d_phi = d_a2 a1 - d_a1 a2 of each pair;   d_theta = sum over tokens of (position + offset) d_phi
// Writes or adds d_x and d_theta; writes (=) partials and dots. A piece of work is a stretch of positions; piece i of
// lrpe_theta_partials(length) pieces adds its positions in order into row i of partials.
#include "kernels/cpu/detail/lrpe_row.h"
#include "kernels/cpu/detail/lrpe_statistics.h"
#include "kernels/cpu/detail/parallel.h"
#include "kernels/lrpe_rotate.h"

namespace heddle::kernels::cpu {
namespace {

template <class T>
class Backward {
  using A = accumulate_t<T>;

 public:
  explicit Backward(const LrpeRotateBackwardArgs& args)
      : args_(args),
        options_(args.options),
        half_(args.d_y.dim / 2),
        group_(args.d_y.heads / args.theta.rows),
        angles_(static_cast<const A*>(args.theta.data), args.theta.rows, args.theta.cols, args.theta.row_stride) {}

  // d_theta: (theta_heads, E), where this position's share is added, or null.
  void run(int64_t position, A* d_theta) {
    for (int64_t shared = 0; shared < args_.theta.rows; ++shared) {
      for (int64_t begin = 0; begin < half_; begin += kPairs) {
        stretch(shared, begin, std::min(kPairs, half_ - begin), position);
        std::fill_n(d_phi_.data(), count_, A(0));
        for (int64_t batch = 0; batch < args_.d_y.batch; ++batch) {
          for (int64_t index = shared * group_; index < (shared + 1) * group_; ++index) {
            differentiate(batch, position, index, d_theta != nullptr);
          }
        }
        if (d_theta == nullptr) continue;
        const A place = static_cast<A>(position + options_.offset);
        A* sums = d_theta + shared * args_.theta.cols + begin_;
        const int64_t known = std::min(count_, std::max<int64_t>(0, args_.theta.cols - begin_));
        for (int64_t i = 0; i < known; ++i) sums[i] += place * d_phi_[i];
      }
    }
  }

  // dots of the pairs [begin, begin + count) of one batch and head: sum over positions of a d_a.
  void column(int64_t batch, int64_t index, int64_t begin, int64_t count) {
    std::fill_n(dots_.first.data(), count, A(0));
    std::fill_n(dots_.second.data(), count, A(0));
    for (int64_t position = 0; position < args_.d_y.length; ++position) {
      stretch(index / group_, begin, count, position);
      const Pairs<A> d_a = rotate_back(batch, position, index);
      const Pairs<A> a = activations(batch, position, index);
      for (int64_t i = 0; i < count; ++i) {
        dots_.first[i] += a.first[i] * d_a.first[i];
        dots_.second[i] += a.second[i] * d_a.second[i];
      }
    }
    store_pairs<A>(vector<A>(args_.dots) + column_of(batch, index), options_.pairing, half_, begin, count, dots_,
                   Accumulate::overwrite);
  }

 private:
  int64_t column_of(int64_t batch, int64_t index) const { return (batch * args_.d_y.heads + index) * args_.d_y.dim; }

  // The pairs that the members below work on, and their angles.
  void stretch(int64_t shared, int64_t begin, int64_t count, int64_t position) {
    begin_ = begin;
    count_ = count;
    angles_.at(shared, begin, count, position + options_.offset, cosines_, sines_);
  }

  Pairs<A> rotate_back(int64_t batch, int64_t position, int64_t index) {
    const Pairs<A> d_y =
        load_pairs(head<T>(args_.d_y, batch, position, index), options_.pairing, half_, begin_, count_, d_a_);
    HEDDLE_INDEPENDENT
    for (int64_t i = 0; i < count_; ++i) {
      const A first = d_y.first[i], second = d_y.second[i];
      d_a_.first[i] = first * cosines_[i] + second * sines_[i];
      d_a_.second[i] = second * cosines_[i] - first * sines_[i];
    }
    return d_a_;
  }

  const T* load_x(int64_t batch, int64_t position, int64_t index) {
    const T* x = head<T>(args_.x, batch, position, index);
    x_ = load_pairs(x, options_.pairing, half_, begin_, count_, x_buffer_);
    return x;
  }

  // a, with x_ left as the x it was made of.
  Pairs<A> activations(int64_t batch, int64_t position, int64_t index) {
    const T* x = load_x(batch, position, index);
    Pairs<A> maximum{}, sum{};
    if (options_.softmax == Softmax::sequence) {
      const int64_t place = column_of(batch, index);
      maximum = load_pairs(vector<A>(args_.maximum) + place, options_.pairing, half_, begin_, count_, maximum_);
      sum = load_pairs(vector<A>(args_.sum) + place, options_.pairing, half_, begin_, count_, sum_);
    }
    if (options_.softmax == Softmax::feature) row_ = row_softmax(x, args_.x.dim);
    return {activate(options_.act, options_.softmax, row_, x_.first, maximum.first, sum.first, count_, a_.first),
            activate(options_.act, options_.softmax, row_, x_.second, maximum.second, sum.second, count_, a_.second)};
  }

  // sum over the features of one row of a d_a. Leaves the stretch as it was.
  A row_dot(int64_t batch, int64_t position, int64_t index) {
    const int64_t begin = begin_, count = count_;
    A dot = 0;
    for (int64_t at = 0; at < half_; at += kPairs) {
      if (half_ > kPairs) stretch(index / group_, at, std::min(kPairs, half_ - at), position);
      const Pairs<A> d_a = rotate_back(batch, position, index);
      const Pairs<A> a = activations(batch, position, index);
      dot += sum_of<A>(count_, [&](int64_t i) { return a.first[i] * d_a.first[i] + a.second[i] * d_a.second[i]; });
    }
    if (half_ > kPairs) stretch(index / group_, begin, count, position);
    return dot;
  }

  void differentiate(int64_t batch, int64_t position, int64_t index, bool wants_d_phi) {
    const A dot = options_.softmax == Softmax::feature ? row_dot(batch, position, index) : A(0);
    const Pairs<A> d_a = rotate_back(batch, position, index);
    const bool has_softmax = options_.softmax != Softmax::none;
    Pairs<A> a{};
    if (has_softmax || wants_d_phi) a = activations(batch, position, index);
    if (wants_d_phi) {
      for (int64_t i = 0; i < count_; ++i) d_phi_[i] += d_a.second[i] * a.first[i] - d_a.first[i] * a.second[i];
    }
    if (!args_.d_x) return;
    switch (options_.softmax) {
      case Softmax::none:
        if (options_.act == Activation::none) break;
        if (!wants_d_phi) load_x(batch, position, index);
        visit_activation(options_.act, [&](auto kind) {
          HEDDLE_INDEPENDENT
          for (int64_t i = 0; i < count_; ++i) d_a_.first[i] *= activation_derivative<kind.value>(x_.first[i]);
          HEDDLE_INDEPENDENT
          for (int64_t i = 0; i < count_; ++i) d_a_.second[i] *= activation_derivative<kind.value>(x_.second[i]);
        });
        break;
      case Softmax::feature:
        for (int64_t i = 0; i < count_; ++i) {
          d_a_.first[i] = a.first[i] * (d_a_.first[i] - dot);
          d_a_.second[i] = a.second[i] * (d_a_.second[i] - dot);
        }
        break;
      case Softmax::sequence: {
        const Pairs<A> dots =
            load_pairs(vector<A>(args_.dots) + column_of(batch, index), options_.pairing, half_, begin_, count_, dots_);
        for (int64_t i = 0; i < count_; ++i) {
          d_a_.first[i] = a.first[i] * (d_a_.first[i] - dots.first[i]);
          d_a_.second[i] = a.second[i] * (d_a_.second[i] - dots.second[i]);
        }
        break;
      }
    }
    store_pairs<T>(head<T>(args_.d_x.view, batch, position, index), options_.pairing, half_, begin_, count_, d_a_,
                   args_.d_x.mode);
  }

  const LrpeRotateBackwardArgs& args_;
  const LrpeRotateOptions& options_;
  const int64_t half_, group_;
  AngleTable<A> angles_;
  int64_t begin_ = 0, count_ = 0;
  RowSoftmax<A> row_;
  Pairs<A> x_{};
  Buffer<A, kPairs> cosines_, sines_, d_phi_;
  PairBuffer<A> d_a_, a_, x_buffer_, maximum_, sum_, dots_;
};

// d_theta (=|+=) the partial sums, added in the order of the stretches.
template <class A>
void finish_theta(Context& context, const LrpeRotateBackwardArgs& args) {
  const int64_t known = args.theta.cols;
  parallel_ranges(context, args.theta.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      for (int64_t k = 0; k < known; ++k) {
        A total = 0;
        for (int64_t part = 0; part < args.partials.rows; ++part)
          total += row<A>(args.partials, part)[index * known + k];
        store(row<A>(args.d_theta.view, index) + k, total, args.d_theta.mode);
      }
    }
  });
}

template <class T>
void backward(Context& context, const LrpeRotateBackwardArgs& args) {
  using A = accumulate_t<T>;
  if (args.options.softmax == Softmax::sequence) {
    const int64_t half = args.d_y.dim / 2, stretches = (half + kPairs - 1) / kPairs;
    parallel_pieces(context, args.d_y.batch * args.d_y.heads * stretches, [&](int64_t piece) {
      const int64_t begin = piece % stretches * kPairs, column = piece / stretches;
      Backward<T> work(args);
      work.column(column / args.d_y.heads, column % args.d_y.heads, begin, std::min(kPairs, half - begin));
    });
  }
  const int64_t length = args.d_y.length, pieces = lrpe_theta_partials(length);
  parallel_pieces(context, pieces, [&](int64_t piece) {
    A* d_theta = nullptr;
    if (args.d_theta) {
      d_theta = row<A>(args.partials, piece);
      std::fill_n(d_theta, args.theta.rows * args.theta.cols, A(0));
    }
    Backward<T> work(args);
    const int64_t end = length * (piece + 1) / pieces;
    for (int64_t position = length * piece / pieces; position < end; ++position) work.run(position, d_theta);
  });
  if (args.d_theta) finish_theta<A>(context, args);
}

}  // namespace

void lrpe_rotate_backward(Context& context, const LrpeRotateBackwardArgs& args) {
  visit_floating(args.d_y.dtype, [&](auto type) { backward<decltype(type)>(context, args); });
}

}  // namespace heddle::kernels::cpu
