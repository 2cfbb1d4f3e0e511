#include "kernels/dense/cpu/vector_product.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "kernels/common/cpu/column_sums.h"
#include "kernels/common/cpu/parallel.h"

namespace heddle::kernels::cpu {
namespace {

// Results of one task, at most.
constexpr int64_t kResults = 512;

// The part of a product that one task computes.
struct Part {
  int64_t first, count;  // results
  int64_t begin, end;    // terms
};

// `count` weights from `begin` on, in the type of arithmetic: in place or in `buffer`.
template <class T, class A = accumulate_t<T>>
const A* load_weights(const StridedVector<const T>& weights, int64_t begin, int64_t count, A* buffer) {
  if (weights.data != nullptr && weights.stride == 1) return load_chunk(weights.at(begin), count, buffer);
  for (int64_t i = 0; i < count; ++i) {
    buffer[i] = weights.data != nullptr ? static_cast<A>(*weights.at(begin + i)) : A(1);
  }
  return buffer;
}

// sums (=) of a part where the terms of a result lie side by side: products of rows.
template <class T, class To>
void sum_rows(const VectorProductArgs<T, To>& args, const Part& part, double* sums) {
  using A = accumulate_t<T>;
  std::fill_n(sums, part.count, 0.0);
  for_each_chunk(part.end - part.begin, [&](int64_t offset, int64_t count) {
    Buffer<A> weight_buffer, buffer;
    const A* weights = load_weights(args.weights, part.begin + offset, count, weight_buffer.data());
    for (int64_t i = 0; i < part.count; ++i) {
      const T* from = args.matrix.at(part.first + i, part.begin + offset).data;
      const A* row = load_chunk(from, count, buffer.data());
      sums[i] += static_cast<double>(sum_of<A>(count, [=](int64_t p) { return row[p] * weights[p]; }));
    }
  });
}

// The pairwise sum of weight[j] * row[j][i] over `rows` rows.
template <int rows, class A>
[[gnu::always_inline]] inline A weighted_sum(const A* const* row, const A* weight, int64_t i) {
  if constexpr (rows == 1) {
    return weight[0] * row[0][i];
  } else {
    constexpr int half = rows / 2;
    return weighted_sum<half>(row, weight, i) + weighted_sum<half>(row + half, weight + half, i);
  }
}

// sums (=) of a part where the results lie side by side: sums of weighted rows, eight at a time.
template <class T, class To>
void sum_columns(const VectorProductArgs<T, To>& args, const Part& part, double* sums) {
  using A = accumulate_t<T>;
  constexpr int kRows = 8;
  ColumnSums<A, kResults> columns(part.count);
  Buffer<A, kResults> buffers[kRows];
  for_each_chunk(part.end - part.begin, [&](int64_t offset, int64_t count) {
    Buffer<A> weight_buffer;
    const A* weights = load_weights(args.weights, part.begin + offset, count, weight_buffer.data());
    const auto load = [&](int64_t p, int which) {
      return load_chunk(args.matrix.at(part.first, part.begin + offset + p).data, part.count, buffers[which].data());
    };
    int64_t p = 0;
    for (; p + kRows <= count; p += kRows) {
      std::array<const A*, kRows> rows;
      std::array<A, kRows> weight;
      for (int j = 0; j < kRows; ++j) rows[j] = load(p + j, j);
      std::copy_n(weights + p, kRows, weight.data());
      columns.add([=](int64_t i) { return weighted_sum<kRows>(rows.data(), weight.data(), i); });
    }
    for (; p < count; ++p) columns.add([row = load(p, 0), weight = weights[p]](int64_t i) { return weight * row[i]; });
  });
  std::copy_n(columns.total(), part.count, sums);
}

template <class T, class To>
void finish(const VectorProductArgs<T, To>& args, int64_t first, int64_t count, const double* sums) {
  using A = accumulate_t<T>;
  Buffer<A, kResults> results;
  for (int64_t i = 0; i < count; ++i) {
    const double bias = args.bias.data != nullptr ? static_cast<double>(static_cast<A>(*args.bias.at(first + i))) : 0.0;
    results[i] = static_cast<A>(sums[i] + bias);
  }
  if (args.to.stride == 1) return store_chunk(args.to.at(first), results.data(), count, args.mode);
  for (int64_t i = 0; i < count; ++i) store_chunk(args.to.at(first + i), results.data() + i, 1, args.mode);
}

}  // namespace

template <class T, class To>
void vector_product(const Context& context, const VectorProductArgs<T, To>& args) {
  const bool in_rows = args.matrix.transpose == Transpose::no;
  const int64_t grain = in_rows ? std::clamp<int64_t>(65536 / std::max<int64_t>(1, args.terms), 1, kResults) : kResults;
  const int64_t blocks = (args.size + grain - 1) / grain;
  // Where there are few results, the terms are divided too.
  const int64_t splits = blocks < 8 ? std::clamp<int64_t>(args.terms / (in_rows ? 32768 : 1024), 1, 32) : 1;
  std::vector<double> partials(splits > 1 ? splits * args.size : 0);
  parallel_for(context, blocks * splits, [&](int64_t task) {
    const int64_t first = task % blocks * grain, split = task / blocks;
    const Part part{first, std::min(grain, args.size - first), args.terms * split / splits,
                    args.terms * (split + 1) / splits};
    Buffer<double, kResults> own;
    double* sums = splits > 1 ? &partials[split * args.size + first] : own.data();
    in_rows ? sum_rows(args, part, sums) : sum_columns(args, part, sums);
    if (splits == 1) finish(args, first, part.count, sums);
  });
  if (splits == 1) return;
  for (int64_t first = 0; first < args.size; first += kResults) {
    const int64_t count = std::min(kResults, args.size - first);
    double* sums = &partials[first];
    for (int64_t split = 1; split < splits; ++split) {
      for (int64_t i = 0; i < count; ++i) sums[i] += sums[split * args.size + i];
    }
    finish(args, first, count, sums);
  }
}

#define HEDDLE_INSTANTIATE(T, To) template void vector_product(const Context&, const VectorProductArgs<T, To>&)
HEDDLE_INSTANTIATE(double, double);
HEDDLE_INSTANTIATE(float, float);
HEDDLE_INSTANTIATE(bfloat16, bfloat16);
HEDDLE_INSTANTIATE(bfloat16, float);
HEDDLE_INSTANTIATE(float16, float16);
HEDDLE_INSTANTIATE(float16, float);
#undef HEDDLE_INSTANTIATE

}  // namespace heddle::kernels::cpu
