#include "layers/ops/embedding.h"

#include <cstdint>

#include "kernels/dense/embedding.h"
#include "layers/ops/check.h"
#include "layers/ops/gradient.h"

namespace heddle {
namespace {

using kernels::rows_view;
using kernels::vector_view;

void check_embedding(const Tape& tape, const Tensor& tokens, const Variable& weight, const EmbeddingOptions& options) {
  check(tokens.dtype() == DType::int32 && tokens.is_contiguous(),
        "[embedding] tokens are {} {} of strides {}, expected dense int32", name(tokens.dtype()), tokens.shape(),
        tokens.strides());
  tape.check_device(tokens, "[embedding] the tensor tokens");
  check_rows("embedding", "weight", weight);
  check(weight.value.rank() == 2, "[embedding] weight has shape {}, expected (vocabulary, dim)", weight.shape());
  check(weight.value.size(0) > 0 || tokens.numel() == 0,
        "[embedding] weight has shape {}, expected at least one row for tokens {}", weight.shape(), tokens.shape());
  if (!options.padding_idx) return;
  check(*options.padding_idx >= 0 && *options.padding_idx < weight.value.size(0),
        "[embedding] padding_idx is {}, expected one of [0, {}): the vocabulary", *options.padding_idx,
        weight.value.size(0));
}

// The table as a kernel sees it. It has its rows where it has no columns too: tokens are held to them.
kernels::RowsView table_view(const Tensor& table) {
  kernels::RowsView view = rows_view(table);
  view.rows = table.size(0);
  return view;
}

struct EmbeddingNode {
  EmbeddingOptions options;
  Slot weight, y;
  Tensor tokens;

  void backward(Tape& tape) {
    Context& context = tape.context();
    const Tensor d_y = tape.take_gradient(y);
    const GradientDestination d_weight = tape.destination(weight);
    const MemoryScope scope(context, MemoryCategory::workspace);
    const int64_t numbers = kernels::embedding_workspace(tokens.numel(), d_weight.tensor.size(0));
    const Tensor workspace = Tensor::empty(context, {numbers}, DType::int32);
    kernels::embedding_backward(context, {.tokens = vector_view(tokens),
                                          .d_y = rows_view(d_y),
                                          .d_weight = {table_view(d_weight.tensor), d_weight.mode},
                                          .workspace = vector_view(workspace),
                                          .padding_idx = options.padding_idx.value_or(-1)});
  }
};

}  // namespace

Variable embedding(Tape& tape, const Tensor& tokens, const Variable& weight, const EmbeddingOptions& options) {
  check_embedding(tape, tokens, weight, options);
  const bool recorded = tape.records("embedding", {{"weight", weight}});
  Shape shape = tokens.shape();
  shape.append(weight.shape()[1]);
  Variable y = tape.output(Tensor::empty(tape.context(), shape, weight.dtype()), recorded);
  kernels::embedding_forward(tape.context(), {vector_view(tokens), table_view(weight.value), rows_view(y.value)});
  if (!recorded) return y;

  tape.record(EmbeddingNode{.options = options, .weight = weight.slot, .y = y.slot, .tokens = tokens}, {weight}, {y});
  return y;
}

}  // namespace heddle
