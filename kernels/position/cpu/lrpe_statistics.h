// Statistics of the softmax over the sequence on the CPU, for every feature of every batch and head.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/common/cpu/column_sums.h"
#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/math.h"
#include "kernels/common/cpu/parallel.h"
#include "kernels/common/views.h"

namespace heddle::kernels::cpu {

// Features of one task, at most.
inline constexpr int64_t kColumnWidth = 512;

// Calls work(batch, head, begin, count) for chunks of at most kColumnWidth features that together cover all features of
// all batches and heads, on several threads.
template <class Work>
inline void for_each_column(const Context& context, const HeadsView& x, const Work& work) {
  const int64_t chunks = (x.dim + kColumnWidth - 1) / kColumnWidth;
  parallel_for(context, x.batch * x.heads * chunks, [&](int64_t task) {
    const int64_t begin = task % chunks * kColumnWidth, index = task / chunks;
    work(index / x.heads, index % x.heads, begin, std::min(kColumnWidth, x.dim - begin));
  });
}

// Writes (=) maximum[c], the maximum of x over positions, and sum[c], the sum of exp(x - maximum[c]) over positions,
// where c = (batch * heads + head) * dim + feature.
template <class T>
void sequence_softmax(const Context& context, const HeadsView& x, accumulate_t<T>* maximum, accumulate_t<T>* sum) {
  using A = accumulate_t<T>;
  for_each_column(context, x, [&](int64_t batch, int64_t index, int64_t begin, int64_t count) {
    A buffer[kColumnWidth], most[kColumnWidth];
    ColumnSums<A, kColumnWidth> total(count);
    std::fill_n(most, count, -std::numeric_limits<A>::infinity());
    for (int64_t position = 0; position < x.length; ++position) {
      const A* row = load_chunk(head<T>(x, batch, position, index) + begin, count, buffer);
      for (int64_t i = 0; i < count; ++i) most[i] = row[i] > most[i] ? row[i] : most[i];
    }
    for (int64_t position = 0; position < x.length; ++position) {
      const A* row = load_chunk(head<T>(x, batch, position, index) + begin, count, buffer);
      total.add([row, &most](int64_t i) { return exponential(row[i] - most[i]); });
    }
    const int64_t column = (batch * x.heads + index) * x.dim + begin;
    std::copy_n(most, count, maximum + column);
    std::copy_n(total.total(), count, sum + column);
  });
}

}  // namespace heddle::kernels::cpu
