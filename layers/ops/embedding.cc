#include "layers/ops/embedding.h"

#include <cstdint>

#include "kernels/dense/embedding.h"
#include "layers/ops/check.h"
#include "layers/ops/gradient.h"

namespace heddle {
namespace {

using kernels::rows_view;
using kernels::vector_view;

void check_embedding(const Tensor& tokens, const Variable& weight) {
  check(tokens.dtype() == DType::int32 && tokens.is_contiguous(),
        "[embedding] tokens are {} {} of strides {}, expected dense int32", name(tokens.dtype()),
        to_string(tokens.shape()), to_string(tokens.strides()));
  check_rows("embedding", "weight", weight);
  check(weight.value.rank() == 2, "[embedding] weight has shape {}, expected (vocabulary, dim)",
        to_string(weight.shape()));
  check(weight.value.size(0) > 0 || tokens.numel() == 0,
        "[embedding] weight has shape {}, expected at least one row for tokens {}", to_string(weight.shape()),
        to_string(tokens.shape()));
}

// The table as a kernel sees it. It has its rows where it has no columns too: tokens are held to them.
kernels::RowsView table_view(const Tensor& table) {
  kernels::RowsView view = rows_view(table);
  view.rows = table.size(0);
  return view;
}

struct EmbeddingNode {
  Slot weight, y;
  Tensor tokens;

  void backward(Tape& tape) {
    Context& context = tape.context();
    const Tensor d_y = tape.take_gradient(y);
    const GradientDestination d_weight = tape.destination(weight);
    const MemoryScope scope(context, MemoryCategory::workspace);
    const int64_t numbers = kernels::embedding_workspace(tokens.numel(), d_weight.tensor.size(0));
    const Tensor workspace = Tensor::empty(context, {numbers}, DType::int32);
    kernels::embedding_backward(
        context,
        {vector_view(tokens), rows_view(d_y), {table_view(d_weight.tensor), d_weight.mode}, vector_view(workspace)});
  }
};

}  // namespace

Variable embedding(Tape& tape, const Tensor& tokens, const Variable& weight) {
  check_embedding(tokens, weight);
  const bool recorded = tape.records({&weight});
  Shape shape = tokens.shape();
  shape.append(weight.shape()[1]);
  Variable y = tape.output(Tensor::empty(tape.context(), shape, weight.dtype()), recorded);
  kernels::embedding_forward(tape.context(), {vector_view(tokens), table_view(weight.value), rows_view(y.value)});
  if (!recorded) return y;

  tape.record(EmbeddingNode{.weight = weight.slot, .y = y.slot, .tokens = tokens}, {weight}, {y});
  return y;
}

}  // namespace heddle
