// Softmax attention: causal or not, within a window, within segments, with a key/value cache.
//                                                                                docs/layers.md#softmax-attention
//   o_t = sum_j softmax_j(scale * q_t . k_j) v_j                                 j: the keys that token t sees
// q: (B, N, H, D); k: (B, M, KV, D); v: (B, M, KV, Dv); o: (B, N, H, Dv), of one floating dtype; they may be slices of
// one tensor. KV divides H, and head h of q uses head h / (H / KV) of k and v. Memory is linear in N and M. Token t of
// q stands at position M - N + t of k and v, so that with a cache of earlier keys and values q holds the last tokens
// only.
#pragma once

#include <cstdint>
#include <optional>

#include "core/autograd/tape.h"

namespace heddle {

struct SoftmaxAttentionOptions {
  bool causal = true;                // a token sees no token after it; then M >= N
  int64_t window = 0;                // above 0: a token sees the last `window` tokens, itself included; needs causal
  std::optional<double> scale = {};  // 1 / sqrt(D) when it is not given
};

// `segments`, or undefined: int32 (B, M), non-decreasing along M. A token sees tokens of its own segment only; then
// M >= N. Throws Error naming the argument and both shapes when shapes or dtypes do not fit.
Variable softmax_attention(Tape& tape, const Variable& q, const Variable& k, const Variable& v,
                           const Variable& segments = {}, const SoftmaxAttentionOptions& options = {});

}  // namespace heddle
