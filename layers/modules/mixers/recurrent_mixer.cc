#include "layers/modules/mixers/recurrent_mixer.h"

#include <utility>

#include "core/runtime/error.h"
#include "core/tensor/transfer.h"
#include "layers/modules/mixers/heads.h"

namespace heddle {
namespace {

// The recurrent state of each head, and the position of the next token.
struct RecurrentState : MixerState {
  Tensor state;  // (B, H, D, Dv), accumulate type; undefined: zeros
  int64_t position = 0;

  std::map<std::string, Tensor> save(Context& context) const override {
    std::map<std::string, Tensor> tensors{{"position", saved_position(context, position)}};
    if (state.defined()) tensors["state"] = state;
    return tensors;
  }
};

}  // namespace

RecurrentMixer::RecurrentMixer(std::string type, const BlockPlace& place, int64_t heads)
    : type_(std::move(type)), dim_(place.dim), heads_(heads) {
  check(heads >= 1 && dim_ % heads == 0, "[{}] heads is {}, expected a divisor of dim {}", type_, heads, dim_);
}

std::unique_ptr<MixerState> RecurrentMixer::make_state() const { return std::make_unique<RecurrentState>(); }

std::unique_ptr<MixerState> RecurrentMixer::load_state(Context& context,
                                                       const std::map<std::string, Tensor>& tensors) const {
  auto loaded = std::make_unique<RecurrentState>();
  for (const auto& [name, tensor] : tensors) {
    if (name == "position" && tensor.numel() == 1) {
      loaded->position = static_cast<int64_t>(read_values(context, tensor)[0]);
    } else if (name == "state" && tensor.rank() == 4 && tensor.size(1) == heads_) {
      loaded->state = tensor;
    } else {
      fail("[{}] a state has no tensor {} of shape {}", type_, name, to_string(tensor.shape()));
    }
  }
  check(tensors.contains("position"), "[{}] a state needs its position", type_);
  return loaded;
}

void RecurrentMixer::check_input(const Variable& x) const { check_mixer_input(type_, x, dim_); }

int64_t RecurrentMixer::position(const MixerState* state) const {
  if (state == nullptr) return 0;
  const auto* const own = dynamic_cast<const RecurrentState*>(state);
  check(own != nullptr, "[{}] the state is that of another mixer", type_);
  return own->position;
}

Variable RecurrentMixer::attend(Tape& tape, const Variable& q, const Variable& k, const Variable& v,
                                const Variable& log_decay, LinearAttentionOptions options, MixerState* state) const {
  auto* const own = dynamic_cast<RecurrentState*>(state);
  LinearAttentionInputs inputs;
  inputs.log_decay = log_decay;
  if (own != nullptr) inputs.initial_state = tape.constant(own->state);
  options.return_final_state = own != nullptr;
  LinearAttention attention = linear_attention(tape, q, k, v, inputs, options);
  if (own != nullptr) {
    own->state = attention.final_state.value;
    own->position += q.shape()[1];
  }
  return attention.o;
}

}  // namespace heddle
