#include "layers/ops/linear_attention.h"

#include <cstdint>

#include "core/runtime/error.h"
#include "kernels/attention/linear_attention.h"
#include "kernels/attention/linear_attention_workspace.h"
#include "layers/ops/check.h"
#include "layers/ops/gradient.h"
#include "layers/ops/kernel_destinations.h"

namespace heddle {
namespace {

using kernels::heads_view;
using kernels::vector_view;

const char* name(Decay decay) {
  switch (decay) {
    case Decay::none:
      return "none";
    case Decay::constant:
      return "constant";
    case Decay::learned:
      return "learned";
    case Decay::data:
      return "data";
  }
  return "";
}

void check_linear_attention(const Tape& tape, const Variable& q, const Variable& k, const Variable& v,
                            const LinearAttentionInputs& inputs, const LinearAttentionOptions& options) {
  check_heads("linear_attention", "q", q);
  check_heads("linear_attention", "k", k);
  check_heads("linear_attention", "v", v);
  const Shape& shape = q.shape();
  const int64_t heads = shape[2], key_heads = k.shape()[2];
  const DType exact = accumulate_type(q.dtype());
  check_tensor("linear_attention", "k", k, q.dtype(), {shape[0], shape[1], key_heads, shape[3]},
               "that of q but for its number of heads");
  check(heads == key_heads || (heads > 0 && key_heads > 0 && heads % key_heads == 0),
        "[linear_attention] k has {} heads, expected a divisor of the {} heads of q", key_heads, heads);
  check_tensor("linear_attention", "v", v, q.dtype(), {shape[0], shape[1], key_heads, v.shape()[3]},
               "that of k but for its own last dimension");
  const bool decays = options.decay != Decay::none;
  check(inputs.log_decay.defined() == decays, "[linear_attention] decay is {}, but log_decay is {}",
        name(options.decay), decays ? "missing" : "given");
  if (options.decay == Decay::data) {
    check_tensor("linear_attention", "log_decay", inputs.log_decay, exact, {shape[0], shape[1], heads},
                 "one for each token and head of q, in its accumulate type");
  } else if (decays) {
    check_tensor("linear_attention", "log_decay", inputs.log_decay, exact, {heads},
                 "one for each head of q, in its accumulate type");
  }
  if (decays) check_dense("linear_attention", "log_decay", inputs.log_decay);
  if (inputs.segments.defined()) {
    const Tensor& segments = inputs.segments;
    check(segments.dtype() == DType::int32 && segments.shape() == Shape{shape[0], shape[1]} && segments.is_contiguous(),
          "[linear_attention] segments is {} {}, expected int32 ({}, {}), contiguous: one for each token of q",
          name(segments.dtype()), segments.shape(), shape[0], shape[1]);
    tape.check_device(segments, "[linear_attention] the tensor segments");
  }
  if (inputs.initial_state.defined()) {
    check_tensor("linear_attention", "initial_state", inputs.initial_state, exact,
                 {shape[0], shape[2], shape[3], v.shape()[3]},
                 "(batch, heads, dim of q, dim of v), in the accumulate type");
    check_dense("linear_attention", "initial_state", inputs.initial_state);
  }
}

// Gives a kernel its workspace, which lives as long as what is returned.
template <class Args>
Tensor add_workspace(Context& context, Args& args) {
  const int64_t bytes = kernels::LinearAttentionWorkspace(args).bytes;
  if (bytes == 0) return {};
  const MemoryScope scope(context, MemoryCategory::workspace);
  Tensor workspace = Tensor::empty(context, {bytes / static_cast<int64_t>(size_of(DType::int32))}, DType::int32);
  args.workspace = vector_view(workspace);
  return workspace;
}

struct LinearAttentionNode {
  double scale;
  bool decay_per_token;
  Slot q, k, v, log_decay, initial_state, o, final_state;
  Tensor saved_q, saved_k, saved_v;
  Tensor saved_log_decay, saved_initial_state, segments;

  void backward(Tape& tape) {
    Context& context = tape.context();
    Tensor d_o = tape.take_gradient(o);
    const Tensor d_final_state = tape.take_gradient(final_state);
    if (!d_o.defined()) {  // only the final state was used
      const MemoryScope scope(context, MemoryCategory::workspace);
      const Shape& shape = saved_q.shape();
      d_o = Tensor::zeros(context, {shape[0], shape[1], shape[2], saved_v.size(3)}, saved_v.dtype());
    }
    KernelDestinations destinations(tape);
    kernels::LinearAttentionBackwardArgs args;
    args.q = heads_view(saved_q);
    args.k = heads_view(saved_k);
    args.v = heads_view(saved_v);
    args.log_decay = vector_view(saved_log_decay);
    args.decay_per_token = decay_per_token;
    args.segments = vector_view(segments);
    args.initial_state = vector_view(saved_initial_state);
    args.d_o = heads_view(d_o);
    args.d_final_state = vector_view(d_final_state);
    args.d_q = heads_destination(destinations.of(q, d_o.dtype()));
    args.d_k = heads_destination(destinations.of(k, d_o.dtype()));
    args.d_v = heads_destination(destinations.of(v, d_o.dtype()));
    args.d_log_decay = destinations.vector_of(log_decay);
    args.d_initial_state = destinations.vector_of(initial_state);
    args.scale = scale;
    const Tensor workspace = add_workspace(context, args);
    kernels::linear_attention_backward(context, args);
    destinations.finish();
  }
};

}  // namespace

LinearAttention linear_attention(Tape& tape, const Variable& q, const Variable& k, const Variable& v,
                                 const LinearAttentionInputs& inputs, const LinearAttentionOptions& options) {
  check_linear_attention(tape, q, k, v, inputs, options);
  Context& context = tape.context();
  // A constant decay is not differentiated, even if it is a leaf.
  const Slot log_decay = options.decay == Decay::constant ? Slot{} : inputs.log_decay.slot;
  const Variable differentiated{inputs.log_decay.value, log_decay};
  const bool recorded = tape.records(
      "linear_attention",
      {{"q", q}, {"k", k}, {"v", v}, {"log_decay", differentiated}, {"initial_state", inputs.initial_state}});
  const Shape& shape = q.shape();
  const int64_t value_dim = v.shape()[3];

  LinearAttention result;
  result.o = tape.output(Tensor::empty(context, {shape[0], shape[1], shape[2], value_dim}, v.dtype()), recorded);
  if (options.return_final_state) {
    const Shape state{shape[0], shape[2], shape[3], value_dim};
    result.final_state = tape.output(Tensor::empty(context, state, accumulate_type(q.dtype())), recorded);
  }
  kernels::LinearAttentionForwardArgs args;
  args.q = heads_view(q.value);
  args.k = heads_view(k.value);
  args.v = heads_view(v.value);
  args.o = heads_view(result.o.value);
  args.log_decay = vector_view(inputs.log_decay.value);
  args.decay_per_token = options.decay == Decay::data;
  args.segments = vector_view(inputs.segments);
  args.initial_state = vector_view(inputs.initial_state.value);
  args.final_state = vector_view(result.final_state.value);
  args.scale = options.scale;
  const Tensor workspace = add_workspace(context, args);
  kernels::linear_attention_forward(context, args);
  if (!recorded) return result;

  tape.record(LinearAttentionNode{.scale = options.scale,
                                  .decay_per_token = options.decay == Decay::data,
                                  .q = q.slot,
                                  .k = k.slot,
                                  .v = v.slot,
                                  .log_decay = log_decay,
                                  .initial_state = inputs.initial_state.slot,
                                  .o = result.o.slot,
                                  .final_state = result.final_state.slot,
                                  .saved_q = q.value,
                                  .saved_k = k.value,
                                  .saved_v = v.value,
                                  .saved_log_decay = inputs.log_decay.value,
                                  .saved_initial_state = inputs.initial_state.value,
                                  .segments = inputs.segments},
              {q, k, v, log_decay, inputs.initial_state}, {result.o, result.final_state});
  return result;
}

}  // namespace heddle
