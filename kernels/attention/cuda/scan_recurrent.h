// The scan as the recurrence that it is, token by token in plain float32 arithmetic, for float32 heads with narrow
// states. A multiplication of two floats takes six products of bfloat16 pieces on tensor cores, whose tiles such heads
// do not fill; here it is one instruction, and since no product is masked, nothing is done about numbers that are not
// finite. In a warp each of eight groups of four lanes has 1, 2 or 4 value features; lane l of a group has the units l,
// l + 4, ... of four key features, which it reads from shared memory for each token, and the four lanes add up out.
//
// The state is not multiplied by a decay for each token. With L_i the sum of the log decays of a chunk up to token i,
// it is multiplied once, by exp(L_last); T is the state as it will be weighed at the end of the chunk. Without the
// scales,
//   T += to_i key_i value_i^T;   out_i = in_i query_i^T T
//   to_i = exp(L_last - L_i), from the end exp(L_i);   in_i = 1 / to_i
// in_i is kept at most 256: where exp(L_last) is below 1 / 256, every token is a step of its own.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstddef>
#include <cstdint>

#include "core/runtime/host_device.h"
#include "kernels/attention/cuda/scan.h"
#include "kernels/common/cuda/async.h"
#include "kernels/common/cuda/vec.h"

namespace heddle::kernels::cuda {
namespace detail {

// KEYS: features of query and key, a multiple of 16. VALUES: value features of a lane, 1, 2 or 4.
template <int KEYS, int VALUES>
struct RecurrentShape {
  static constexpr int kKeys = KEYS, kValues = VALUES, kUnits = KEYS / 16;  // of four key features, of one lane
  static constexpr int kWarpValues = 8 * VALUES, kMostWarps = VALUES == 4 ? 4 : 1;
  static constexpr int kRows = KEYS == 16 ? 32 : KEYS == 128 ? 8 : 16;  // of a chunk
  static constexpr int kTokens = 4;                                     // whose instructions alternate
  static constexpr int kThreads = 32 * kMostWarps;
  // On a multiprocessor at once, where there are as many warps as may be in a block.
  static constexpr int kBlocks = kMostWarps == 1 ? 16 : KEYS <= 32 ? 5 : KEYS == 64 ? 4 : 2;
};

// The decays of a chunk: how its rows are weighed in the state and in out, and what the state is multiplied by: by the
// first factor before the chunk or, with is_by_token, by one before each row, in a scan from the end after it.
template <int ROWS>
struct RecurrentDecays {
  float2 weights[ROWS];  // to and in, with the scales of the scan
  float2 factors[ROWS];  // as sums of two floats: a long sequence multiplies many of them
  bool is_by_token;
};

// What a block keeps in shared memory behind the rows.
template <int ROWS>
struct RecurrentShared {
  RecurrentDecays<ROWS> decays;
  ScanChunk chunks[3];  // the one that is computed and the two after it
  SharedWalk walk;      // of thread 0
};

// The work of one block, whose warps have value features side by side. OUT: out is wanted, not the last state alone.
// ADDS: out (+=), else out (=).
template <class Shape, bool OUT, bool ADDS>
class RecurrentScan {
 public:
  static constexpr int kKeys = Shape::kKeys, kValues = Shape::kValues, kUnits = Shape::kUnits, kRows = Shape::kRows;
  static constexpr int kTokens = Shape::kTokens;
  using Shared = RecurrentShared<kRows>;

  // Floats of a stage, and bytes of shared memory of a block with `width` value features.
  HEDDLE_HOST_DEVICE static constexpr int stage_floats(int width) { return kRows * ((OUT ? 2 : 1) * kKeys + width); }
  static constexpr size_t shared_bytes(int width) {
    return 2 * static_cast<size_t>(stage_floats(width)) * sizeof(float) + sizeof(Shared);
  }

  // `aligned`: rows are whole units of 16 bytes at multiples of 16 bytes.
  __device__ __forceinline__ RecurrentScan(const ScanArgs<float>& args, bool aligned, float* numbers)
      : args_(args),
        aligned_(aligned),
        numbers_(numbers),
        shared_(*reinterpret_cast<Shared*>(numbers + 2 * stage_floats(width()))),
        decay_(args, state_head()),
        query_(first_of(args.query, head_index()) + key_row() * stride_of(args.query) + key_column()),
        key_(first_of(args.key, shared_head()) + key_row() * stride_of(args.key) + key_column()),
        value_(first_of(args.value, shared_head()) + value_row() * stride_of(args.value) + first_value() +
               value_column()) {
    if constexpr (OUT) out_ = first_of<float>(args.out.view, head_index()) + first_value() + own_value();
  }

  __device__ __forceinline__ void run() {
    if (thread() == 0) {
      shared_.walk.start(args_, state_head(), kRows);
      for (int i = 0; i < 2; ++i) shared_.chunks[i] = shared_.walk.get().next();
    }
    __syncthreads();
    fetch(shared_.chunks[0], 0);
    const int64_t state_head = this->state_head();
    if (const StateView<float> state_in = args_.span().state_in; state_in.data != nullptr) {
      for_each_number([&](int64_t key, int64_t value, float& s) { s = state_in.at(state_head, key, value); });
    }
    for (int i = 0, stage = 0; shared_.chunks[i].rows > 0; stage ^= 1) {
      const int next = i == 2 ? 0 : i + 1, after = next == 2 ? 0 : next + 1;
      put_decays(shared_.chunks[i]);
      fetch(shared_.chunks[next], stage ^ 1);
      __pipeline_wait_prior(1);
      __syncthreads();
      if (thread() == 0) shared_.chunks[after] = shared_.walk.get().next();
      advance(shared_.chunks[i], stage);
      __syncthreads();
      i = next;
    }
    const ScanSpan<float> span = args_.span();
    if (span.state_out.data == nullptr) return;
    for_each_number([&](int64_t key, int64_t value, float& s) { put_state(args_, span, state_head, key, value, s); });
  }

 private:
  // --- Rows ---

  // A thread copies units of four features: of every step-th row of query and key, and of rows of the value features of
  // its warp.
  static constexpr int kKeyPlaces = kKeys / 4, kValuePlaces = 2 * kValues, kValueStep = 32 / kValuePlaces;
  static __device__ __forceinline__ int key_row() { return thread() / kKeyPlaces; }
  static __device__ __forceinline__ int key_column() { return thread() % kKeyPlaces * 4; }
  static __device__ __forceinline__ int value_row() { return lane() / kValuePlaces; }
  static __device__ __forceinline__ int value_column() { return warp_value() + lane() % kValuePlaces * 4; }

  // Starts to load what is needed of a chunk.
  __device__ __forceinline__ void fetch(const ScanChunk& chunk, int stage) {
    if (chunk.rows > 0) {
      const int64_t token = args_.token(chunk, 0), column = first_value() + value_column();
      const int step = threads() / kKeyPlaces, place = key_row() * kKeys + key_column();
      float* const query = numbers_ + stage * stage_floats(width());
      float* const key = query + (OUT ? kRows * kKeys : 0);
      float* const value = key + kRows * kKeys + value_row() * width() + value_column();
      if constexpr (OUT)
        copy_rows(args_.query, query_, key_column(), token, key_row(), step, chunk, query + place, kKeys);
      copy_rows(args_.key, key_, key_column(), token, key_row(), step, chunk, key + place, kKeys);
      copy_rows(args_.value, value_, column, token, value_row(), kValueStep, chunk, value, width());
      fetch_decay(chunk);
    }
    __pipeline_commit();
  }
  // Starts to copy four features from `feature` on of the rows row, row + step, ... of a chunk whose row 0 is `token`,
  // to rows of `width` floats. `from` is the thread's place where row 0 is the first token. Features that are not there
  // become 0, and rows from the last one up to a multiple of kTokens.
  __device__ __forceinline__ void copy_rows(const HeadsView& view, const float* from, int64_t feature, int64_t token,
                                            int row, int step, const ScanChunk& chunk, float* to, int width) const {
    from += token * view.length_stride;
    const int64_t stride = step * stride_of(view);
    const int there = static_cast<int>(view.dim - feature), rows = there > 0 ? chunk.rows : 0;
    const int end = (chunk.rows + kTokens - 1) / kTokens * kTokens;
    uint32_t place = shared_address(to);
    if (aligned_) {
#pragma unroll 4
      for (; row < end; row += step, from += stride, place += step * width * 4) copy_async_if(row < rows, place, from);
    } else {
#pragma unroll 1
      for (; row < end; row += step, from += stride, place += step * width * 4) {
#pragma unroll
        for (int e = 0; e < 4; ++e) copy_async_float_if(row < rows && there > e, place + e * 4, from + e);
      }
    }
  }

  // --- Decays ---

  // With one decay for all tokens those of a chunk depend on its length alone.
  __device__ __forceinline__ bool are_put(const ScanChunk& chunk) const {
    return decay_.sums == nullptr && chunk.rows == rows_;
  }
  // Each of the first kRows threads has a row.
  __device__ __forceinline__ void fetch_decay(const ScanChunk& chunk) {
    if (thread() >= chunk.rows || are_put(chunk)) return;
    const int64_t token = args_.token(chunk, thread());
    row_decay_ = RowDecay<float>(decay_, chunk, token);
    before_ = row_decay_.base;
    if (token == chunk.begin) return;
    before_ = decay_.sums != nullptr ? decay_.sums[token - 1]
                                     : decay_sum<float>(static_cast<double>(token - chunk.begin) * decay_.slope);
  }
  __device__ __forceinline__ void put_decays(const ScanChunk& chunk) {
    if (are_put(chunk)) return;
    rows_ = chunk.rows;
    if (thread() >= kRows) return;
    RecurrentDecays<kRows>& decays = shared_.decays;
    if (thread() >= chunk.rows) {
      decays.weights[thread()] = {0.0f, 0.0f};
      return;
    }
    constexpr float kLeast = -8.0f;  // of a chunk's sum of log2 of the decays
    const bool is_by_token = !(difference(row_decay_.last, row_decay_.base).x >= kLeast);  // the same for all rows
    const float2 own = row_decay_.own;
    const float2 to_end = args_.from_end ? difference(own, row_decay_.base) : difference(row_decay_.last, own);
    const float2 weights = is_by_token ? float2{1.0f, 1.0f} : float2{decay_power(to_end), decay_power(negated(to_end))};
    decays.weights[thread()] = {weights.x * args_.inner, weights.y * args_.outer};
    if (is_by_token || thread() == 0) {
      const double factor = is_by_token ? exact_power(difference(own, before_)) : row_decay_.whole();
      const float high = static_cast<float>(factor);
      decays.factors[thread()] = {high, static_cast<float>(factor - static_cast<double>(high))};
    }
    if (thread() == 0) decays.is_by_token = is_by_token;
  }

  // --- The recurrence ---

  __device__ __forceinline__ void advance(const ScanChunk& chunk, int stage) {
    const bool is_by_token = shared_.decays.is_by_token, is_after = is_by_token && args_.from_end;
    float* out = nullptr;  // the thread's, of the next row
    if constexpr (OUT) out = out_ + args_.token(chunk, 0) * args_.out.view.length_stride;
    if (!args_.from_end && chunk.starts_anew) clear_state();
    if (is_by_token) {
#pragma unroll 1
      for (int row = 0; row < chunk.rows; ++row) {
        if (!is_after) multiply_state(shared_.decays.factors[row]);
        add_tokens<1>(stage, row, chunk.rows, out);
        if (is_after) multiply_state(shared_.decays.factors[row]);
      }
    } else {
      multiply_state(shared_.decays.factors[0]);
#pragma unroll 1
      for (int row = 0; row < chunk.rows; row += kTokens) add_tokens<kTokens>(stage, row, chunk.rows, out);
    }
    if (args_.from_end && chunk.starts_anew) clear_state();  // what comes before knows nothing of it
  }

  // Adds the tokens of COUNT rows from `row` on to the state, one after the other, and puts their rows of out, the
  // first of which is at `to`; moves `to` behind them. Rows from `rows` on are 0.
  template <int COUNT>
  __device__ __forceinline__ void add_tokens(int stage, int row, int rows, float*& to) {
    const float* const numbers = numbers_ + stage * stage_floats(width());
    const float* const query = numbers + row * kKeys + lane() % 4 * 4;
    const float* const key = query + (OUT ? kRows * kKeys : 0);
    const float* const values = numbers + (OUT ? 2 : 1) * kRows * kKeys + row * width();
    Vec<float, kValues> weighted[COUNT];
    float out[COUNT][kValues] = {}, before[COUNT] = {};
    const int64_t stride = stride_of(args_.out.view);
    const bool is_own = (lane() % (4 / kValues) == 0) & (first_value() + own_value() < args_.value.dim);
    if constexpr (ADDS) {
#pragma unroll
      for (int t = 0; t < COUNT; ++t) {
        if (is_own & (row + t < rows)) before[t] = to[t * stride];
      }
    }
#pragma unroll
    for (int t = 0; t < COUNT; ++t) {
      weighted[t] = load<kValues>(values + t * width() + warp_value() + lane() / 4 * kValues);
#pragma unroll
      for (int c = 0; c < kValues; ++c) weighted[t][c] *= shared_.decays.weights[row + t].x;
    }
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
#pragma unroll
      for (int t = 0; t < COUNT; ++t) {
        const Vec<float, 4> k = load<4>(key + t * kKeys + unit * 16);
        Vec<float, 4> q{};
        if constexpr (OUT) q = load<4>(query + t * kKeys + unit * 16);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int c = 0; c < kValues; ++c) {
            float& s = state_[unit * 4 + i][c];
            s = fmaf(k[i], weighted[t][c], s);
            if constexpr (OUT) out[t][c] = fmaf(q[i], s, out[t][c]);
          }
        }
      }
    }
    if constexpr (OUT) {
#pragma unroll
      for (int t = 0; t < COUNT; ++t, to += stride) {
        const float sum = sum_of_own_value(out[t]) * shared_.decays.weights[row + t].y;
        if (is_own & (row + t < rows)) *to = ADDS ? before[t] + sum : sum;
      }
    }
  }

  // The four lanes of a group have parts of the sums of its value features. Each is given the sum of one of them, which
  // may be that of its neighbours, too.
  static __device__ __forceinline__ float sum_of_own_value(const float (&parts)[kValues]) {
    if constexpr (kValues == 1) {
      const float pair = parts[0] + __shfl_xor_sync(0xffffffffu, parts[0], 2);
      return pair + __shfl_xor_sync(0xffffffffu, pair, 1);
    } else {
      const bool second = lane() % 4 >= 2, odd = lane() % 2 == 1;
      float halves[kValues / 2];
#pragma unroll
      for (int c = 0; c < kValues / 2; ++c) {
        const float low = parts[c], high = parts[kValues / 2 + c];
        halves[c] = (second ? high : low) + __shfl_xor_sync(0xffffffffu, second ? low : high, 2);
      }
      const float low = halves[0], high = halves[kValues / 2 - 1];
      return (odd ? high : low) + __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
    }
  }
  // The value feature of the block that sum_of_own_value() is of.
  static __device__ __forceinline__ int own_value() { return warp_value() + lane() / (4 / kValues); }

  // --- The state ---

  __device__ __forceinline__ void multiply_state(float2 factor) {
    if (factor.x == 1.0f && factor.y == 0.0f) return;
    for_each_state([&](float& s) { s = fmaf(s, factor.x, s * factor.y); });
  }
  __device__ __forceinline__ void clear_state() {
    stay_branch();
    for_each_state([](float& s) { s = 0.0f; });
  }
  template <class Visit>
  __device__ __forceinline__ void for_each_state(const Visit& visit) {
#pragma unroll
    for (int k = 0; k < kUnits * 4; ++k) {
#pragma unroll
      for (int c = 0; c < kValues; ++c) visit(state_[k][c]);
    }
  }
  // Calls visit(key feature, value feature, number) for the lane's numbers that are no padding.
  template <class Visit>
  __device__ __forceinline__ void for_each_number(const Visit& visit) {
#pragma unroll
    for (int k = 0; k < kUnits * 4; ++k) {
      const int64_t key = k / 4 * 16 + lane() % 4 * 4 + k % 4;
#pragma unroll
      for (int c = 0; c < kValues; ++c) {
        const int64_t value = first_value() + warp_value() + lane() / 4 * kValues + c;
        if (key < args_.key.dim && value < args_.value.dim) visit(key, value, state_[k][c]);
      }
    }
  }

  // --- Where the thread stands ---

  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ __forceinline__ int threads() { return static_cast<int>(blockDim.x); }
  static __device__ __forceinline__ int lane() { return thread() % 32; }
  // The block's value features, the first of them, and the warp's first in the block.
  static __device__ __forceinline__ int width() { return threads() / (4 / kValues); }
  static __device__ __forceinline__ int64_t first_value() { return int64_t{blockIdx.y} * width(); }
  static __device__ __forceinline__ int warp_value() { return thread() / 32 * Shape::kWarpValues; }

  __device__ __forceinline__ int64_t batch() const { return blockIdx.x / static_cast<unsigned>(args_.query.heads); }
  __device__ __forceinline__ int64_t head_index() const {
    return blockIdx.x % static_cast<unsigned>(args_.query.heads);
  }
  __device__ __forceinline__ int64_t shared_head() const { return head_index() / args_.group; }
  __device__ __forceinline__ int64_t state_head() const { return args_.state_head(batch(), head_index()); }
  template <class T = const float>
  __device__ __forceinline__ T* first_of(const HeadsView& view, int64_t head_index) const {
    return head<T>(view, batch(), 0, head_index);
  }
  // From a row to the next.
  __device__ __forceinline__ int64_t stride_of(const HeadsView& view) const {
    return args_.from_end ? -view.length_stride : view.length_stride;
  }

  const ScanArgs<float>& args_;
  const bool aligned_;
  float* const numbers_;  // two stages of rows of query, key and value
  Shared& shared_;
  HeadDecay<float> decay_;
  const float *query_, *key_, *value_;  // the thread's places of the first row that it copies, where row 0 is token 0
  float* out_ = nullptr;                // its feature of token 0
  RowDecay<float> row_decay_;           // of the thread's row of the chunk that was fetched last
  float2 before_ = {};                  // its sum of log decays without its own
  int rows_ = -1;                       // of the chunk whose decays are in shared memory, where that decides
  float state_[kUnits * 4][kValues] = {};
};

}  // namespace detail
}  // namespace heddle::kernels::cuda
