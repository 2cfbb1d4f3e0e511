// Softmax attention over the keys that a token may see.                         docs/layers.md#softmax-attention
//   p_tj = exp(scale q_t . k_j - lse_t),  lse_t = log sum_j exp(scale q_t . k_j);   o_t = sum_j p_tj v_j
// where j takes the keys that query t sees. Forward writes (=) o and, if wanted, lse. Backward computes the
// probabilities again from lse and writes (=) or adds (+=) first d_q, then d_k and d_v. Memory is linear in the
// lengths. Source: Dao et al., "FlashAttention", arXiv:2205.14135.
#pragma once

#include <cstdint>

#include "kernels/common/dispatch.h"
#include "kernels/common/views.h"

namespace heddle::kernels {

// q is (B, N, H, D), k is (B, M, KV, D), v is (B, M, KV, Dv), all of one dtype. KV divides H: head h of q uses head
// h / (H / KV) of k and v. Query t stands at position M - N + t of the keys.
struct SoftmaxAttentionInputs {
  HeadsView q, k, v;
  VectorView segments;  // int32 (B, M), non-decreasing along M: a query sees its own segment only. Or empty
  bool causal = true;   // a query sees no key after its position; then M >= N, and also with segments
  int64_t window = 0;   // above 0, and then causal: a query sees the last `window` keys up to its position
  double scale = 1.0;
};

struct SoftmaxAttentionForwardArgs {
  SoftmaxAttentionInputs inputs;
  HeadsView o;     // (B, N, H, Dv)
  VectorView lse;  // (B, H, N) of the accumulate type, or empty
};

struct SoftmaxAttentionBackwardArgs {
  SoftmaxAttentionInputs inputs;
  HeadsView o;  // what forward wrote; kernels that round P anyway take D = d_o . o from it
  VectorView lse;
  HeadsView d_o;
  HeadsDestination d_q, d_k, d_v;
  VectorView inverse_sums, row_products;  // workspaces, as lse
  VectorView query_sums;                  // workspace of softmax_attention_query_sums() floats
};

// Floats in which a backward with d_q sums it in device memory. GPUs use them; they are allocated on every device, so
// that all count the same bytes.
inline int64_t softmax_attention_query_sums(const SoftmaxAttentionInputs& inputs) {
  constexpr int64_t kRows = 128;  // lengths are rounded up to a multiple
  const HeadsView& q = inputs.q;
  if (q.dtype != DType::bfloat16 || q.dim != inputs.v.dim || (q.dim != 64 && q.dim != 128)) return 0;
  return q.batch * q.heads * ((q.length + kRows - 1) / kRows * kRows) * q.dim;
}

HEDDLE_KERNEL(softmax_attention_forward, SoftmaxAttentionForwardArgs);
HEDDLE_KERNEL(softmax_attention_backward, SoftmaxAttentionBackwardArgs);

}  // namespace heddle::kernels
