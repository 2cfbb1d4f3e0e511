// Lookup of rows by index on the CPU. Backward sorts the tokens by counting, so that one task adds all rows of its
// tokens in a fixed order.
#include "kernels/dense/embedding.h"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/common/cpu/column_sums.h"
#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/parallel.h"

namespace heddle::kernels::cpu {
namespace {

void check_tokens(const VectorView& tokens, int64_t vocabulary) {
  const int32_t* token = vector<const int32_t>(tokens);
  for (int64_t i = 0; i < tokens.size; ++i) {
    check(token[i] >= 0 && token[i] < vocabulary, "[embedding] token {} is {}, expected one of [0, {}): the vocabulary",
          i, token[i], vocabulary);
  }
}

// The positions of each token: those of token t are positions[starts[t]] .. positions[starts[t + 1] - 1], ascending.
struct TokenPositions {
  int32_t* starts;     // (vocabulary + 1)
  int32_t* positions;  // (tokens)
};

// Sorts the tokens by counting; the result lies in the workspace.
TokenPositions sort_tokens(const VectorView& tokens, int64_t vocabulary, const VectorView& workspace) {
  check(tokens.size <= std::numeric_limits<int32_t>::max(), "[embedding] {} tokens are more than can be sorted",
        tokens.size);
  const int32_t* token = vector<const int32_t>(tokens);
  int32_t* next = vector<int32_t>(workspace);  // for each token, where its next position is written
  const TokenPositions sorted{next + vocabulary, next + 2 * vocabulary + 1};
  std::fill_n(sorted.starts, vocabulary + 1, 0);
  for (int64_t i = 0; i < tokens.size; ++i) ++sorted.starts[token[i] + 1];
  for (int64_t t = 0; t < vocabulary; ++t) sorted.starts[t + 1] += sorted.starts[t];
  std::copy_n(sorted.starts, vocabulary, next);
  for (int64_t i = 0; i < tokens.size; ++i) sorted.positions[next[token[i]]++] = static_cast<int32_t>(i);
  return sorted;
}

template <class T, class W>
void embedding_backward_as(const Context& context, const EmbeddingBackwardArgs& args) {
  using A = accumulate_t<T>;
  const RowsView& d_weight = args.d_weight.view;
  const TokenPositions sorted = sort_tokens(args.tokens, d_weight.rows, args.workspace);
  constexpr int64_t tokens_per_task = 8;
  parallel_ranges(context, d_weight.rows, tokens_per_task, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int32_t first = sorted.starts[t], last = t == args.padding_idx ? first : sorted.starts[t + 1];
      if (first == last && args.d_weight.mode == GradientMode::accumulate) continue;
      for_each_chunk(d_weight.cols, [&](int64_t col, int64_t count) {
        ColumnSums<A, kChunk> sums(count);
        Buffer<A> buffer;
        for (int32_t i = first; i < last; ++i) {
          const A* d_y = load_chunk(row<const T>(args.d_y, sorted.positions[i]) + col, count, buffer.data());
          sums.add([d_y](int64_t j) { return d_y[j]; });
        }
        store_chunk(row<W>(d_weight, t) + col, sums.total(), count, args.d_weight.mode);
      });
    }
  });
}

}  // namespace

void embedding_forward(Context& context, const EmbeddingForwardArgs& args) {
  check_tokens(args.tokens, args.weight.rows);
  if (args.weight.cols == 0) return;
  const int32_t* token = vector<const int32_t>(args.tokens);
  constexpr int64_t rows_per_task = 64;
  visit_floating(args.weight.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_ranges(context, args.y.rows, rows_per_task, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        std::copy_n(row<const T>(args.weight, token[i]), args.y.cols, row<T>(args.y, i));
      }
    });
  });
}

void embedding_backward(Context& context, const EmbeddingBackwardArgs& args) {
  check_tokens(args.tokens, args.d_weight.view.rows);
  if (args.d_weight.view.cols == 0) return;
  visit_floating(args.d_y.dtype, [&](auto type) {
    using T = decltype(type);
    visit_same_or_accumulate<T>(args.d_weight.view.dtype, args.d_y.dtype,
                                [&]<class W>(W) { embedding_backward_as<T, W>(context, args); });
  });
}

}  // namespace heddle::kernels::cpu
