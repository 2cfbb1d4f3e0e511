// Forward of the position encodings on the CPU. It writes (=) y = R(phi) a, a = act(x); with one feature for each angle
// the pair that is rotated is (a, 0). A task is a range of positions. cos and sin of a position are computed once for
// the whole batch and, when the heads share theta, for all heads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/common/cpu/parallel.h"
#include "kernels/position/cpu/lrpe_encoding.h"
#include "kernels/position/cpu/lrpe_row.h"
#include "kernels/position/cpu/lrpe_statistics.h"

namespace heddle::kernels::cpu {

// The forward pass of one position, for all batches and heads.
template <class T, class Encoding>
class LrpeForward {
  using A = accumulate_t<T>;
  using Args = typename Encoding::ForwardArgs;
  static constexpr int kSides = Encoding::kSides;

 public:
  explicit LrpeForward(const Args& args)
      : args_(args),
        before_(args.tokens_before != nullptr ? *args.tokens_before : 0),
        pairs_(args.x.dim / kSides),
        encoding_(args.theta, args.options) {}

  void run(int64_t position) {
    const int64_t group = heads_per_theta(args_.x, args_.theta);
    for (int64_t shared = 0; shared < args_.theta.rows; ++shared) {
      for (int64_t begin = 0; begin < pairs_; begin += kPairs) {
        const int64_t count = std::min(kPairs, pairs_ - begin);
        encoding_.angles(shared, begin, count, position + before_, cosines_, sines_);
        for (int64_t batch = 0; batch < args_.x.batch; ++batch) {
          for (int64_t index = shared * group; index < (shared + 1) * group; ++index) {
            rotate(batch, position, index, begin, count);
          }
        }
      }
    }
  }

 private:
  void rotate(int64_t batch, int64_t position, int64_t index, int64_t begin, int64_t count) {
    const auto& options = args_.options;
    const Pairing pairing = encoding_.pairing();
    const T* x = head<T>(args_.x, batch, position, index);
    Pairs<A> a = load_pairs<kSides>(x, pairing, pairs_, begin, count, input_);
    const int64_t column = (batch * args_.x.heads + index) * args_.x.dim;
    Pairs<A> maximum{}, sum{};
    if (options.softmax == Softmax::sequence) {
      maximum = load_pairs<kSides>(vector<A>(args_.maximum) + column, pairing, pairs_, begin, count, maximum_);
      sum = load_pairs<kSides>(vector<A>(args_.sum) + column, pairing, pairs_, begin, count, sum_);
    }
    const RowSoftmax<A> row = options.softmax == Softmax::feature ? row_softmax(x, args_.x.dim) : RowSoftmax<A>{};
    for_each_side<kSides>([&](auto side) {
      a.side[side] = activate(options.act, options.softmax, row, a.side[side], maximum.side[side], sum.side[side],
                              count, input_.side[side]);
    });
    T* y = head<T>(args_.y, batch, position, index);
    const PairTarget<A> to = target_pairs(y, pairing, pairs_, begin, GradientMode::overwrite, output_);
    const A *first = a.side[0], *second = a.side[1];
    A *to_first = to.side[0], *to_second = to.side[1];
    HEDDLE_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) {
      if constexpr (kSides == 1) {
        to_first[i] = first[i] * cosines_[i];
        to_second[i] = first[i] * sines_[i];
      } else {
        const A p = first[i], q = second[i];
        to_first[i] = p * cosines_[i] - q * sines_[i];
        to_second[i] = p * sines_[i] + q * cosines_[i];
      }
    }
    if (encoding_.is_extra(position + before_)) std::fill_n(to_second, count, A(0));
    store_pairs<2>(y, pairing, pairs_, begin, count, Pairs<A>(to), GradientMode::overwrite);
  }

  const Args& args_;
  const int64_t before_, pairs_;
  Encoding encoding_;
  Buffer<A, kPairs> cosines_, sines_;
  PairBuffer<A> input_, output_, maximum_, sum_;
};

template <template <class> class Encoding, class Args>
void lrpe_forward(Context& context, const Args& args) {
  visit_floating(args.x.dtype, [&](auto type) {
    using T = decltype(type);
    using A = accumulate_t<T>;
    if (args.options.softmax == Softmax::sequence) {
      sequence_softmax<T>(context, args.x, vector<A>(args.maximum), vector<A>(args.sum));
    }
    // Each task prepares theta, so it should have several positions; but there should be at least 32 tasks.
    const int64_t row = std::max<int64_t>(1, args.x.batch * args.x.heads * args.x.dim);
    const int64_t positions = std::max(std::clamp<int64_t>(args.x.length / 32, 1, 16), 16384 / row);
    parallel_ranges(context, args.x.length, positions, [&](int64_t begin, int64_t end) {
      LrpeForward<T, Encoding<A>> work(args);
      for (int64_t position = begin; position < end; ++position) work.run(position);
    });
  });
}

}  // namespace heddle::kernels::cpu
