// What mixers with heads have in common: how their numbers of heads are read, what they take, how their last projection
// starts, and how a state saves its position.
#pragma once

#include <cstdint>
#include <map>
#include <string>
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

// Each of the following checks throws Error unless what it says holds. `type` is the name of the mixer.
// The first three are about options, which no config has checked where a mixer is built in C++.
// heads divides dim.
void check_head_count(std::string_view type, int64_t dim, int64_t heads);
// kv_heads divides heads, or is 0: as many.
void check_kv_heads(std::string_view type, int64_t heads, int64_t kv_heads);
// The option is a number above 0.
void check_positive(std::string_view type, std::string_view option, double found);

// x is (batch, length, dim).
void check_mixer_input(std::string_view type, const Variable& x, int64_t dim);
// Nothing is recorded beside a state, through which no gradient flows, and there are no segments, which are of
// documents that begin in this pass. `state` may be null.
void check_state_use(std::string_view type, const Tape& tape, const MixerState* state, const Tensor& segments);

// The position of the next token as MixerState::save() gives it, `position`: an int32 tensor of one element.
Tensor saved_position(Context& context, int64_t position);
// The position in the saved tensors of a state of a mixer of this type. Throws Error when it is missing, is not one
// int32, or is negative.
int64_t loaded_position(std::string_view type, Context& context, const std::map<std::string, Tensor>& tensors);

}  // namespace heddle
