// Causal linear attention with a recurrent state.                                docs/layers.md#linear-attention
//   S_t = exp(log_decay_t) S_{t-1} + k_t v_t^T;   o_t = scale * q_t^T S_t        S: (D, Dv) per batch and head
// q: (B, N, H, D); k: (B, N, KV, D); v: (B, N, KV, Dv); o: (B, N, H, Dv), of one floating dtype; they may be slices of
// one tensor. KV divides H: head h of q reads head h / (H / KV) of k and v. Time and memory are linear in N; nothing
// but the inputs is kept for backward.
#pragma once

#include "core/autograd/tape.h"

namespace heddle {

enum class Decay {
  none,      // lambda = 1
  constant,  // log_decay (H), fixed: it gets no gradient
  learned,   // log_decay (H)
  data,      // log_decay (B, N, H): one for each token
};

struct LinearAttentionOptions {
  Decay decay = Decay::none;
  double scale = 1.0;
  bool return_final_state = true;
};

// float32 (float64 for float64 q), whatever the dtype of q. Undefined: not there.
struct LinearAttentionInputs {
  Variable log_decay;      // (H) or (B, N, H), all <= 0; at -inf the state is forgotten, and the gradient is 0
  Variable initial_state;  // (B, H, D, Dv); undefined: zeros
  Tensor segments = {};    // (B, N), int32, never falling along N: where it changes, the state starts anew from 0
};

struct LinearAttention {
  Variable o;
  Variable final_state;  // S after the last token, dtype of the initial state; undefined if not returned
};

// Throws Error naming the argument and both shapes when shapes or dtypes do not fit.
LinearAttention linear_attention(Tape& tape, const Variable& q, const Variable& k, const Variable& v,
                                 const LinearAttentionInputs& inputs = {}, const LinearAttentionOptions& options = {});

}  // namespace heddle
