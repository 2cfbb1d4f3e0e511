#include "layers/modules/mixers/recurrent_mixer.h"

#include <utility>

#include "core/runtime/error.h"
#include "core/tensor/transfer.h"
#include "layers/modules/mixers/heads.h"
#include "layers/ops/activation.h"
#include "layers/ops/view.h"

namespace heddle {

// The recurrent state of each head, and the position of the next token. Its tensors are replaced, never written to, so
// that a copy stays what it was; those of a state in place are written to, and the position lies on the device.
struct RecurrentMixer::State : MixerState {
  Tensor state;     // (B, H, D, Dv), accumulate type; undefined: zeros
  Tensor key_sums;  // (B, H, D, 1), the same
  TokensBefore position;

  bool is_in_place() const { return position.on_device.defined(); }

  std::map<std::string, Tensor> save(Context& context) const override {
    const auto kept = [&](const Tensor& tensor) { return is_in_place() ? clone(context, tensor) : tensor; };
    std::map<std::string, Tensor> tensors;
    tensors["position"] = is_in_place() ? kept(position.on_device) : saved_position(context, position.count);
    if (state.defined()) tensors["state"] = kept(state);
    if (key_sums.defined()) tensors["key_sums"] = kept(key_sums);
    return tensors;
  }

  std::unique_ptr<MixerState> in_place(Context& context, const Tensor& tokens_before) const override {
    if (!state.defined()) return nullptr;
    auto copied = std::make_unique<State>();
    copied->state = clone(context, state);
    if (key_sums.defined()) copied->key_sums = clone(context, key_sums);
    copied->position.on_device = tokens_before;
    return copied;
  }

  // Takes the place of the state before.
  void become(Context& context, State next, int64_t tokens) {
    if (is_in_place()) {
      copy(context, state, next.state);
      if (key_sums.defined()) copy(context, key_sums, next.key_sums);
      return;
    }
    next.position.count += tokens;
    *this = std::move(next);
  }
};

namespace {

// linear_attention from `state` on, in whose place the state after the last token comes; null: from zeros on, in each
// of the segments.
Variable attend_from(Tensor* state, Tape& tape, const Variable& q, const Variable& k, const Variable& v,
                     const Variable& log_decay, LinearAttentionOptions options, const Tensor& segments) {
  LinearAttentionInputs inputs;
  inputs.log_decay = log_decay;
  inputs.segments = segments;
  if (state != nullptr) inputs.initial_state = tape.constant(*state);
  options.return_final_state = state != nullptr;
  LinearAttention attention = linear_attention(tape, q, k, v, inputs, options);
  if (state != nullptr) *state = attention.final_state.value;
  return attention.o;
}

}  // namespace

RecurrentMixer::RecurrentMixer(std::string type, const BlockPlace& place, int64_t heads, KeySums key_sums)
    : type_(std::move(type)), dim_(place.dim), heads_(heads), key_sums_(key_sums) {
  check_head_count(type_, dim_, heads);
}

std::unique_ptr<MixerState> RecurrentMixer::make_state() const { return std::make_unique<State>(); }

std::unique_ptr<MixerState> RecurrentMixer::load_state(Context& context,
                                                       const std::map<std::string, Tensor>& tensors) const {
  auto loaded = std::make_unique<State>();
  for (const auto& [name, tensor] : tensors) {
    if (name == "position") continue;
    const bool has_heads = tensor.rank() == 4 && tensor.size(1) == heads_;
    if (name == "state" && has_heads) {
      loaded->state = tensor;
    } else if (name == "key_sums" && has_heads && key_sums_ == KeySums::kept) {
      loaded->key_sums = tensor;
    } else {
      fail("[{}] a state has no tensor {} of shape {}", type_, name, tensor.shape());
    }
  }
  loaded->position = loaded_position(type_, context, tensors);
  check(key_sums_ == KeySums::none || loaded->state.defined() == loaded->key_sums.defined(),
        "[{}] a state needs both of its tensors state and key_sums, or neither", type_);
  return loaded;
}

Variable RecurrentMixer::forward(Tape& tape, const Variable& x, MixerState* state, const Tensor& segments) const {
  check_mixer_input(type_, x, dim_);
  check_state_use(type_, tape, state, segments);
  if (state == nullptr) return mix(tape, x, nullptr, segments);
  auto* const own = dynamic_cast<State*>(state);
  check(own != nullptr, "[{}] the state is that of another mixer", type_);
  State next = *own;
  Variable y = mix(tape, x, &next, segments);
  own->become(tape.context(), std::move(next), x.shape()[1]);
  return y;
}

TokensBefore RecurrentMixer::tokens_before(const State* state) {
  return state != nullptr ? state->position : TokensBefore();
}

Variable RecurrentMixer::attend(Tape& tape, const Variable& q, const Variable& k, const Variable& v,
                                const Variable& log_decay, const LinearAttentionOptions& options, State* state,
                                const Tensor& segments) {
  return attend_from(state != nullptr ? &state->state : nullptr, tape, q, k, v, log_decay, options, segments);
}

Variable RecurrentMixer::attend_to_ones(Tape& tape, const Variable& q, const Variable& k, const Variable& log_decay,
                                        const LinearAttentionOptions& options, State* state, const Tensor& segments) {
  const Variable zeros =
      tape.constant(Tensor::zeros(tape.context(), {k.shape()[0], k.shape()[1], k.shape()[2], 1}, k.dtype()));
  const Variable ones = activation(tape, zeros, Activation::elu1);  // exp(0)
  const Variable sums =
      attend_from(state != nullptr ? &state->key_sums : nullptr, tape, q, k, ones, log_decay, options, segments);
  return reshape(tape, sums, q.shape().part(0, 3));
}

}  // namespace heddle
