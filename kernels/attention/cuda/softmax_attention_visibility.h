// Which queries see which keys, on the device. The keys that a query sees are one range, and so are the queries that
// see a key; neither end of such a range moves back from one token to the next.
#pragma once

#include <cstdint>

#include "kernels/attention/softmax_attention.h"
#include "kernels/common/types.h"

namespace heddle::kernels::cuda::softmax {

// Tokens [begin, end).
struct Range {
  int begin, end;

  __device__ __forceinline__ bool contains(int token) const { return token >= begin && token < end; }
};

// Blocks of `size` that cover `count` tokens.
__host__ __device__ __forceinline__ int blocks_of(int count, int size) { return (count + size - 1) / size; }

// The first of `count` numbers that do not decrease that is `value` or more (AFTER: more than it); else `count`.
template <bool AFTER>
__device__ __forceinline__ int first_not_before(const int32_t* numbers, int count, int32_t value) {
  int begin = 0, end = count;
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    if (AFTER ? numbers[middle] <= value : numbers[middle] < value) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// The tokens of the segment of the token at `position`.
__device__ __forceinline__ Range segment_of(const SoftmaxAttentionInputs& inputs, int64_t batch, int position) {
  const int keys = static_cast<int>(inputs.k.length);
  if (!inputs.segments) return {0, keys};
  const int32_t* segments = vector<const int32_t>(inputs.segments) + batch * keys;
  const int32_t own = segments[position];
  return {first_not_before<false>(segments, keys, own), first_not_before<true>(segments, keys, own)};
}

// The keys that a query sees.
__device__ __forceinline__ Range keys_of(const SoftmaxAttentionInputs& inputs, int64_t batch, int query) {
  if (!inputs.causal && !inputs.segments) return {0, static_cast<int>(inputs.k.length)};
  const int position = static_cast<int>(inputs.k.length - inputs.q.length) + query;
  Range keys = segment_of(inputs, batch, position);
  if (inputs.causal) keys.end = min(keys.end, position + 1);
  if (inputs.window > 0) keys.begin = static_cast<int>(max(int64_t{keys.begin}, position + 1 - inputs.window));
  return keys;
}

// The queries that see a key.
__device__ __forceinline__ Range queries_of(const SoftmaxAttentionInputs& inputs, int64_t batch, int key) {
  const int64_t queries = inputs.q.length, before = inputs.k.length - queries;  // keys before the first query
  if (!inputs.causal && !inputs.segments) return {0, static_cast<int>(queries)};
  const Range segment = segment_of(inputs, batch, key);
  int64_t begin = segment.begin, end = segment.end;
  if (inputs.causal) begin = max(begin, int64_t{key});
  if (inputs.window > 0 && inputs.window < inputs.k.length) end = min(end, key + inputs.window);
  begin = min(max(begin - before, int64_t{0}), queries);
  return {static_cast<int>(begin), static_cast<int>(min(max(end - before, begin), queries))};
}

// The head of k and v that a head of q uses.
__device__ __forceinline__ int64_t key_head(const SoftmaxAttentionInputs& inputs, int64_t head) {
  return head / (inputs.q.heads / inputs.k.heads);
}

// The place of a query in lse and in what has its form.
__device__ __forceinline__ int64_t row_index(const HeadsView& q, int64_t batch, int64_t head, int64_t query) {
  return (batch * q.heads + head) * q.length + query;
}

}  // namespace heddle::kernels::cuda::softmax
