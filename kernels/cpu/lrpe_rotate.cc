// Position encoding by rotation, forward, on the CPU: y = R(phi) act(x), written (=).
// A piece of work is a stretch of positions; cos and sin of one position are computed once for the whole batch and,
// when the heads share theta, for all heads.
#include "kernels/lrpe_rotate.h"

#include "kernels/cpu/detail/lrpe_row.h"
#include "kernels/cpu/detail/lrpe_statistics.h"
#include "kernels/cpu/detail/parallel.h"

namespace heddle::kernels::cpu {
namespace {

template <class T>
class Forward {
  using A = accumulate_t<T>;

 public:
  explicit Forward(const LrpeRotateForwardArgs& args)
      : args_(args),
        half_(args.x.dim / 2),
        angles_(static_cast<const A*>(args.theta.data), args.theta.rows, args.theta.cols, args.theta.row_stride) {}

  void run(int64_t position) {
    const int64_t group = args_.x.heads / args_.theta.rows;  // heads that share angles
    for (int64_t shared = 0; shared < args_.theta.rows; ++shared) {
      for (int64_t begin = 0; begin < half_; begin += kPairs) {
        const int64_t count = std::min(kPairs, half_ - begin);
        angles_.at(shared, begin, count, position + args_.options.offset, cosines_, sines_);
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
    const LrpeRotateOptions& options = args_.options;
    const T* x = head<T>(args_.x, batch, position, index);
    const Pairs<A> loaded = load_pairs(x, options.pairing, half_, begin, count, input_);
    const int64_t column = (batch * args_.x.heads + index) * args_.x.dim;
    Pairs<A> maximum{}, sum{};
    if (options.softmax == Softmax::sequence) {
      maximum = load_pairs(vector<A>(args_.maximum) + column, options.pairing, half_, begin, count, maximum_);
      sum = load_pairs(vector<A>(args_.sum) + column, options.pairing, half_, begin, count, sum_);
    }
    const RowSoftmax<A> row = options.softmax == Softmax::feature ? row_softmax(x, args_.x.dim) : RowSoftmax<A>{};
    const A* first =
        activate(options.act, options.softmax, row, loaded.first, maximum.first, sum.first, count, input_.first);
    const A* second =
        activate(options.act, options.softmax, row, loaded.second, maximum.second, sum.second, count, input_.second);
    T* y = head<T>(args_.y, batch, position, index);
    const PairTarget<A> to = target_pairs(y, options.pairing, half_, begin, Accumulate::overwrite, output_);
    HEDDLE_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) {
      const A a = first[i], b = second[i];
      to.first[i] = a * cosines_[i] - b * sines_[i];
      to.second[i] = a * sines_[i] + b * cosines_[i];
    }
    store_pairs(y, options.pairing, half_, begin, count, Pairs<A>(to), Accumulate::overwrite);
  }

  const LrpeRotateForwardArgs& args_;
  const int64_t half_;
  AngleTable<A> angles_;
  Buffer<A, kPairs> cosines_, sines_;
  PairBuffer<A> input_, output_, maximum_, sum_;
};

}  // namespace

void lrpe_rotate_forward(Context& context, const LrpeRotateForwardArgs& args) {
  visit_floating(args.x.dtype, [&](auto type) {
    using T = decltype(type);
    if (args.options.softmax == Softmax::sequence) {
      sequence_softmax<T>(context, args.x, vector<accumulate_t<T>>(args.maximum), vector<accumulate_t<T>>(args.sum));
    }
    const int64_t row = std::max<int64_t>(1, args.x.batch * args.x.heads * args.x.dim);
    parallel_ranges(context, args.x.length, std::max<int64_t>(1, 16384 / row), [&](int64_t begin, int64_t end) {
      Forward<T> work(args);
      for (int64_t position = begin; position < end; ++position) work.run(position);
    });
  });
}

}  // namespace heddle::kernels::cpu
