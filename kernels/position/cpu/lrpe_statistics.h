// Softmax over the sequence on the CPU: the statistics of every feature of every batch and head.
#pragma once

#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/math.h"
#include "kernels/common/cpu/parallel.h"
#include "kernels/common/views.h"

namespace heddle::kernels::cpu {

// Features of a column handled at a time.
inline constexpr int64_t kColumnWidth = 512;

// Calls work(batch, head, begin, count) for all features, in stretches of at most kColumnWidth.
template <class Work>
inline void for_each_column(const Context& context, const HeadsView& x, const Work& work) {
  const int64_t stretches = (x.dim + kColumnWidth - 1) / kColumnWidth;
  parallel_pieces(context, x.batch * x.heads * stretches, [&](int64_t piece) {
    const int64_t begin = piece % stretches * kColumnWidth, column = piece / stretches;
    work(column / x.heads, column % x.heads, begin, std::min(kColumnWidth, x.dim - begin));
  });
}

// maximum[c] = max over positions of x, sum[c] = sum of exp(x - maximum[c]); c = (batch * heads + head) * dim +
// feature.
template <class T>
void sequence_softmax(const Context& context, const HeadsView& x, accumulate_t<T>* maximum, accumulate_t<T>* sum) {
  using A = accumulate_t<T>;
  for_each_column(context, x, [&](int64_t batch, int64_t index, int64_t begin, int64_t count) {
    A buffer[kColumnWidth], most[kColumnWidth], total[kColumnWidth];
    std::fill_n(most, count, -std::numeric_limits<A>::infinity());
    std::fill_n(total, count, A(0));
    for (int64_t position = 0; position < x.length; ++position) {
      const A* row = load_chunk(head<T>(x, batch, position, index) + begin, count, buffer);
      for (int64_t i = 0; i < count; ++i) most[i] = row[i] > most[i] ? row[i] : most[i];
    }
    for (int64_t position = 0; position < x.length; ++position) {
      const A* row = load_chunk(head<T>(x, batch, position, index) + begin, count, buffer);
      for (int64_t i = 0; i < count; ++i) total[i] += exponential(row[i] - most[i]);
    }
    const int64_t column = (batch * x.heads + index) * x.dim + begin;
    std::copy_n(most, count, maximum + column);
    std::copy_n(total, count, sum + column);
  });
}

}  // namespace heddle::kernels::cpu
