#include "kernels/dense/embedding.h"

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

// The places of each token: those of token t are places[starts[t]] .. places[starts[t + 1] - 1], in rising order.
struct TokenPlaces {
  int32_t* starts;  // (vocabulary + 1)
  int32_t* places;  // (tokens)
};

// A counting sort into the workspace.
TokenPlaces sort_tokens(const VectorView& tokens, int64_t vocabulary, const VectorView& workspace) {
  const int32_t* token = vector<const int32_t>(tokens);
  int32_t* next = vector<int32_t>(workspace);  // of each token, the place after the last one written
  const TokenPlaces sorted{next + vocabulary, next + 2 * vocabulary + 1};
  std::fill_n(sorted.starts, vocabulary + 1, 0);
  for (int64_t i = 0; i < tokens.size; ++i) ++sorted.starts[token[i] + 1];
  for (int64_t t = 0; t < vocabulary; ++t) sorted.starts[t + 1] += sorted.starts[t];
  std::copy_n(sorted.starts, vocabulary, next);
  for (int64_t i = 0; i < tokens.size; ++i) sorted.places[next[token[i]]++] = static_cast<int32_t>(i);
  return sorted;
}

template <class T, class W>
void embedding_backward_as(const Context& context, const EmbeddingBackwardArgs& args) {
  using A = accumulate_t<T>;
  const RowsView& d_weight = args.d_weight.view;
  const TokenPlaces sorted = sort_tokens(args.tokens, d_weight.rows, args.workspace);
  constexpr int64_t tokens_per_piece = 8;
  parallel_ranges(context, d_weight.rows, tokens_per_piece, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      if (sorted.starts[t] == sorted.starts[t + 1] && args.d_weight.mode == GradientMode::accumulate) continue;
      for_each_chunk(d_weight.cols, [&](int64_t col, int64_t count) {
        A sums[kChunk] = {}, buffer[kChunk];
        for (int32_t i = sorted.starts[t]; i < sorted.starts[t + 1]; ++i) {
          const A* d_y = load_chunk(row<const T>(args.d_y, sorted.places[i]) + col, count, buffer);
          for (int64_t j = 0; j < count; ++j) sums[j] += d_y[j];
        }
        store_chunk(row<W>(d_weight, t) + col, sums, count, args.d_weight.mode);
      });
    }
  });
}

}  // namespace

void embedding_forward(Context& context, const EmbeddingForwardArgs& args) {
  if (args.weight.cols == 0) return;
  check_tokens(args.tokens, args.weight.rows);
  const int32_t* token = vector<const int32_t>(args.tokens);
  constexpr int64_t rows_per_piece = 64;
  visit_floating(args.weight.dtype, [&](auto type) {
    using T = decltype(type);
    parallel_ranges(context, args.y.rows, rows_per_piece, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        std::copy_n(row<const T>(args.weight, token[i]), args.y.cols, row<T>(args.y, i));
      }
    });
  });
}

void embedding_backward(Context& context, const EmbeddingBackwardArgs& args) {
  if (args.d_weight.view.cols == 0) return;
  check_tokens(args.tokens, args.d_weight.view.rows);
  visit_floating(args.d_y.dtype, [&](auto type) {
    using T = decltype(type);
    if (args.d_weight.view.dtype == args.d_y.dtype) {
      embedding_backward_as<T, T>(context, args);
    } else {
      embedding_backward_as<T, accumulate_t<T>>(context, args);
    }
  });
}

}  // namespace heddle::kernels::cpu
