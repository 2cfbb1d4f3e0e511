// Linear attention of a few tokens, as generation has it: the recurrence itself, token by token, at the speed of
// memory, since the state is all but everything that moves. A block owns kTile value features of the state of one head
// of one sequence. It reads them once, keeps them in registers for all tokens and writes them once. A group of lanes
// holds a row of the tile, a key feature, of which each lane has 16 bytes (32 in float64); every group has each
// kGroups-th row. All q, k, v and decays of the block are read into shared memory while the state is on its way.
//   S = lambda_t S + k_t v_t^T;   o_t (=) scale q_t^T S, in the type of arithmetic;   final_state (=) the last S
// The sum over key features is one over the rows of a thread, then over the groups of a warp, then over warps, so its
// order depends on the number of key features alone.
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/attention/cuda/linear_attention_decode.h"
#include "kernels/attention/linear_attention_workspace.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/types.h"
#include "kernels/common/cuda/vec.h"

namespace heddle::kernels::cuda {
namespace {

constexpr int64_t kMostTokens = 15;  // more go to the scans of scan.h, whose chunks have tensor cores
constexpr int64_t kMostKeys = 256;
constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kWidth = 4, kLanes = 8;  // value features of a thread; threads of a row
constexpr int kTile = kWidth * kLanes, kGroups = kThreads / kLanes;

// What a token leaves of the state before it: nothing, where the state starts anew, whatever it holds; else the state
// times lambda, which in float is the sum of two numbers: a long generation multiplies many of them.
template <class A>
struct TokenDecay {
  A lambda, rest;
  bool starts_anew;
};

// Shared memory of a block for `tokens` tokens.
template <class A>
struct StepShared {
  TokenDecay<A>* decays;  // (tokens)
  A *query, *key;         // (tokens, keys)
  A* value;               // (tokens, kTile)
  A* sums;                // (tokens, kWarps, kTile): products of query and state over the rows of a warp

  __device__ __forceinline__ StepShared(unsigned char* raw, int tokens, int keys) {
    sums = reinterpret_cast<A*>(raw);
    value = sums + tokens * kWarps * kTile;
    query = value + tokens * kTile;
    key = query + tokens * keys;
    decays = reinterpret_cast<TokenDecay<A>*>(key + tokens * keys);
  }
  static size_t bytes(int64_t tokens, int64_t keys) {
    return static_cast<size_t>(tokens) *
           (static_cast<size_t>(kWarps * kTile + kTile + 2 * keys) * sizeof(A) + sizeof(TokenDecay<A>));
  }
};

template <class A>
__device__ __forceinline__ TokenDecay<A> token_decay(const LinearAttentionForwardArgs& args, int64_t batch,
                                                     int64_t head_index, int64_t token) {
  const int64_t place = batch * args.q.length + token;
  double log_decay = 0.0;
  if (args.log_decay) {
    const int64_t at = args.decay_per_token ? place * args.q.heads + head_index : head_index;
    log_decay = vector<const A>(args.log_decay)[at];
  }
  bool starts_anew = log_decay == -infinity<double>();
  if (args.segments && token > 0) {
    const int32_t* const segment = vector<const int32_t>(args.segments) + place;
    starts_anew |= segment[0] != segment[-1];
  }
  const double lambda = starts_anew ? 0.0 : exp(log_decay);
  const A rounded = static_cast<A>(lambda);
  return {rounded, static_cast<A>(lambda - static_cast<double>(rounded)), starts_anew};
}

// A number of the state after a token from that before it.
__device__ __forceinline__ float advanced(float state, const TokenDecay<float>& decay, float key, float value) {
  return fmaf(state, decay.lambda, fmaf(state, decay.rest, key * value));
}
__device__ __forceinline__ double advanced(double state, const TokenDecay<double>& decay, double key, double value) {
  return fma(state, decay.lambda, key * value);
}

// VECTORIZED: states can be accessed 16 bytes at a time, and a thread has neighbouring features. Else its features are
// kLanes apart, so that a group still accesses neighbouring ones together; no sum depends on which.
template <class T, int ROWS, bool VECTORIZED>
__global__ void __launch_bounds__(kThreads) attend_steps(const __grid_constant__ LinearAttentionForwardArgs args) {
  using A = accumulate_t<T>;
  extern __shared__ __align__(16) unsigned char raw[];
  const int keys = static_cast<int>(args.q.dim), tokens = static_cast<int>(args.q.length);
  const StepShared<A> shared(raw, tokens, keys);
  const unsigned tiles = static_cast<unsigned>(parts_of(args.v.dim, kTile)), heads = args.q.heads;
  const unsigned state_head = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int64_t batch = state_head / heads, head_index = state_head % heads;
  const int64_t key_head = head_index / (args.q.heads / args.k.heads);
  const int64_t first_value = int64_t{tile} * kTile,
                first_number = int64_t{state_head} * keys * args.v.dim + first_value;
  const int values = static_cast<int>(min(int64_t{kTile}, args.v.dim - first_value));
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes, group = thread / kLanes;
  const auto feature = [&](int i) { return VECTORIZED ? lane * kWidth + i : lane + i * kLanes; };

  Vec<A, kWidth> state[ROWS];
  if (args.initial_state) {
    const A* const from = vector<const A>(args.initial_state) + first_number;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {  // what is no part of the state is read from a place that is, and not used
      const A* const row = from + min(r * kGroups + group, keys - 1) * args.v.dim;
      if constexpr (VECTORIZED) {
        state[r] = load_stream<kWidth>(row + min(feature(0), values - kWidth));
      } else {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) state[r][i] = row[min(feature(i), values - 1)];
      }
    }
  } else {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) state[r] = {};
  }

  for (int token = 0; token < tokens; ++token) {
    const T* const q = head<const T>(args.q, batch, token, head_index);
    const T* const k = head<const T>(args.k, batch, token, key_head);
    for (int d = thread; d < keys; d += kThreads) {
      shared.query[token * keys + d] = widen(q[d]);
      shared.key[token * keys + d] = widen(k[d]);
    }
  }
  for (int item = thread; item < tokens * kTile; item += kThreads) {
    const int token = item / kTile, c = item % kTile;
    shared.value[item] = c < values ? widen(head<const T>(args.v, batch, token, key_head)[first_value + c]) : A(0);
  }
  if (thread < tokens) shared.decays[thread] = token_decay<A>(args, batch, head_index, thread);
  __syncthreads();

  for (int token = 0; token < tokens; ++token) {
    const TokenDecay<A> decay = shared.decays[token];
    if (decay.starts_anew) {
#pragma unroll
      for (int r = 0; r < ROWS; ++r) state[r] = {};
    }
    Vec<A, kWidth> value, sum = {};
#pragma unroll
    for (int i = 0; i < kWidth; ++i) value[i] = shared.value[token * kTile + feature(i)];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const int row = r * kGroups + group;
      if (row >= keys) continue;  // 0 times a value may be NaN
      const A key = shared.key[token * keys + row], query = shared.query[token * keys + row];
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        state[r][i] = advanced(state[r][i], decay, key, value[i]);
        sum[i] += query * state[r][i];
      }
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
#pragma unroll
      for (int distance = kLanes; distance < 32; distance *= 2) {
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], distance);
      }
      if (thread % 32 < kLanes) shared.sums[(token * kWarps + thread / 32) * kTile + feature(i)] = sum[i];
    }
  }

  if (args.final_state) {
    A* const to = vector<A>(args.final_state) + first_number;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const int row = r * kGroups + group;
      if (row >= keys) continue;
      if constexpr (VECTORIZED) {
        if (feature(0) < values) store(to + row * args.v.dim + feature(0), state[r]);
      } else {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          if (feature(i) < values) to[row * args.v.dim + feature(i)] = state[r][i];
        }
      }
    }
  }
  __syncthreads();
  for (int item = thread; item < tokens * kTile; item += kThreads) {
    const int token = item / kTile, c = item % kTile;
    if (c >= values) continue;
    A sum = A(0);
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sum += shared.sums[(token * kWarps + warp) * kTile + c];
    head<T>(args.o, batch, token, head_index)[first_value + c] = narrow<T>(sum * static_cast<A>(args.scale));
  }
}

template <class T, int ROWS>
bool launch_rows(Context& context, const LinearAttentionForwardArgs& args) {
  using A = accumulate_t<T>;
  const size_t bytes = StepShared<A>::bytes(args.q.length, args.q.dim);
  if (bytes > context.properties().shared_bytes_per_block) return false;
  const auto blocks = static_cast<unsigned>(args.q.batch * args.q.heads * parts_of(args.v.dim, kTile));
  const auto can_vectorize_states = [&](const VectorView& states) {
    return can_vectorize(states.data, dtype_of<A>, args.v.dim, args.v.dim, kWidth);
  };
  if (can_vectorize_states(args.initial_state) && can_vectorize_states(args.final_state)) {
    HEDDLE_LAUNCH(context, (attend_steps<T, ROWS, true>), blocks, kThreads, bytes, args);
  } else {
    HEDDLE_LAUNCH(context, (attend_steps<T, ROWS, false>), blocks, kThreads, bytes, args);
  }
  return true;
}

}  // namespace

bool forward_of_few_tokens(Context& context, const LinearAttentionForwardArgs& args) {
  const int64_t keys = args.q.dim;
  if (args.q.length == 0 || args.q.length > kMostTokens || keys > kMostKeys) return false;
  bool launched = false;
  visit_floating(args.q.dtype, [&](auto type) {
    using T = decltype(type);
    launched = keys <= 4 * kGroups   ? launch_rows<T, 4>(context, args)
               : keys <= 8 * kGroups ? launch_rows<T, 8>(context, args)
                                     : launch_rows<T, 16>(context, args);
  });
  return launched;
}

}  // namespace heddle::kernels::cuda
