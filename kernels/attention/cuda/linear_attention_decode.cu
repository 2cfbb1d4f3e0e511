// Linear attention of a few tokens, as generation has it: the recurrence itself, token by token, at the speed of
// memory, since the state is all but everything that moves. A block owns kTile value features of the state of one head
// of one sequence. It reads them once, keeps them in registers for all tokens and writes them once. A group of lanes
// holds a row of the tile, a key feature, of which each lane has 16 bytes (32 in float64); every group has each
// kGroups-th row. All q, k, v and decays of the block are read into shared memory while the state is on its way.
//   S = lambda_t S + k_t v_t^T;   o_t (=) scale q_t^T S, rounded once;   final_state (=) the last S
// The sum over key features is one over the rows of a thread, then over the groups of a warp, then over warps, so its
// order depends on the number of key features alone.
#include <cstddef>
#include <cstdint>

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
  A* sums;                // (tokens, kWarps, kTile): products of query and state over the rows of a warp
  A* value;               // (tokens, kTile)
  Vec<A, 2>* features;    // (tokens, keys): of k and of q
  TokenDecay<A>* decays;  // (tokens)

  __device__ __forceinline__ StepShared(unsigned char* raw, int tokens, int keys)
      : sums(reinterpret_cast<A*>(raw)),
        value(sums + tokens * kWarps * kTile),
        features(reinterpret_cast<Vec<A, 2>*>(value + tokens * kTile)),
        decays(reinterpret_cast<TokenDecay<A>*>(features + tokens * keys)) {}
  static size_t bytes(int64_t tokens, int64_t keys) {
    return static_cast<size_t>(tokens) *
           (static_cast<size_t>(kWarps * kTile + kTile + 2 * keys) * sizeof(A) + sizeof(TokenDecay<A>));
  }
};

// A number of the state after a token from that before it.
__device__ __forceinline__ float advanced(float state, const TokenDecay<float>& decay, float key, float value) {
  return fmaf(state, decay.lambda, fmaf(state, decay.rest, key * value));
}
__device__ __forceinline__ double advanced(double state, const TokenDecay<double>& decay, double key, double value) {
  return fma(state, decay.lambda, key * value);
}

// The work of a block. VECTORIZED: states can be accessed 16 bytes at a time, and a thread has neighbouring features.
// Else its features are kLanes apart, so that a group still accesses neighbouring ones together; no sum depends on it.
template <class T, int ROWS, bool VECTORIZED>
class Steps {
 public:
  using A = accumulate_t<T>;

  __device__ __forceinline__ Steps(const LinearAttentionForwardArgs& args, unsigned char* raw)
      : args_(args), shared_(raw, tokens_, keys_) {}

  __device__ __forceinline__ void run() {
    load_state();
    load_tokens();
    __syncthreads();
    for (int token = 0; token < tokens_; ++token) take(token);
    if (args_.final_state) store_state();
    __syncthreads();
    for (int item = thread_; item < tokens_ * kTile; item += kThreads) put_out(item / kTile, item % kTile);
  }

 private:
  // Tokens whose rows are on their way together, and key features of each that a thread loads.
  static constexpr int kAhead = 4, kFeatures = (ROWS * kGroups + kThreads - 1) / kThreads;

  __device__ __forceinline__ int row(int r) const { return r * kGroups + group_; }
  __device__ __forceinline__ int feature(int i) const { return VECTORIZED ? lane_ * kWidth + i : lane_ + i * kLanes; }
  // The first of the block's numbers in a row of a state.
  __device__ __forceinline__ A* numbers(const VectorView& states, int row) const {
    return vector<A>(states) + (int64_t{state_head_} * keys_ + row) * args_.v.dim + first_value_;
  }

  // Starts to load the state. What is no part of it is loaded from a place that is, and not used.
  __device__ __forceinline__ void load_state() {
    if (!args_.initial_state) return clear_state();
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const A* const from = numbers(args_.initial_state, min(row(r), keys_ - 1));
      if constexpr (VECTORIZED) {
        state_[r] = load_stream<kWidth>(from + min(feature(0), values_ - kWidth));
      } else {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) state_[r][i] = from[min(feature(i), values_ - 1)];
      }
    }
  }
  __device__ __forceinline__ void clear_state() {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) state_[r] = {};
  }
  __device__ __forceinline__ void store_state() const {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      if (row(r) >= keys_) continue;
      A* const to = numbers(args_.final_state, row(r));
      if constexpr (VECTORIZED) {
        if (feature(0) < values_) store(to + feature(0), state_[r]);
      } else {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          if (feature(i) < values_) to[feature(i)] = state_[r][i];
        }
      }
    }
  }

  // Reads q, k, v and the decays of all tokens into shared memory. All loads of a round are on their way together.
  __device__ __forceinline__ void load_tokens() const {
    const int own = kThreads - 1 - thread_;  // the token whose decay the thread computes
    double log_decay = 0.0;
    bool starts_anew = false;
    if (own < tokens_) {
      const int64_t place = batch_ * tokens_ + own;
      if (args_.log_decay) {
        const int64_t at = args_.decay_per_token ? place * args_.q.heads + head_ : head_;
        log_decay = vector<const A>(args_.log_decay)[at];
      }
      if (args_.segments && own > 0) {
        const int32_t* const segment = vector<const int32_t>(args_.segments) + place;
        starts_anew = segment[0] != segment[-1];
      }
    }
    for (int first = 0; first < tokens_; first += kAhead) {
      T query[kAhead][kFeatures], key[kAhead][kFeatures], value[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (first + i >= tokens_) break;
        const T* const q = head<const T>(args_.q, batch_, first + i, head_);
        const T* const k = head<const T>(args_.k, batch_, first + i, key_head_);
#pragma unroll
        for (int f = 0; f < kFeatures; ++f) {
          const int d = thread_ + f * kThreads;
          if (d >= keys_) continue;
          query[i][f] = q[d];
          key[i][f] = k[d];
        }
        if (thread_ < values_) value[i] = head<const T>(args_.v, batch_, first + i, key_head_)[first_value_ + thread_];
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (first + i >= tokens_) break;
#pragma unroll
        for (int f = 0; f < kFeatures; ++f) {
          const int d = thread_ + f * kThreads;
          if (d < keys_) shared_.features[(first + i) * keys_ + d] = {widen(key[i][f]), widen(query[i][f])};
        }
        if (thread_ < values_) shared_.value[(first + i) * kTile + thread_] = widen(value[i]);
      }
    }
    if (own >= tokens_) return;
    starts_anew |= log_decay == -infinity<double>();
    const double lambda = starts_anew ? 0.0 : exp(log_decay);
    const A rounded = static_cast<A>(lambda);
    shared_.decays[own] = {rounded, static_cast<A>(lambda - static_cast<double>(rounded)), starts_anew};
  }

  // Makes the state after a token, and the sums of the warp's rows for its o.
  __device__ __forceinline__ void take(int token) {
    const TokenDecay<A> decay = shared_.decays[token];
    if (decay.starts_anew) clear_state();
    Vec<A, kWidth> value, sum = {};
#pragma unroll
    for (int i = 0; i < kWidth; ++i) value[i] = shared_.value[token * kTile + feature(i)];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      if (row(r) >= keys_) continue;  // 0 times a value may be NaN
      const Vec<A, 2> features = shared_.features[token * keys_ + row(r)];
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        state_[r][i] = advanced(state_[r][i], decay, features[0], value[i]);
        sum[i] += features[1] * state_[r][i];
      }
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
#pragma unroll
      for (int distance = kLanes; distance < 32; distance *= 2) {
        sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], distance);
      }
      if (thread_ % 32 < kLanes) shared_.sums[(token * kWarps + thread_ / 32) * kTile + feature(i)] = sum[i];
    }
  }

  __device__ __forceinline__ void put_out(int token, int c) const {
    if (c >= values_) return;
    A sum = A(0);
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sum += shared_.sums[(token * kWarps + warp) * kTile + c];
    head<T>(args_.o, batch_, token, head_)[first_value_ + c] = narrow<T>(sum * static_cast<A>(args_.scale));
  }

  const LinearAttentionForwardArgs& args_;
  int keys_ = static_cast<int>(args_.q.dim), tokens_ = static_cast<int>(args_.q.length);
  unsigned tiles_ = static_cast<unsigned>(parts_of(args_.v.dim, kTile)), heads_ = static_cast<unsigned>(args_.q.heads);
  unsigned state_head_ = blockIdx.x / tiles_;
  int64_t batch_ = state_head_ / heads_, head_ = state_head_ % heads_;
  int64_t key_head_ = head_ / (heads_ / static_cast<unsigned>(args_.k.heads));
  int64_t first_value_ = int64_t{blockIdx.x % tiles_} * kTile;
  int values_ = static_cast<int>(min(int64_t{kTile}, args_.v.dim - first_value_));  // of the tile
  int thread_ = static_cast<int>(threadIdx.x), lane_ = thread_ % kLanes, group_ = thread_ / kLanes;
  StepShared<A> shared_;
  Vec<A, kWidth> state_[ROWS];  // the thread's numbers: features feature(0), ... of row(0), ...
};

template <class T, int ROWS, bool VECTORIZED>
__global__ void __launch_bounds__(kThreads) attend_steps(const __grid_constant__ LinearAttentionForwardArgs args) {
  extern __shared__ __align__(16) unsigned char raw[];
  Steps<T, ROWS, VECTORIZED>(args, raw).run();
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
