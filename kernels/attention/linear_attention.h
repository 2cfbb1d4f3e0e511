// Causal linear attention with decay, computed in chunks (never quadratic in the length).
//                                                                                docs/layers.md#linear-attention
//   S_t = exp(log_decay) S_{t-1} + k_t v_t^T;   o_t = scale * q_t^T S_t          S: (D, Dv) per batch and head
// Forward writes (=) o and final_state. Backward writes (=) or adds (+=) d_q, d_k, d_v and d_initial_state; it
// recomputes the states, so forward saves none. The last chunk may be shorter than the others. Exponentials are taken
// of non-positive numbers only, so none overflows. Source of the chunked form: Qin et al., "Lightning Attention-2",
// arXiv:2401.04658; Yang et al., arXiv:2312.06635.
#pragma once

#include "kernels/common/dispatch.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

// q and k are (B, N, H, D), v and o are (B, N, H, Dv), all of one dtype. log_decay is (H) of the accumulate type, all
// <= 0; empty means no decay. States are (B, H, D, Dv), row-major, of the accumulate type; an empty initial state is
// zero and an empty final state is not wanted.
struct LinearAttentionForwardArgs {
  HeadsView q, k, v, o;
  VectorView log_decay;
  VectorView initial_state, final_state;
  double scale = 1.0;
};

struct LinearAttentionBackwardArgs {
  HeadsView q, k, v;
  VectorView log_decay;
  VectorView initial_state;
  HeadsView d_o;
  VectorView d_final_state;  // or empty
  HeadsDestination d_q, d_k, d_v;
  VectorDestination d_initial_state;
  double scale = 1.0;
};

HEDDLE_KERNEL(linear_attention_forward, LinearAttentionForwardArgs);
HEDDLE_KERNEL(linear_attention_backward, LinearAttentionBackwardArgs);

}  // namespace heddle::kernels
