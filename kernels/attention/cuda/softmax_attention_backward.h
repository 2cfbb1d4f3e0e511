// Softmax attention on tensor cores, backward. With P the probabilities and s the scale,
//   dP = d_o v^T;   D = row sums of P .* dP;   dS = s P .* (dP - D)
//   backward_queries  inverse_sums (=), row_products (=) D;   d_q (=|+=) dS k, for a block of queries of one head
//   backward_keys     d_k (=|+=) dS^T q,  d_v (=|+=) P^T d_o, for a block of keys of one head of k: sums over the heads
//                     of q that use it and over the queries that see one of the keys
// Both compute P again as exp(scores - lse). lse is known to its own rounding only, which is much where scores are
// large, so backward_queries goes over its keys twice, first for the sums of exp(scores - lse) and for D. Scores are
// the same bits in forward and here, so that scores of any size give exponents near 0.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/attention/cuda/softmax_attention.h"
#include "kernels/attention/cuda/softmax_attention_tiles.h"

namespace heddle::kernels::cuda::softmax {

struct BackwardLaunch {
  SoftmaxAttentionBackwardArgs args;
  bool wide;   // inputs can be read 16 bytes at a time
  bool pairs;  // gradients can be accessed two numbers at a time
};

// Sizes of a block for T and DIM features of q, k and v, padded with zeros.
template <class T, int DIM>
struct BackwardShape {
  static constexpr bool kIs16Bit = sizeof(T) == 2;
  static constexpr int kWarps = kIs16Bit || DIM <= 128 ? 4 : 2;
  static constexpr int kThreads = 32 * kWarps, kRows = 16 * kWarps;
  static constexpr int kColumns = kIs16Bit && DIM <= 64 ? 64 : 32;  // tokens that the rows meet at a time
  static constexpr int kStages = kIs16Bit ? 2 : 1;                  // with two, the next columns are copied meanwhile
};

// --- d_q ---

template <class T, int DIM>
struct QueriesShared {
  using Shape = BackwardShape<T, DIM>;
  StoredMatrix<T, Shape::kRows, DIM> q, d_o;
  StoredMatrix<T, Shape::kColumns, DIM> k[Shape::kStages], v[Shape::kStages];
  RowRanges<Shape::kRows> keys;
};

template <class T, int DIM>
__global__ void __launch_bounds__(BackwardShape<T, DIM>::kThreads)
    backward_queries_tensor(const __grid_constant__ BackwardLaunch launch) {
  using Shape = BackwardShape<T, DIM>;
  constexpr int kRows = Shape::kRows, kColumns = Shape::kColumns, kThreads = Shape::kThreads;
  extern __shared__ __align__(16) unsigned char raw[];
  auto& shared = *reinterpret_cast<QueriesShared<T, DIM>*>(raw);
  const SoftmaxAttentionBackwardArgs& args = launch.args;
  const SoftmaxAttentionInputs& inputs = args.inputs;
  const int row = threadIdx.x / 32 * 16, own = row + threadIdx.x % 32 / 4;  // the warp's and the thread's first row
  const int length = static_cast<int>(inputs.q.length);
  const unsigned blocks = blocks_of(length, kRows), heads = static_cast<unsigned>(inputs.q.heads);
  const int64_t head_index = blockIdx.x / blocks % heads, batch = blockIdx.x / blocks / heads;
  const int first = static_cast<int>(blocks - 1 - blockIdx.x % blocks) * kRows;  // the longest first, where causal
  const float scale = static_cast<float>(inputs.scale);

  if (threadIdx.x < kRows) {  // rows after the last query do as the last one does
    const Range keys = keys_of(inputs, batch, min(first + static_cast<int>(threadIdx.x), length - 1));
    shared.keys.begin[threadIdx.x] = keys.begin;
    shared.keys.end[threadIdx.x] = keys.end;
  }
  load_rows<T, kThreads>(shared.q, inputs.q, batch, head_index, first, length, launch.wide);
  load_rows<T, kThreads>(shared.d_o, args.d_o, batch, head_index, first, length, launch.wide);
  __syncthreads();
  const Range all = shared.keys.all(), keys[2] = {shared.keys.of(own), shared.keys.of(own + 8)};
  const int64_t kv_head = key_head(inputs, head_index);
  const int64_t place = row_index(inputs.q, batch, head_index, first + own);
  float lse[2], inverse[2] = {0.0f, 0.0f}, product[2] = {0.0f, 0.0f};  // first the sums, then inverse and D
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    lse[half] = first + own + half * 8 < length ? vector<const float>(args.lse)[place + half * 8] : 0.0f;
  }

  FragmentC d_q[DIM / 8];
  const auto finish_sums = [&] {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      inverse[half] = 1.0f / group_sum<4>(inverse[half]);
      product[half] = group_sum<4>(product[half]) * inverse[half];
      if (first + own + half * 8 < length && threadIdx.x % 4 == 0) {
        vector<float>(args.inverse_sums)[place + half * 8] = inverse[half];
        vector<float>(args.row_products)[place + half * 8] = product[half];
      }
    }
  };
  const int steps = blocks_of(all.end - all.begin, kColumns);
  const auto column_of = [&](int step) { return all.begin + (step < steps ? step : step - steps) * kColumns; };
  const auto fetch = [&](int step, int stage) {
    const int column = column_of(step);
    load_rows<T, kThreads>(shared.k[stage], inputs.k, batch, kv_head, column, all.end, launch.wide);
    load_rows<T, kThreads>(shared.v[stage], inputs.v, batch, kv_head, column, all.end, launch.wide);
  };
  pipeline<Shape::kStages>(args.d_q ? 2 * steps : steps, fetch, [&](int step, int stage) {
    if (step == steps) finish_sums();
    const int column = column_of(step);
    if (shared.keys.are_outside(row, column, kColumns)) return;
    const bool whole = shared.keys.are_whole(row, column, kColumns);
    FragmentC p[kColumns / 8], d_p[kColumns / 8];
    multiply_rows<T, false>(p, shared.q, row, shared.k[stage]);
    multiply_rows<T, false>(d_p, shared.d_o, row, shared.v[stage]);
    for_each_value(p, [&](float& value, int half, int col) {
      const bool seen = whole || keys[half].contains(column + col);
      value = seen ? exponential<T>(rounded_product(value, scale) - lse[half]) : 0.0f;
    });
    if (step < steps) {
      float sums[2] = {0.0f, 0.0f}, products[2] = {0.0f, 0.0f};
      for_each_pair(p, d_p, [&](float value, float& gradient, int half, int col) {
        sums[half] += value;
        products[half] += whole || keys[half].contains(column + col) ? value * gradient : 0.0f;
      });
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        inverse[half] += sums[half];
        product[half] += products[half];
      }
    } else {
      for_each_pair(p, d_p, [&](float value, float& gradient, int half, int col) {
        const bool seen = whole || keys[half].contains(column + col);
        gradient = seen ? scale * (value * inverse[half]) * (gradient - product[half]) : 0.0f;
      });
      add_product<T>(d_q, d_p, shared.k[stage], column, keys);
    }
  });
  if (!args.d_q || steps == 0) finish_sums();
  if (args.d_q) store_rows<T>(args.d_q, batch, head_index, first + row, d_q, launch.pairs);
}

// --- d_k and d_v ---

template <class T, int DIM>
struct KeysShared {
  using Shape = BackwardShape<T, DIM>;
  StoredMatrix<T, Shape::kRows, DIM> k, v;
  StoredMatrix<T, Shape::kColumns, DIM> q[Shape::kStages], d_o[Shape::kStages];
  float lse[Shape::kStages][Shape::kColumns];
  float inverse_sums[Shape::kStages][Shape::kColumns], row_products[Shape::kStages][Shape::kColumns];
  RowRanges<Shape::kRows> queries;
};

// KEY, VALUE: which of d_k and d_v are computed.
template <class T, int DIM, bool KEY, bool VALUE>
__global__ void __launch_bounds__(BackwardShape<T, DIM>::kThreads)
    backward_keys_tensor(const __grid_constant__ BackwardLaunch launch) {
  using Shape = BackwardShape<T, DIM>;
  constexpr int kRows = Shape::kRows, kColumns = Shape::kColumns, kThreads = Shape::kThreads;
  extern __shared__ __align__(16) unsigned char raw[];
  auto& shared = *reinterpret_cast<KeysShared<T, DIM>*>(raw);
  const SoftmaxAttentionBackwardArgs& args = launch.args;
  const SoftmaxAttentionInputs& inputs = args.inputs;
  const int row = threadIdx.x / 32 * 16, own = row + threadIdx.x % 32 / 4;  // the warp's and the thread's first row
  const int length = static_cast<int>(inputs.k.length);
  const unsigned blocks = blocks_of(length, kRows), heads = static_cast<unsigned>(inputs.k.heads);
  const int64_t kv_head = blockIdx.x / blocks % heads, batch = blockIdx.x / blocks / heads;
  const int first = static_cast<int>(blockIdx.x % blocks) * kRows;
  const int group = static_cast<int>(inputs.q.heads / inputs.k.heads);
  const float scale = static_cast<float>(inputs.scale);

  if (threadIdx.x < kRows) {  // rows after the last key do as the last one does
    const Range queries = queries_of(inputs, batch, min(first + static_cast<int>(threadIdx.x), length - 1));
    shared.queries.begin[threadIdx.x] = queries.begin;
    shared.queries.end[threadIdx.x] = queries.end;
  }
  load_rows<T, kThreads>(shared.k, inputs.k, batch, kv_head, first, length, launch.wide);
  if constexpr (KEY) load_rows<T, kThreads>(shared.v, inputs.v, batch, kv_head, first, length, launch.wide);
  __syncthreads();
  const Range all = shared.queries.all(), queries[2] = {shared.queries.of(own), shared.queries.of(own + 8)};

  FragmentC d_k[KEY ? DIM / 8 : 1], d_v[VALUE ? DIM / 8 : 1];
  const int steps = blocks_of(all.end - all.begin, kColumns);  // of one head of q
  const auto fetch = [&](int step, int stage) {
    const int64_t head_index = kv_head * group + step / steps;
    const int column = all.begin + step % steps * kColumns;
    load_rows<T, kThreads>(shared.q[stage], inputs.q, batch, head_index, column, all.end, launch.wide);
    load_rows<T, kThreads>(shared.d_o[stage], args.d_o, batch, head_index, column, all.end, launch.wide);
    const int query = column + static_cast<int>(threadIdx.x);
    if (threadIdx.x >= kColumns || query >= all.end) return;
    const int64_t place = row_index(inputs.q, batch, head_index, query);
    shared.lse[stage][threadIdx.x] = vector<const float>(args.lse)[place];
    shared.inverse_sums[stage][threadIdx.x] = vector<const float>(args.inverse_sums)[place];
    shared.row_products[stage][threadIdx.x] = vector<const float>(args.row_products)[place];
  };
  pipeline<Shape::kStages>(group * steps, fetch, [&](int step, int stage) {
    const int column = all.begin + step % steps * kColumns;
    if (shared.queries.are_outside(row, column, kColumns)) return;
    const bool whole = shared.queries.are_whole(row, column, kColumns);
    FragmentC p[kColumns / 8];  // transposed: rows are keys, columns are queries
    multiply_rows<T, true>(p, shared.k, row, shared.q[stage]);
    for_each_value(p, [&](float& value, int half, int col) {
      const bool seen = whole || queries[half].contains(column + col);
      const float exponent = rounded_product(value, scale) - shared.lse[stage][col];
      value = seen ? exponential<T>(exponent) * shared.inverse_sums[stage][col] : 0.0f;
    });
    if constexpr (VALUE) add_product<T>(d_v, p, shared.d_o[stage], column, queries);
    if constexpr (KEY) {
      FragmentC d_p[kColumns / 8];
      multiply_rows<T, true>(d_p, shared.v, row, shared.d_o[stage]);
      for_each_pair(p, d_p, [&](float value, float& gradient, int half, int col) {
        const bool seen = whole || queries[half].contains(column + col);
        gradient = seen ? scale * value * (gradient - shared.row_products[stage][col]) : 0.0f;
      });
      add_product<T>(d_k, d_p, shared.q[stage], column, queries);
    }
  });
  if constexpr (KEY) store_rows<T>(args.d_k, batch, kv_head, first + row, d_k, launch.pairs);
  if constexpr (VALUE) store_rows<T>(args.d_v, batch, kv_head, first + row, d_v, launch.pairs);
}

// --- Launches ---

template <class T, int DIM>
bool launch_backward(Context& context, const BackwardLaunch& launch) {
  using Shape = BackwardShape<T, DIM>;
  constexpr size_t kQueriesBytes = sizeof(QueriesShared<T, DIM>), kKeysBytes = sizeof(KeysShared<T, DIM>);
  const SoftmaxAttentionInputs& inputs = launch.args.inputs;
  if (std::max(kQueriesBytes, kKeysBytes) > context.properties().shared_bytes_per_block) return false;
  const auto grid = [](const HeadsView& tokens) {
    return static_cast<unsigned>(tokens.batch * tokens.heads * ceil_div(tokens.length, Shape::kRows));
  };
  const unsigned query_blocks = grid(inputs.q), key_blocks = grid(inputs.k);
  if (query_blocks > 0) {
    HEDDLE_LAUNCH(context, (backward_queries_tensor<T, DIM>), query_blocks, Shape::kThreads, kQueriesBytes, launch);
  }
  if (key_blocks == 0) return true;
  const bool key = static_cast<bool>(launch.args.d_k), value = static_cast<bool>(launch.args.d_v);
  if constexpr (DIM <= 128) {  // the sums of both fit into registers
    if (key && value) {
      HEDDLE_LAUNCH(context, (backward_keys_tensor<T, DIM, true, true>), key_blocks, Shape::kThreads, kKeysBytes,
                    launch);
      return true;
    }
  }
  if (key) {
    HEDDLE_LAUNCH(context, (backward_keys_tensor<T, DIM, true, false>), key_blocks, Shape::kThreads, kKeysBytes,
                  launch);
  }
  if (value) {
    HEDDLE_LAUNCH(context, (backward_keys_tensor<T, DIM, false, true>), key_blocks, Shape::kThreads, kKeysBytes,
                  launch);
  }
  return true;
}

// Returns false where there is no kernel for these sizes.
template <class T>
bool backward_on_tensor_cores(Context& context, const SoftmaxAttentionBackwardArgs& args) {
  const SoftmaxAttentionInputs& inputs = args.inputs;
  const BackwardLaunch launch{
      args, can_vectorize_all(vector_width<T>, inputs.q, inputs.k, inputs.v, args.d_o),
      can_vectorize(args.d_q.view, 2) && can_vectorize(args.d_k.view, 2) && can_vectorize(args.d_v.view, 2)};
  return with_dim(std::max(inputs.q.dim, inputs.v.dim),
                  [&](auto dim) { return launch_backward<T, decltype(dim)::value>(context, launch); });
}

}  // namespace heddle::kernels::cuda::softmax
