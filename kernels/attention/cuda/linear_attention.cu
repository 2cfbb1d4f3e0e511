// Causal linear attention with decay, forward and backward.                         docs/layers.md#linear-attention
// One operation, scan(), computes all outputs. It goes over the sequence in one direction; with the rows query_t, key_t
// and value_t of step t it computes
//   S_t = lambda S_{t-1} + inner * key_t value_t^T;   out_t (=|+=) outer * query_t^T S_t
//   forward    o (=)        is the scan of (q, k, v) from the start;             final_state (=) is its last S
//   backward   d_q (=|+=)   is the scan of (d_o, v, k) from the start, the state transposed
//              d_k (=|+=)   is the scan of (v, d_o, q) from the end, the state transposed
//              d_v (=|+=)   is the scan of (k, q, d_o) from the end;             d_initial_state (=|+=) is its last S
// A block owns one batch, head and tile of value features. It keeps the state S (key features, tile) on chip while it
// goes over the sequence in chunks of C steps; i and j are steps of the chunk:
//   out = lambda^(i + 1 - ahead) query S + (query key^T o lambda^(i - j)) value
//   S = lambda^C S + (lambda^(C - 1 - j + ahead) key)^T value
// `ahead` is 1 for a scan from the end, else 0: from the end the state is stored with one decay applied in advance,
// because d_final_state has not decayed at the first step and d_initial_state is the state without a further decay. All
// exponents of lambda are non-negative, so no power overflows. The last chunk may be shorter.

#include <cuda_pipeline_primitives.h>

#include <cstddef>
#include <cstdint>

#include "kernels/attention/linear_attention.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/mma.h"
#include "kernels/common/cuda/vec.h"

namespace heddle::kernels::cuda {
namespace {

// States in global memory: element (key feature, value feature) of the state of one batch and head is
// data[(batch * heads + head) * size + key * key_stride + value * value_stride]. `data` may be null.
template <class A>
struct StateView {
  A* data = nullptr;
  int64_t size = 0, key_stride = 0, value_stride = 0;

  __device__ __forceinline__ A& at(int64_t head, int64_t key, int64_t value) const {
    return data[head * size + key * key_stride + value * value_stride];
  }
};

template <class A>
struct ScanArgs {
  HeadsView query, key, value;
  HeadsDestination out;
  const A* log_decay = nullptr;  // (heads) log(lambda); null where nothing decays
  StateView<A> state_in, state_out;
  GradientMode state_out_mode = GradientMode::overwrite;
  bool from_end = false;
  A inner = A(1), outer = A(1);

  // The row of `view` at step t.
  template <class T>
  __device__ __forceinline__ T* step(const HeadsView& view, int64_t batch, int64_t head_index, int64_t t) const {
    return head<T>(view, batch, from_end ? query.length - 1 - t : t, head_index);
  }
};

template <class A>
__device__ __forceinline__ void put_state(const ScanArgs<A>& args, int64_t head, int64_t key, int64_t value, A state) {
  A& to = args.state_out.at(head, key, value);
  to = args.state_out_mode == GradientMode::accumulate ? to + state : state;
}

// --- Any dtype and size: the state lies in shared memory, without tensor cores ---

constexpr int kAnyThreads = 128;
constexpr int kAnyTile = 32;  // value features of a block

template <class T>
__global__ void __launch_bounds__(kAnyThreads)
    scan_any(const __grid_constant__ ScanArgs<accumulate_t<T>> args, int chunk) {
  using A = accumulate_t<T>;
  extern __shared__ __align__(16) unsigned char raw[];
  const int keys = static_cast<int>(args.query.dim);
  A* query = reinterpret_cast<A*>(raw);  // (chunk, keys)
  A* key = query + chunk * keys;         // (chunk, keys)
  A* value = key + chunk * keys;         // (chunk, kAnyTile)
  A* scores = value + chunk * kAnyTile;  // (chunk, chunk)
  A* state = scores + chunk * chunk;     // (keys, kAnyTile)
  const int64_t head_index = blockIdx.x % args.query.heads;
  const int64_t batch = blockIdx.x / args.query.heads;
  const int64_t first_value = int64_t{blockIdx.y} * kAnyTile;
  const int tile = static_cast<int>(min(int64_t{kAnyTile}, args.value.dim - first_value));
  const A log_decay = args.log_decay != nullptr ? args.log_decay[head_index] : A(0);
  const int ahead = args.from_end ? 1 : 0;
  // Where lambda is 0 a step sees itself alone: what it does not see is left out, not multiplied by 0.
  const bool forgets = log_decay == -infinity<A>();
  const auto sees = [&](int steps_before) { return steps_before == 0 || !forgets; };
  const auto power = [&](int n) { return n == 0 ? A(1) : exp(log_decay * static_cast<A>(n)); };

  for (int e = threadIdx.x; e < keys * kAnyTile; e += kAnyThreads) {
    const int c = e % kAnyTile;
    state[e] =
        args.state_in.data != nullptr && c < tile ? args.state_in.at(blockIdx.x, e / kAnyTile, first_value + c) : A(0);
  }
  for (int64_t start = 0; start < args.query.length; start += chunk) {
    const int steps = static_cast<int>(min(int64_t{chunk}, args.query.length - start));
    __syncthreads();
    for (int e = threadIdx.x; e < steps * keys; e += kAnyThreads) {
      const int64_t t = start + e / keys;
      query[e] = widen(args.template step<const T>(args.query, batch, head_index, t)[e % keys]);
      key[e] = widen(args.template step<const T>(args.key, batch, head_index, t)[e % keys]);
    }
    for (int e = threadIdx.x; e < steps * kAnyTile; e += kAnyThreads) {
      const int c = e % kAnyTile;
      const int64_t t = start + e / kAnyTile;
      value[e] =
          c < tile ? widen(args.template step<const T>(args.value, batch, head_index, t)[first_value + c]) : A(0);
    }
    __syncthreads();
    for (int e = threadIdx.x; e < steps * steps; e += kAnyThreads) {
      const int i = e / steps, j = e % steps;
      A sum = A(0);
      if (i >= j && sees(i - j)) {
        for (int d = 0; d < keys; ++d) sum += query[i * keys + d] * key[j * keys + d];
        sum *= args.inner * power(i - j);
      }
      scores[i * chunk + j] = sum;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < steps * kAnyTile; e += kAnyThreads) {
      const int i = e / kAnyTile, c = e % kAnyTile;
      if (c >= tile) continue;
      A sum = A(0);
      if (sees(i + 1 - ahead)) {
        for (int d = 0; d < keys; ++d) sum += query[i * keys + d] * state[d * kAnyTile + c];
        sum *= power(i + 1 - ahead);
      }
      for (int j = forgets ? i : 0; j <= i; ++j) sum += scores[i * chunk + j] * value[j * kAnyTile + c];
      T* to = args.template step<T>(args.out.view, batch, head_index, start + i) + first_value + c;
      sum *= args.outer;
      if (args.out.mode == GradientMode::accumulate) sum += widen(*to);
      *to = narrow<T>(sum);
    }
    __syncthreads();
    const A whole = power(steps);
    for (int e = threadIdx.x; e < keys * kAnyTile; e += kAnyThreads) {
      const int d = e / kAnyTile, c = e % kAnyTile;
      A sum = A(0);
      for (int j = 0; j < steps; ++j) {
        const int after = steps - 1 - j + ahead;
        if (sees(after)) sum += power(after) * key[j * keys + d] * value[j * kAnyTile + c];
      }
      state[e] = (sees(steps) ? whole * state[e] : A(0)) + args.inner * sum;
    }
  }
  if (args.state_out.data == nullptr) return;
  __syncthreads();
  for (int e = threadIdx.x; e < keys * kAnyTile; e += kAnyThreads) {
    const int c = e % kAnyTile;
    if (c < tile) put_state(args, blockIdx.x, e / kAnyTile, first_value + c, state[e]);
  }
}

// --- 16-bit dtypes: chunks of 64 steps on the tensor cores; warp w of four computes out of steps 16 w .. 16 w + 15 ---
// A masked score is 0 in these products, so an infinity or NaN reaches the steps of its tile that come before it.

constexpr int kChunk = 64;
constexpr int kTensorThreads = 128;

// Shared memory of a block. KEYS: key features; VALUES: value features of the block. Rows are padded by 16 bytes, so
// that the rows that one ldmatrix reads lie in different banks.
template <class T, int KEYS, int VALUES>
struct TensorShared {
  static constexpr int kKeyStride = KEYS + 8;
  static constexpr int kValueStride = VALUES + 8;
  T query[2][kChunk * kKeyStride];  // two stages: the next chunk is copied while this one is computed
  T key[2][kChunk * kKeyStride];
  T value[2][kChunk * kValueStride];
  T state[KEYS * kValueStride];
  float powers[kChunk + 1];  // lambda^n
};

// out (16, VALUES) = lambda^(i + 1 - ahead) query S for the warp's steps i. `row` is the thread's upper row of a
// fragment.
template <class T, int KEYS, int VALUES>
__device__ __forceinline__ void apply_state(const TensorShared<T, KEYS, VALUES>& shared,
                                            const FragmentA (&q)[KEYS / 16], int row, int ahead,
                                            FragmentC (&out)[VALUES / 8]) {
  constexpr int kValueStride = TensorShared<T, KEYS, VALUES>::kValueStride;
#pragma unroll
  for (int d = 0; d < KEYS / 16; ++d) {
#pragma unroll
    for (int n = 0; n < VALUES / 16; ++n) {
      const FragmentPairB s = load_b(shared.state + d * 16 * kValueStride + n * 16, kValueStride);
      mma<T>(out[2 * n], q[d], s.parts[0]);
      mma<T>(out[2 * n + 1], q[d], s.parts[1]);
    }
  }
  const float in_upper = shared.powers[row + 1 - ahead], in_lower = shared.powers[row + 9 - ahead];
#pragma unroll
  for (int n = 0; n < VALUES / 8; ++n) {
    out[n].values[0] *= in_upper;
    out[n].values[1] *= in_upper;
    out[n].values[2] *= in_lower;
    out[n].values[3] *= in_lower;
  }
}

// out (16, VALUES) += (query key^T o inner lambda^(i - j)) value, 16 keys j at a time. A score whose key comes after
// its query is 0; tiles of keys after the last query of the warp are skipped.
template <class T, int KEYS, int VALUES>
__device__ __forceinline__ void apply_scores(const TensorShared<T, KEYS, VALUES>& shared,
                                             const FragmentA (&q)[KEYS / 16], const T* key, const T* value, int warp,
                                             int row, int t2, float inner, FragmentC (&out)[VALUES / 8]) {
  constexpr int kKeyStride = TensorShared<T, KEYS, VALUES>::kKeyStride;
  constexpr int kValueStride = TensorShared<T, KEYS, VALUES>::kValueStride;
#pragma unroll
  for (int j = 0; j < kChunk / 16; ++j) {
    if (j > warp) break;
    FragmentC scores[2];
#pragma unroll
    for (int d = 0; d < KEYS / 16; ++d) {
      const FragmentPairB k = load_b_transposed(key + j * 16 * kKeyStride + d * 16, kKeyStride);
      mma<T>(scores[0], q[d], k.parts[0]);
      mma<T>(scores[1], q[d], k.parts[1]);
    }
#pragma unroll
    for (int part = 0; part < 2; ++part) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int distance = row + e / 2 * 8 - (j * 16 + part * 8 + t2 + e % 2);
        scores[part].values[e] *= distance >= 0 ? shared.powers[distance] * inner : 0.0f;
      }
    }
    const FragmentA p = as_a<T>(scores[0], scores[1]);
#pragma unroll
    for (int n = 0; n < VALUES / 16; ++n) {
      const FragmentPairB v = load_b(value + j * 16 * kValueStride + n * 16, kValueStride);
      mma<T>(out[2 * n], p, v.parts[0]);
      mma<T>(out[2 * n + 1], p, v.parts[1]);
    }
  }
}

// state += (inner lambda^(steps - 1 - j + ahead) key)^T value, for the warp's tiles of rows from state_row on.
template <class T, int KEYS, int VALUES, int TILES>
__device__ __forceinline__ void add_to_state(const TensorShared<T, KEYS, VALUES>& shared, const T* key, const T* value,
                                             int state_row, int steps, int ahead, int t2, float inner,
                                             FragmentC (&state)[TILES][VALUES / 8]) {
  constexpr int kKeyStride = TensorShared<T, KEYS, VALUES>::kKeyStride;
  constexpr int kValueStride = TensorShared<T, KEYS, VALUES>::kValueStride;
#pragma unroll
  for (int j = 0; j < kChunk / 16; ++j) {
    float weight[4];  // of depths t2, t2 + 1, t2 + 8, t2 + 9
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int after = max(steps - 1 - (j * 16 + t2 + e % 2 + e / 2 * 8), 0);
      weight[e] = shared.powers[after + ahead] * inner;
    }
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
      FragmentA k = load_a_transposed(key + j * 16 * kKeyStride + state_row + m * 16, kKeyStride);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 pair = unpack<T>(k.words[w]);
        k.words[w] = pack<T>(pair.x * weight[w / 2 * 2], pair.y * weight[w / 2 * 2 + 1]);
      }
#pragma unroll
      for (int n = 0; n < VALUES / 16; ++n) {
        const FragmentPairB v = load_b(value + j * 16 * kValueStride + n * 16, kValueStride);
        mma<T>(state[m][2 * n], k, v.parts[0]);
        mma<T>(state[m][2 * n + 1], k, v.parts[1]);
      }
    }
  }
}

// Writes the warp's 16 rows of out, times `outer`, rounded to T, to shared memory. `rows` has the stride of keys.
template <class T, int KEYS, int VALUES>
__device__ __forceinline__ void stage_out(const FragmentC (&out)[VALUES / 8], int g, int t2, float outer, T* rows) {
  constexpr int kKeyStride = TensorShared<T, KEYS, VALUES>::kKeyStride;
#pragma unroll
  for (int n = 0; n < VALUES / 8; ++n) {
    const float* o = out[n].values;
    *reinterpret_cast<unsigned*>(rows + g * kKeyStride + n * 8 + t2) = pack<T>(o[0] * outer, o[1] * outer);
    *reinterpret_cast<unsigned*>(rows + (g + 8) * kKeyStride + n * 8 + t2) = pack<T>(o[2] * outer, o[3] * outer);
  }
}

// Adds (+=) the thread's numbers of out, times outer, to the rows of the warp's steps below `steps`.
template <class T, int TILES>
__device__ __forceinline__ void add_out(const ScanArgs<float>& args, const FragmentC (&out)[TILES], int64_t batch,
                                        int64_t head_index, int64_t first_value, int64_t start, int row, int t2,
                                        int steps) {
#pragma unroll
  for (int n = 0; n < TILES; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int i = row + e / 2 * 8;
      if (i >= steps) continue;
      T* to = args.template step<T>(args.out.view, batch, head_index, start + i) + first_value + n * 8 + t2 + e % 2;
      *to = narrow<T>(out[n].values[e] * args.outer + widen(*to));
    }
  }
}

// Starts to copy `width` features from `offset` on of the chunk from step `start` on into the `rows`, `stride` apart,
// of a stage. Rows after the last step become 0.
template <class T>
__device__ __forceinline__ void fetch_rows(const ScanArgs<float>& args, const HeadsView& view, int64_t batch,
                                           int64_t head_index, int64_t start, int64_t offset, int width, T* rows,
                                           int stride) {
  for (int e = threadIdx.x; e < kChunk * width / 8; e += kTensorThreads) {
    const int i = e / (width / 8), c = e % (width / 8) * 8;
    T* place = rows + i * stride + c;
    if (start + i < args.query.length) {
      const T* from = args.template step<const T>(view, batch, head_index, start + i) + offset + c;
      __pipeline_memcpy_async(place, from, 16);
    } else {
      *reinterpret_cast<uint4*>(place) = uint4{0, 0, 0, 0};
    }
  }
}

template <class T, int KEYS, int VALUES>
__global__ void __launch_bounds__(kTensorThreads) scan_tensor(const __grid_constant__ ScanArgs<float> args) {
  using Shared = TensorShared<T, KEYS, VALUES>;
  constexpr int kKeyStride = Shared::kKeyStride, kValueStride = Shared::kValueStride;
  constexpr int kStateTiles = KEYS / 16 > 4 ? KEYS / 64 : 1;  // tiles of 16 rows of the state in a warp
  extern __shared__ __align__(16) unsigned char raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, t2 = lane % 4 * 2;  // row and first column of the thread in a fragment, see mma.h
  const int64_t head_index = blockIdx.x % args.query.heads;
  const int64_t batch = blockIdx.x / args.query.heads;
  const int64_t first_value = int64_t{blockIdx.y} * VALUES;
  const float log_decay = args.log_decay != nullptr ? args.log_decay[head_index] : 0.0f;
  const int ahead = args.from_end ? 1 : 0;
  const int64_t length = args.query.length;

  const auto fetch = [&](int64_t start, int stage) {
    if (start < length) {
      fetch_rows(args, args.query, batch, head_index, start, 0, KEYS, shared.query[stage], kKeyStride);
      fetch_rows(args, args.key, batch, head_index, start, 0, KEYS, shared.key[stage], kKeyStride);
      fetch_rows(args, args.value, batch, head_index, start, first_value, VALUES, shared.value[stage], kValueStride);
    }
    __pipeline_commit();
  };

  fetch(0, 0);
  if (threadIdx.x <= kChunk) {
    shared.powers[threadIdx.x] = threadIdx.x == 0 ? 1.0f : expf(log_decay * static_cast<float>(threadIdx.x));
  }

  // The warp holds 16 kStateTiles rows of the state from state_row on; no rows are left for the last warps of a narrow
  // state.
  const int state_row = warp * 16 * kStateTiles;
  const bool owns_state = state_row < KEYS;
  FragmentC state[kStateTiles][VALUES / 8];
  const auto for_each_state = [&](const auto& visit) {
#pragma unroll
    for (int m = 0; m < kStateTiles; ++m) {
#pragma unroll
      for (int n = 0; n < VALUES / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          visit(state_row + m * 16 + g + e / 2 * 8, n * 8 + t2 + e % 2, state[m][n].values[e]);
        }
      }
    }
  };
  const auto share_state = [&] {  // rounded to T, where all warps read it
    for_each_state([&](int d, int c, float& s) { shared.state[d * kValueStride + c] = narrow<T>(s); });
  };
  if (owns_state) {
    if (args.state_in.data != nullptr) {
      for_each_state([&](int d, int c, float& s) { s = args.state_in.at(blockIdx.x, d, first_value + c); });
    }
    share_state();
  }

  int stage = 0;
  for (int64_t start = 0; start < length; start += kChunk, stage ^= 1) {
    const int steps = static_cast<int>(min(int64_t{kChunk}, length - start));
    __pipeline_wait_prior(0);
    __syncthreads();  // the chunk and the state are written, and no warp reads the other stage any more
    fetch(start + kChunk, stage ^ 1);

    T* query = shared.query[stage] + warp * 16 * kKeyStride;
    const T* key = shared.key[stage];
    const T* value = shared.value[stage];
    FragmentA q[KEYS / 16];
#pragma unroll
    for (int d = 0; d < KEYS / 16; ++d) q[d] = load_a(query + d * 16, kKeyStride);

    FragmentC out[VALUES / 8];
    const int row = warp * 16 + g;
    apply_state(shared, q, row, ahead, out);
    apply_scores(shared, q, key, value, warp, row, t2, args.inner, out);
    if (args.out.mode == GradientMode::overwrite) {
      // The rows pass through the warp's rows of query, which it has read, so that they are written 16 bytes at a time.
      __syncwarp();
      stage_out<T, KEYS, VALUES>(out, g, t2, args.outer, query);
      __syncwarp();
      for (int e = lane; e < 16 * VALUES / 8; e += 32) {
        const int i = e / (VALUES / 8), c = e % (VALUES / 8) * 8;
        if (warp * 16 + i >= steps) continue;
        T* to = args.template step<T>(args.out.view, batch, head_index, start + warp * 16 + i) + first_value + c;
        store(to, load<8>(query + i * kKeyStride + c));
      }
    } else {
      add_out<T>(args, out, batch, head_index, first_value, start, row, t2, steps);
    }

    if (owns_state) {
      const float whole = shared.powers[steps];
      for_each_state([&](int, int, float& s) { s *= whole; });
      add_to_state(shared, key, value, state_row, steps, ahead, t2, args.inner, state);
    }
    __syncthreads();  // all warps have read the state from before this chunk
    if (owns_state) share_state();
  }
  __pipeline_wait_prior(0);
  if (args.state_out.data == nullptr || !owns_state) return;
  for_each_state([&](int d, int c, float& s) { put_state(args, blockIdx.x, d, first_value + c, s); });
}

template <class T, int KEYS, int VALUES>
void launch_tensor(Context& context, const ScanArgs<float>& args) {
  const dim3 grid(static_cast<unsigned>(args.query.batch * args.query.heads),
                  static_cast<unsigned>(args.value.dim / VALUES));
  HEDDLE_LAUNCH(context, (scan_tensor<T, KEYS, VALUES>), grid, kTensorThreads, sizeof(TensorShared<T, KEYS, VALUES>),
                args);
}

// Launches nothing and returns false where there is no tensor core kernel for the sizes or alignments.
template <class T>
bool scan_on_tensor_cores(Context& context, const ScanArgs<float>& args) {
  const int64_t keys = args.query.dim, values = args.value.dim;
  if (!can_vectorize_all(8, args.query, args.key, args.value, args.out.view)) return false;
  if (keys == 32 && values % 32 == 0) {
    launch_tensor<T, 32, 32>(context, args);
  } else if (keys == 64 && values % 64 == 0) {
    launch_tensor<T, 64, 64>(context, args);
  } else if (keys == 128 && values % 64 == 0) {
    launch_tensor<T, 128, 64>(context, args);
  } else {
    return false;
  }
  return true;
}

template <class T>
void scan(Context& context, const ScanArgs<accumulate_t<T>>& args) {
  if (!args.out) return;
  if constexpr (sizeof(T) == 2) {
    if (scan_on_tensor_cores<T>(context, args)) return;
  }
  using A = accumulate_t<T>;
  const int64_t keys = args.query.dim;
  int chunk = 32;
  const auto bytes = [&] {
    return sizeof(A) * static_cast<size_t>(chunk * (2 * keys + kAnyTile + chunk) + keys * kAnyTile);
  };
  while (chunk > 1 && bytes() > context.properties().shared_bytes_per_block) chunk /= 2;
  check(bytes() <= context.properties().shared_bytes_per_block,
        "[linear_attention] head dim {} is too large for the shared memory of this GPU", keys);
  const dim3 grid(static_cast<unsigned>(args.query.batch * args.query.heads),
                  static_cast<unsigned>(ceil_div(args.value.dim, kAnyTile)));
  HEDDLE_LAUNCH(context, scan_any<T>, grid, kAnyThreads, bytes(), args, chunk);
}

bool is_empty(const HeadsView& view) { return view.batch * view.heads * view.dim == 0; }

// `states` (batch * heads, dim, value_dim) row-major; transposed: seen by a scan whose keys have value_dim features.
template <class A>
StateView<A> state_view(const VectorView& states, int64_t dim, int64_t value_dim, bool transposed) {
  if (!states) return {};
  return {vector<A>(states), dim * value_dim, transposed ? 1 : value_dim, transposed ? value_dim : 1};
}

template <class T>
void launch_forward(Context& context, const LinearAttentionForwardArgs& args) {
  using A = accumulate_t<T>;
  ScanArgs<A> scan_args;
  scan_args.query = args.q;
  scan_args.key = args.k;
  scan_args.value = args.v;
  scan_args.out = {args.o, GradientMode::overwrite};
  scan_args.log_decay = vector<const A>(args.log_decay);
  scan_args.state_in = state_view<A>(args.initial_state, args.q.dim, args.v.dim, false);
  scan_args.state_out = state_view<A>(args.final_state, args.q.dim, args.v.dim, false);
  scan_args.outer = static_cast<A>(args.scale);
  scan<T>(context, scan_args);
}

template <class T>
void launch_backward(Context& context, const LinearAttentionBackwardArgs& args) {
  using A = accumulate_t<T>;
  const int64_t dim = args.q.dim, value_dim = args.v.dim;
  ScanArgs<A> scan_args;
  scan_args.log_decay = vector<const A>(args.log_decay);

  scan_args.query = args.d_o;
  scan_args.key = args.v;
  scan_args.value = args.k;
  scan_args.out = args.d_q;
  scan_args.state_in = state_view<A>(args.initial_state, dim, value_dim, true);
  scan_args.outer = static_cast<A>(args.scale);
  scan<T>(context, scan_args);

  scan_args.from_end = true;
  scan_args.inner = static_cast<A>(args.scale);
  scan_args.outer = A(1);
  scan_args.query = args.v;
  scan_args.key = args.d_o;
  scan_args.value = args.q;
  scan_args.out = args.d_k;
  scan_args.state_in = state_view<A>(args.d_final_state, dim, value_dim, true);
  scan<T>(context, scan_args);

  scan_args.query = args.k;
  scan_args.key = args.q;
  scan_args.value = args.d_o;
  scan_args.out = args.d_v;
  scan_args.state_in = state_view<A>(args.d_final_state, dim, value_dim, false);
  scan_args.state_out = state_view<A>(args.d_initial_state.view, dim, value_dim, false);
  scan_args.state_out_mode = args.d_initial_state.mode;
  scan<T>(context, scan_args);
}

}  // namespace

void linear_attention_forward(Context& context, const LinearAttentionForwardArgs& args) {
  if (is_empty(args.q) || is_empty(args.v)) return;
  visit_floating(args.q.dtype, [&](auto type) { launch_forward<decltype(type)>(context, args); });
}

void linear_attention_backward(Context& context, const LinearAttentionBackwardArgs& args) {
  if (is_empty(args.q) || is_empty(args.v)) return;
  visit_floating(args.q.dtype, [&](auto type) { launch_backward<decltype(type)>(context, args); });
}

}  // namespace heddle::kernels::cuda
