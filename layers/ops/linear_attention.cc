#include "layers/ops/linear_attention.h"

#include <cstdint>

#include "core/runtime/error.h"
#include "kernels/attention/linear_attention.h"
#include "layers/ops/gradient.h"

namespace heddle {
namespace {

using kernels::heads_view;
using kernels::vector_view;

void check_input(const char* what, const Variable& found, DType dtype, const Shape& shape, const char* because) {
  check(found.shape() == shape && found.dtype() == dtype, "[linear_attention] {} is {} {}, expected {} {}: {}", what,
        name(found.dtype()), to_string(found.shape()), name(dtype), to_string(shape), because);
}

void check_heads(const char* what, const Variable& x) {
  check(x.defined(), "[linear_attention] {} is missing", what);
  check(is_floating(x.dtype()) && x.value.rank() == 4,
        "[linear_attention] {} is {} {}, expected real numbers (batch, length, heads, dim)", what, name(x.dtype()),
        to_string(x.shape()));
  check(x.shape()[3] > 0, "[linear_attention] {} has shape {}, expected at least one feature", what,
        to_string(x.shape()));
}

void check_linear_attention(const Variable& q, const Variable& k, const Variable& v,
                            const LinearAttentionInputs& inputs, const LinearAttentionOptions& options) {
  check_heads("q", q);
  check_heads("k", k);
  check_heads("v", v);
  const Shape& shape = q.shape();
  const DType exact = accumulate_type(q.dtype());
  check_input("k", k, q.dtype(), shape, "that of q");
  check_input("v", v, q.dtype(), {shape[0], shape[1], shape[2], v.shape()[3]},
              "that of q but for its own last dimension");
  const bool decays = options.decay != Decay::none;
  check(inputs.log_decay.defined() == decays, "[linear_attention] decay is {}, but log_decay is {}",
        decays ? "constant" : "none", decays ? "missing" : "given");
  if (decays) {
    check_input("log_decay", inputs.log_decay, exact, {shape[2]}, "one for each head of q, in its accumulate type");
  }
  if (inputs.initial_state.defined()) {
    check_input("initial_state", inputs.initial_state, exact, {shape[0], shape[2], shape[3], v.shape()[3]},
                "(batch, heads, dim of q, dim of v), in the accumulate type");
    check(inputs.initial_state.value.is_contiguous(), "[linear_attention] initial_state is not contiguous");
  }
}

struct LinearAttentionNode {
  double scale;
  Slot q, k, v, initial_state, o, final_state;
  Tensor saved_q, saved_k, saved_v;
  Tensor log_decay, saved_initial_state;

  void backward(Tape& tape) {
    Context& context = tape.context();
    Tensor d_o = tape.take_gradient(o);
    const Tensor d_final_state = tape.take_gradient(final_state);
    if (!d_o.defined()) {  // only the final state was used
      const MemoryScope scope(context, MemoryCategory::workspace);
      const Shape& shape = saved_q.shape();
      d_o = Tensor::zeros(context, {shape[0], shape[1], shape[2], saved_v.size(3)}, saved_v.dtype());
    }
    const auto destination = [&](Slot slot) { return heads_destination(tape.destination(slot)); };
    kernels::LinearAttentionBackwardArgs args;
    args.q = heads_view(saved_q);
    args.k = heads_view(saved_k);
    args.v = heads_view(saved_v);
    args.log_decay = vector_view(log_decay);
    args.initial_state = vector_view(saved_initial_state);
    args.d_o = heads_view(d_o);
    args.d_final_state = vector_view(d_final_state);
    // One value may be several inputs: the kernel writes d_q, d_k, d_v in this order.
    args.d_q = destination(q);
    args.d_k = destination(k);
    args.d_v = destination(v);
    args.d_initial_state = vector_destination(tape.destination(initial_state));
    args.scale = scale;
    kernels::linear_attention_backward(context, args);
  }
};

}  // namespace

LinearAttention linear_attention(Tape& tape, const Variable& q, const Variable& k, const Variable& v,
                                 const LinearAttentionInputs& inputs, const LinearAttentionOptions& options) {
  check_linear_attention(q, k, v, inputs, options);
  Context& context = tape.context();
  const bool recorded = tape.records({&q, &k, &v, &inputs.initial_state});
  const Shape& shape = q.shape();
  const int64_t value_dim = v.shape()[3];

  LinearAttention result;
  result.o = tape.output(Tensor::empty(context, {shape[0], shape[1], shape[2], value_dim}, v.dtype()), recorded);
  if (options.return_final_state) {
    const Shape state{shape[0], shape[2], shape[3], value_dim};
    result.final_state = tape.output(Tensor::empty(context, state, accumulate_type(q.dtype())), recorded);
  }
  kernels::linear_attention_forward(context, {.q = heads_view(q.value),
                                              .k = heads_view(k.value),
                                              .v = heads_view(v.value),
                                              .o = heads_view(result.o.value),
                                              .log_decay = vector_view(inputs.log_decay.value),
                                              .initial_state = vector_view(inputs.initial_state.value),
                                              .final_state = vector_view(result.final_state.value),
                                              .scale = options.scale});
  if (!recorded) return result;

  tape.record(LinearAttentionNode{.scale = options.scale,
                                  .q = q.slot,
                                  .k = k.slot,
                                  .v = v.slot,
                                  .initial_state = inputs.initial_state.slot,
                                  .o = result.o.slot,
                                  .final_state = result.final_state.slot,
                                  .saved_q = q.value,
                                  .saved_k = k.value,
                                  .saved_v = v.value,
                                  .log_decay = inputs.log_decay.value,
                                  .saved_initial_state = inputs.initial_state.value},
              {q, k, v, inputs.initial_state}, {result.o, result.final_state});
  return result;
}

}  // namespace heddle
