// Softmax attention on tensor cores, forward: o (=), lse (=).
// A block owns 64 queries of one head, a warp 16 of them. It goes over the keys that they see in blocks, with the
// largest score m of each row so far, the sum l of exp(score - m) and the sum o of exp(score - m) v:
//   m' = max(m, scores);   P = exp(scores - m');   l = exp(m - m') l + row sums of P;   o = exp(m - m') o + P v
// and divides o by l in the end. Source: Dao, "FlashAttention-2", arXiv:2307.08691.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/attention/cuda/softmax_attention.h"
#include "kernels/attention/cuda/softmax_attention_tiles.h"

namespace heddle::kernels::cuda::softmax {

inline constexpr int kWarps = 4, kThreads = 32 * kWarps, kQueries = 16 * kWarps;

struct ForwardLaunch {
  SoftmaxAttentionForwardArgs args;
  bool wide;   // inputs can be read 16 bytes at a time
  bool pairs;  // o can be written two numbers at a time
};

// DIM: features of q, k and v, padded with zeros.
template <class T, int DIM>
struct ForwardShared {
  static constexpr int kKeys = sizeof(T) == 2 && DIM <= 128 ? 64 : 32;
  static constexpr int kStages = sizeof(T) == 2 ? 2 : 1;  // with two, the next keys are copied meanwhile
  StoredMatrix<T, kQueries, DIM> q;
  StoredMatrix<T, kKeys, DIM> k[kStages], v[kStages];
  RowRanges<kQueries> keys;
};

// The largest score, and the sum of exp(score - largest) of the thread's columns, of the thread's two rows.
struct RowSums {
  float largest[2] = {-infinity<float>(), -infinity<float>()};
  float sum[2] = {0.0f, 0.0f};
};

// From scores q k^T to P, and out (*=) exp(m - m'). A key that is not seen gets the score -infinity and the probability
// 0. While all scores of a row are -infinity the shift is 0, so that exp(-infinity - shift) is 0 and not NaN.
template <class T, int TILES, int OUT_TILES>
__device__ __forceinline__ void exponentiate(FragmentC (&scores)[TILES], float scale, bool whole, int column,
                                             const Range (&keys)[2], RowSums& rows, FragmentC (&out)[OUT_TILES]) {
  float largest[2] = {-infinity<float>(), -infinity<float>()};
  for_each_value(scores, [&](float& score, int half, int col) {
    score = whole || keys[half].contains(column + col) ? rounded_product(score, scale) : -infinity<float>();
    largest[half] = fmaxf(largest[half], score);
  });
  float shift[2], factor[2], sum[2] = {0.0f, 0.0f};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    largest[half] = fmaxf(group_max<4>(largest[half]), rows.largest[half]);
    shift[half] = largest[half] == -infinity<float>() ? 0.0f : largest[half];
    factor[half] = exponential<T>(rows.largest[half] - shift[half]);
    rows.largest[half] = largest[half];
  }
  for_each_value(scores, [&](float& score, int half, int) {
    score = exponential<T>(score - shift[half]);
    sum[half] += score;
  });
#pragma unroll
  for (int half = 0; half < 2; ++half) rows.sum[half] = rows.sum[half] * factor[half] + sum[half];
  if (__all_sync(0xffffffffu, factor[0] == 1.0f && factor[1] == 1.0f)) return;
  for_each_value(out, [&](float& value, int half, int) { value *= factor[half]; });
}

template <class T, int DIM>
__global__ void __launch_bounds__(kThreads) forward_tensor(const __grid_constant__ ForwardLaunch launch) {
  using Shared = ForwardShared<T, DIM>;
  constexpr int kKeys = Shared::kKeys;
  extern __shared__ __align__(16) unsigned char raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  const SoftmaxAttentionInputs& inputs = launch.args.inputs;
  const int row = threadIdx.x / 32 * 16, own = row + threadIdx.x % 32 / 4;  // the warp's and the thread's first row
  const int length = static_cast<int>(inputs.q.length);
  const unsigned blocks = blocks_of(length, kQueries), heads = static_cast<unsigned>(inputs.q.heads);
  const int64_t head_index = blockIdx.x / blocks % heads, batch = blockIdx.x / blocks / heads;
  const int first = static_cast<int>(blocks - 1 - blockIdx.x % blocks) * kQueries;  // the longest first, where causal
  const float scale = static_cast<float>(inputs.scale);

  if (threadIdx.x < kQueries) {  // rows after the last query do as the last one does
    const Range keys = keys_of(inputs, batch, min(first + static_cast<int>(threadIdx.x), length - 1));
    shared.keys.begin[threadIdx.x] = keys.begin;
    shared.keys.end[threadIdx.x] = keys.end;
  }
  load_rows<T, kThreads>(shared.q, inputs.q, batch, head_index, first, length, launch.wide);
  __syncthreads();
  const Range all = shared.keys.all(), keys[2] = {shared.keys.of(own), shared.keys.of(own + 8)};
  const int64_t kv_head = key_head(inputs, head_index);

  FragmentC out[DIM / 8];
  RowSums rows;
  const auto fetch = [&](int step, int stage) {
    const int begin = all.begin + step * kKeys;
    load_rows<T, kThreads>(shared.k[stage], inputs.k, batch, kv_head, begin, all.end, launch.wide);
    load_rows<T, kThreads>(shared.v[stage], inputs.v, batch, kv_head, begin, all.end, launch.wide);
  };
  pipeline<Shared::kStages>(blocks_of(all.end - all.begin, kKeys), fetch, [&](int step, int stage) {
    const int column = all.begin + step * kKeys;
    if (shared.keys.are_outside(row, column, kKeys)) return;
    FragmentC scores[kKeys / 8];
    multiply_rows<T, false>(scores, shared.q, row, shared.k[stage]);
    exponentiate<T>(scores, scale, shared.keys.are_whole(row, column, kKeys), column, keys, rows, out);
    add_product<T>(out, scores, shared.v[stage], column, keys);
  });

  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sum = group_sum<4>(rows.sum[half]);
    inverse[half] = 1.0f / sum;
    const int query = first + own + half * 8;
    if (launch.args.lse && query < length && threadIdx.x % 4 == 0) {
      vector<float>(launch.args.lse)[row_index(inputs.q, batch, head_index, query)] = rows.largest[half] + logf(sum);
    }
  }
  const bool sees[2] = {keys[0].begin < keys[0].end, keys[1].begin < keys[1].end};
  for_each_value(out, [&](float& value, int half, int) { value = sees[half] ? value * inverse[half] : 0.0f; });
  store_rows<T>({launch.args.o, GradientMode::overwrite}, batch, head_index, first + row, out, launch.pairs);
}

// Returns false where there is no kernel for these sizes.
template <class T>
bool forward_on_tensor_cores(Context& context, const SoftmaxAttentionForwardArgs& args) {
  const SoftmaxAttentionInputs& inputs = args.inputs;
  return with_dim(std::max(inputs.q.dim, inputs.v.dim), [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    constexpr size_t kBytes = sizeof(ForwardShared<T, kDim>);
    if (kBytes > context.properties().shared_bytes_per_block) return false;
    const ForwardLaunch launch{args, can_vectorize_all(vector_width<T>, inputs.q, inputs.k, inputs.v),
                               can_vectorize(args.o, 2)};
    const int64_t blocks = inputs.q.batch * inputs.q.heads * ceil_div(inputs.q.length, kQueries);
    HEDDLE_LAUNCH(context, (forward_tensor<T, kDim>), static_cast<unsigned>(blocks), kThreads, kBytes, launch);
    return true;
  });
}

}  // namespace heddle::kernels::cuda::softmax
