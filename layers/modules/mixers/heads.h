// What mixers with heads have in common: how their numbers of heads are read, what they take, how their last projection
// starts, and how a state saves its position.
#pragma once

#include <cstdint>
#include <string_view>

#include "layers/modules/module.h"

namespace heddle {

// Reads or writes `heads`, which must be given and divide dim.
void describe_heads(ConfigFields& fields, const ModelSize& model, int64_t& heads);
// Reads or writes `kv_heads`, the heads of k and v, which must divide `heads`; 0: as many as `heads`.
void describe_kv_heads(ConfigFields& fields, int64_t heads, int64_t& kv_heads);

// The standard deviation of the weights of a branch's last projection, which reads `in` features. The branches of all
// blocks, a mixer and a channel each, add up: with this deviation the sum keeps its size for any number of layers
// (Radford et al., GPT-2).
double out_init_std(const BlockPlace& place, int64_t in);

// Throws Error unless x is (batch, length, dim). `type` is the name of the mixer.
void check_mixer_input(std::string_view type, const Variable& x, int64_t dim);

// Throws Error when there are both: segments are of documents that begin in this pass.
void check_no_state_beside(std::string_view type, const MixerState* state, const Tensor& segments);

// The position of the next token as MixerState::save() gives it: an int32 tensor of one element.
Tensor saved_position(Context& context, int64_t position);

}  // namespace heddle
