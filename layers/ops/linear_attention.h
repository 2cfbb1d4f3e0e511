// Causal linear attention with a recurrent state.                                docs/layers.md#linear-attention
//   S_t = exp(log_decay) S_{t-1} + k_t v_t^T;   o_t = scale * q_t^T S_t          S: (D, Dv) per batch and head
// q, k: (B, N, H, D); v, o: (B, N, H, Dv), of one floating dtype; they may be slices of one tensor. Time and memory are
// linear in N; nothing but q, k and v is kept for backward.
#pragma once

#include "core/autograd/tape.h"

namespace heddle {

enum class Decay {
  none,      // lambda = 1
  constant,  // log_decay (H), fixed: it gets no gradient
};

struct LinearAttentionOptions {
  Decay decay = Decay::none;
  double scale = 1.0;
  bool return_final_state = true;
};

// float32 (float64 for float64 q), whatever the dtype of q. Undefined: not there.
struct LinearAttentionInputs {
  Variable log_decay;      // (H), all <= 0
  Variable initial_state;  // (B, H, D, Dv); undefined: zeros
};

struct LinearAttention {
  Variable o;
  Variable final_state;  // S after the last token, dtype of the initial state; undefined if not returned
};

// Throws Error naming the argument and both shapes when shapes or dtypes do not fit.
LinearAttention linear_attention(Tape& tape, const Variable& q, const Variable& k, const Variable& v,
                                 const LinearAttentionInputs& inputs = {}, const LinearAttentionOptions& options = {});

}  // namespace heddle
