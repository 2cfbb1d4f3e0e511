// Causal linear attention with decay, computed in chunks (never quadratic in the length).
//                                                                                docs/layers.md#linear-attention
//   S_t = exp(log_decay_t) S_{t-1} + k_t v_t^T;   o_t = scale * q_t^T S_t        S: (D, Dv) per batch and head
// Where segments[t] != segments[t-1], S_{t-1} counts as 0. A head of q reads the head h / (heads of q / heads of k) of
// k and v. Forward writes (=) o and final_state. Backward writes (=) or adds (+=) d_q, d_k, d_v, d_log_decay and
// d_initial_state; it recomputes the states, so forward saves none. The last chunk may be shorter than the others.
// Exponentials are taken of non-positive numbers, on a GPU also of numbers up to 6, so none overflows. Source of the
// chunked form: Qin et al., "Lightning Attention-2", arXiv:2401.04658; Yang et al., arXiv:2312.06635.
#pragma once

#include "kernels/common/dispatch.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

// q is (B, N, H, D), k (B, N, KV, D), v (B, N, KV, Dv), o (B, N, H, Dv), all of one dtype; KV divides H. log_decay is
// (H), or (B, N, H) with decay_per_token, contiguous, of the accumulate type, all <= 0; empty means no decay. segments
// is (B, N), int32, or empty. States are (B, H, D, Dv), row-major, of the accumulate type; an empty initial state is
// zero and an empty final state is not wanted. The workspace has as many bytes as LinearAttentionWorkspace says.
struct LinearAttentionForwardArgs {
  HeadsView q, k, v, o;
  VectorView log_decay;
  bool decay_per_token = false;
  VectorView segments;
  VectorView initial_state, final_state;
  VectorView workspace;
  double scale = 1.0;
};

struct LinearAttentionBackwardArgs {
  HeadsView q, k, v;
  VectorView log_decay;
  bool decay_per_token = false;
  VectorView segments;
  VectorView initial_state;
  HeadsView d_o;
  VectorView d_final_state;  // or empty
  HeadsDestination d_q, d_k, d_v;
  VectorDestination d_log_decay;  // the shape of log_decay; 0 where lambda is 0
  VectorDestination d_initial_state;
  VectorView workspace;
  double scale = 1.0;
};

HEDDLE_KERNEL(linear_attention_forward, LinearAttentionForwardArgs);
HEDDLE_KERNEL(linear_attention_backward, LinearAttentionBackwardArgs);

}  // namespace heddle::kernels
