#include "layers/ops/softmax_attention.h"

#include <cmath>
#include <cstdint>

#include "core/runtime/error.h"
#include "kernels/attention/softmax_attention.h"
#include "layers/ops/check.h"
#include "layers/ops/gradient.h"
#include "layers/ops/kernel_destinations.h"

namespace heddle {
namespace {

using kernels::heads_view;
using kernels::softmax_attention_query_sums;
using kernels::vector_view;

void check_softmax_attention(const Tape& tape, const Variable& q, const Variable& k, const Variable& v,
                             const Variable& segments, const SoftmaxAttentionOptions& options) {
  check_heads("softmax_attention", "q", q);
  check_heads("softmax_attention", "k", k);
  check_heads("softmax_attention", "v", v);
  const int64_t batch = q.shape()[0], length = q.shape()[1], heads = q.shape()[2];
  const int64_t keys = k.shape()[1], kv_heads = k.shape()[2];
  check_tensor("softmax_attention", "k", k, q.dtype(), {batch, keys, kv_heads, q.shape()[3]},
               "that of q but for its own length and number of heads");
  check_tensor("softmax_attention", "v", v, q.dtype(), {batch, keys, kv_heads, v.shape()[3]},
               "that of k but for its own last dimension");
  check(kv_heads > 0 ? heads % kv_heads == 0 : heads == 0,
        "[softmax_attention] k has {} heads in shape {}, expected a number that divides the {} heads of q {}", kv_heads,
        k.shape(), heads, q.shape());
  check(options.window >= 0, "[softmax_attention] window is {}, expected 0, for none, or more", options.window);
  check(options.window == 0 || options.causal, "[softmax_attention] window is {}, expected 0: causal is false",
        options.window);
  check(keys >= length || !(options.causal || segments.defined()),
        "[softmax_attention] k has {} tokens in shape {}, expected at least the {} of q {}: {}", keys, k.shape(),
        length, q.shape(), options.causal ? "causal is true" : "there are segments");
  if (!segments.defined()) return;
  check_tensor("softmax_attention", "segments", segments, DType::int32, {batch, keys}, "(batch, length of k)");
  check_dense("softmax_attention", "segments", segments);
  tape.check_device(segments.value, "[softmax_attention] the tensor segments");
}

kernels::SoftmaxAttentionInputs kernel_inputs(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& segments,
                                              const SoftmaxAttentionOptions& options) {
  return {.q = heads_view(q),
          .k = heads_view(k),
          .v = heads_view(v),
          .segments = vector_view(segments),
          .causal = options.causal,
          .window = options.window,
          .scale = options.scale.value_or(1.0 / std::sqrt(static_cast<double>(q.size(3))))};
}

struct SoftmaxAttentionNode {
  SoftmaxAttentionOptions options;
  Slot q, k, v, o;
  Tensor saved_q, saved_k, saved_v, segments, saved_o, lse;

  void backward(Tape& tape) {
    Context& context = tape.context();
    const Tensor d_o = tape.take_gradient(o);
    const auto workspace = [&](const Shape& shape) {
      const MemoryScope scope(context, MemoryCategory::workspace);
      return Tensor::empty(context, shape, lse.dtype());
    };
    KernelDestinations destinations(tape);
    const Tensor inverse_sums = workspace(lse.shape()), row_products = workspace(lse.shape());
    kernels::SoftmaxAttentionBackwardArgs args;
    args.inputs = kernel_inputs(saved_q, saved_k, saved_v, segments, options);
    args.o = heads_view(saved_o);
    args.lse = vector_view(lse);
    args.d_o = heads_view(d_o);
    args.d_q = heads_destination(destinations.of(q, d_o.dtype()));
    args.d_k = heads_destination(destinations.of(k, d_o.dtype()));
    args.d_v = heads_destination(destinations.of(v, d_o.dtype()));
    args.inverse_sums = vector_view(inverse_sums);
    args.row_products = vector_view(row_products);
    const Tensor query_sums = workspace({args.d_q ? softmax_attention_query_sums(args.inputs) : 0});
    args.query_sums = vector_view(query_sums);
    kernels::softmax_attention_backward(context, args);
    destinations.finish();
  }
};

}  // namespace

Variable softmax_attention(Tape& tape, const Variable& q, const Variable& k, const Variable& v,
                           const Variable& segments, const SoftmaxAttentionOptions& options) {
  check_softmax_attention(tape, q, k, v, segments, options);
  Context& context = tape.context();
  const bool recorded = tape.records("softmax_attention", {{"q", q}, {"k", k}, {"v", v}});
  const Shape& shape = q.shape();
  const Variable o =
      tape.output(Tensor::empty(context, {shape[0], shape[1], shape[2], v.shape()[3]}, q.dtype()), recorded);
  Tensor lse;
  if (recorded) lse = Tensor::empty(context, {shape[0], shape[2], shape[1]}, accumulate_type(q.dtype()));
  kernels::softmax_attention_forward(context,
                                     {.inputs = kernel_inputs(q.value, k.value, v.value, segments.value, options),
                                      .o = heads_view(o.value),
                                      .lse = vector_view(lse)});
  if (!recorded) return o;

  tape.record(SoftmaxAttentionNode{.options = options,
                                   .q = q.slot,
                                   .k = k.slot,
                                   .v = v.slot,
                                   .o = o.slot,
                                   .saved_q = q.value,
                                   .saved_k = k.value,
                                   .saved_v = v.value,
                                   .segments = segments.value,
                                   .saved_o = o.value,
                                   .lse = lse},
              {q, k, v}, {o});
  return o;
}

}  // namespace heddle
