// The scan on the matrix instructions of warpgroups (sm_90a), for float32 heads of up to 128 features of query and key.
// Every number enters products as the sum of three bfloat16 pieces, see pieces.h. A block has one or two warpgroups,
// each with the state of 64 value features in registers, in float; chunks have 64 tokens. In a chunk
//   scores = query key^T and out = query S     query from registers, key and S in shared memory
//   out   += weighted scores value             scores from registers, value in shared memory
//   S      = whole S + (weighted key)^T value  key from registers
// Rows of key and value are copied asynchronously while the chunk before is computed; every thread splits the numbers
// that it has copied itself. Of the products of pieces the small ones are added up first, and sums over the features or
// the tokens of a chunk are added to the others in float, since tensor cores cut what they add to a sum.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/attention/cuda/scan.h"
#include "kernels/attention/cuda/scan_decays.h"
#include "kernels/attention/cuda/scan_float32_products.h"
#include "kernels/attention/cuda/scan_float32_shape.h"
#include "kernels/attention/cuda/wgmma.h"
#include "kernels/common/cuda/pieces.h"
#include "kernels/common/cuda/vec.h"

namespace heddle::kernels::cuda {
namespace detail {

// The work of one block. OUT: out is wanted, not the last state alone. ADDS: out (+=), else out (=).
template <class Shape, bool OUT, bool ADDS>
class Float32Scan {
 public:
  using Shared = typename Shape::Shared;

  __device__ __forceinline__ Float32Scan(const ScanArgs<float>& args, Shared& shared)
      : args_(args),
        shared_(shared),
        key_(args.key, batch(), head_index() / args.group, 0, args.from_end, shared_address(shared.raw_key())),
        value_(args.value, batch(), head_index() / args.group, int64_t{blockIdx.y} * Shape::kValues, args.from_end,
               shared_address(shared.template raw_value<OUT>())),
        decays_(args, state_head()) {
    if constexpr (OUT) {
      query_ = head<const float>(args.query, batch(), 0, head_index()) + (row_ + g_) * step_of(args.query) + t2_;
      out_ =
          head<float>(args.out.view, batch(), 0, head_index()) + (row_ + g_) * step_of(args.out.view) + first_column();
    }
  }

  __device__ __forceinline__ void run() {
    if (threadIdx.x == 0) {
      shared_.walk.start(args_, state_head(), Shape::kRows);
      for (int i = 0; i < 2; ++i) shared_.chunks[i] = shared_.walk.get().next();
    }
    __syncthreads();
    fetch_keys(shared_.chunks[0]);
    if constexpr (!kOneRaw) fetch_values(shared_.chunks[0]);
    const int64_t state_head = this->state_head();
    if (const StateView<float> state_in = args_.span().state_in; state_in.data != nullptr) {
      for_each_number([&](int64_t d, int64_t c, float& s) { s = state_in.at(state_head, d, c); });
    }
    if constexpr (OUT) {
#pragma unroll
      for (int m = 0; m < kStateTiles; ++m) share_state(m);
    }
    for (int i = 0; shared_.chunks[i].rows > 0;) {
      const int next = i == 2 ? 0 : i + 1, after = next == 2 ? 0 : next + 1;
      advance(shared_.chunks[i], shared_.chunks[next], shared_.chunks[after]);
      i = next;
    }
    __pipeline_wait_prior(0);
    const ScanSpan<float> span = args_.span();
    if (span.state_out.data == nullptr) return;
    for_each_number([&](int64_t d, int64_t c, float& s) { put_state(args_, span, state_head, d, c, s); });
  }

 private:
  static constexpr int kKeys = Shape::kKeys, kRows = Shape::kRows, kSteps = kKeys / 16, kStateTiles = kKeys / 64;
  static constexpr bool kOneRaw = OUT && Shape::kOneRaw;  // key and value are copied to the same place in turn
  static constexpr int kSixteenRows = 16 * 128;           // bytes in a matrix of 64 columns
  static constexpr int kPieceBytes = sizeof(SwizzledMatrix<bf16, kRows, 64>);
  static constexpr bool kEarlyScores = kSteps == 4;  // scores are ready before out is
  static constexpr cuda::Stored kByDepth = cuda::Stored::by_depth;

  // Computes `chunk`, starts to copy `next`, and finds the one after it.
  __device__ __forceinline__ void advance(const ScanChunk& chunk, const ScanChunk& next, ScanChunk& after_next) {
    float2 query[kSteps][4];
    if constexpr (OUT) load_query(chunk, query);
    decays_.fetch(chunk);
    wait_for_first();
    __syncthreads();  // the pieces and decays of the chunk before have been read
    key_.template split<false>(shared_.key);
    decays_.put(chunk, shared_.decays);
    fence_async_proxy();
    __syncthreads();
    if constexpr (kOneRaw) {
      fetch_values(chunk);
    } else {
      fetch_keys(next);
    }
    FragmentC scores[8], out[8];
    if constexpr (OUT) {
      start_query_products(query, shared_.key, shared_.state[group_], scores, out);
    }
    if (threadIdx.x == 0) after_next = shared_.walk.get().next();
    wait_for_first();
    bool is_finite = value_.template split<OUT>(shared_.value);
    PiecesA<3> weights[4];
    if constexpr (OUT) {
      wgmma_wait<kEarlyScores ? 1 : 0>();
      hold(scores);
      weigh(scores);
    }
    fence_async_proxy();
    is_finite = __syncthreads_and(static_cast<int>(is_finite)) != 0;
    if constexpr (kOneRaw) {
      fetch_keys(next);
    } else {
      fetch_values(next);
    }
    FragmentC added[8];
    unsigned lost_columns = 0;  // a bit for each of the thread's columns whose values are not all finite
    if constexpr (OUT) {
      wgmma_wait<0>();
      hold(out);
#pragma unroll
      for (int j = 0; j < 4; ++j) weights[j] = pieces_of<3, true>(scores[2 * j], scores[2 * j + 1]);
      scale(chunk, out);
      if (!is_finite) lost_columns = add_not_finite(args_, chunk, weights, row_ + g_, first_column(), out);
      start_product<kByDepth, kPieceBytes>(weights, value_pieces(), added);
    }
    move_on(chunk, lost_columns, [&] {
      if constexpr (OUT) {
        hold(added);
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float& number = out[n].values[e];
            number = fmaf(added[n].values[e], args_.inner, number);
          }
        }
        store_out(chunk, out);
      }
    });
  }

  // --- Copies ---

  __device__ __forceinline__ void fetch_keys(const ScanChunk& chunk) {
    if (chunk.rows > 0) key_.fetch(args_.token(chunk, 0), chunk.rows);
    __pipeline_commit();
  }
  __device__ __forceinline__ void fetch_values(const ScanChunk& chunk) {
    if (chunk.rows > 0) value_.fetch(args_.token(chunk, 0), chunk.rows);
    __pipeline_commit();
  }
  // Waits for the oldest of the copies under way.
  static __device__ __forceinline__ void wait_for_first() { __pipeline_wait_prior(kOneRaw ? 0 : 1); }

  // The warp's 16 rows of query as operand A, words of which are pairs of numbers here.
  __device__ __forceinline__ void load_query(const ScanChunk& chunk, float2 (&query)[kSteps][4]) const {
    const float* from = query_ + args_.token(chunk, 0) * args_.query.length_stride;
#pragma unroll
    for (int half = 0; half < 2; ++half, from += 8 * step_of(args_.query)) {
      const int features = row_ + g_ + half * 8 < chunk.rows ? static_cast<int>(args_.query.dim) - t2_ : 0;
#pragma unroll
      for (int col = 0; col < kKeys; col += 8) {
        query[col / 16][half + col % 16 / 8 * 2] =
            col < features ? *reinterpret_cast<const float2*>(from + col) : float2{0.0f, 0.0f};
      }
    }
  }

  // --- Out ---

  // Multiplies scores by the decays between their tokens, but not by args.inner.
  __device__ __forceinline__ void weigh(FragmentC (&scores)[8]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row_ + g_ + half * 8;
      const float2 sum = shared_.decays.sums[row];
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int depth = n * 8 + t2_ + e;
          const float2 exponent = difference(sum, shared_.decays.sums[depth]);
          float& score = scores[n].values[2 * half + e];
          score = row >= depth ? score * fast_exp2(exponent.x + exponent.y) : 0.0f;
        }
      }
    }
  }
  // Multiplies what comes from the state by the decays since the chunk began.
  __device__ __forceinline__ void scale(const ScanChunk& chunk, FragmentC (&out)[8]) const {
    const float upper = shared_.decays.in[row_ + g_], lower = shared_.decays.in[row_ + g_ + 8];
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) out[n].values[e] *= e < 2 ? upper : lower;
    }
    if (!args_.from_end && chunk.starts_anew) {  // it is forgotten
      stay_branch();
#pragma unroll
      for (int n = 0; n < 8; ++n) out[n] = FragmentC{};
    }
  }

  __device__ __forceinline__ void store_out(const ScanChunk& chunk, const FragmentC (&out)[8]) const {
    const auto features = static_cast<int>(args_.value.dim - first_column());
    float* to = out_ + args_.token(chunk, 0) * args_.out.view.length_stride;
#pragma unroll
    for (int half = 0; half < 2; ++half, to += 8 * step_of(args_.out.view)) {
      if (row_ + g_ + half * 8 >= chunk.rows) continue;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const Vec<float, 2> numbers = {out[n].values[2 * half] * args_.outer,
                                       out[n].values[2 * half + 1] * args_.outer};
        if (n * 8 < features) store_or_add(to + n * 8, numbers, ADDS);
      }
    }
  }

  // --- The state ---

  // Calls visit(key feature, value feature, number) for the thread's numbers that are no padding.
  template <class Visit>
  __device__ __forceinline__ void for_each_number(const Visit& visit) {
#pragma unroll
    for (int m = 0; m < kStateTiles; ++m) {
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int64_t key = m * 64 + row_ + g_ + e / 2 * 8, value = first_column() + n * 8 + e % 2;
          if (key < args_.query.dim && value < args_.value.dim) visit(key, value, state_[m][n].values[e]);
        }
      }
    }
  }
  // Writes the pieces of tile m of the state to shared memory.
  __device__ __forceinline__ void share_state(int m) const {
    const unsigned lane = threadIdx.x % 32, eighth = lane % 8;
    const uint32_t first =
        shared_address(shared_.state[group_][0].data) + (row_ + eighth + lane / 8 % 2 * 8) * 128 + m * (64 * 128);
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      const auto words = pieces_of<3, true>(state_[m][n], state_[m][n + 1]);
      const uint32_t at = first + ((n + lane / 16) ^ eighth) * 16;
#pragma unroll
      for (int p = 0; p < 3; ++p) store_four_matrices(at + p * sizeof(shared_.state[0][0]), words.parts[p].words);
    }
  }

  // S = whole S + (weighted key)^T value. Calls finish_out() when only products for S are under way.
  template <class FinishOut>
  __device__ __forceinline__ void move_on(const ScanChunk& chunk, unsigned lost_columns, const FinishOut& finish_out) {
    PiecesA<3> keys[4];
    FragmentC sum[8];
    if constexpr (kStateTiles == 1) {
      weigh_keys(0, keys);
      start_product<kByDepth, kPieceBytes>(keys, value_pieces(), sum);
      wgmma_wait<1>();
      finish_out();
      wgmma_wait<0>();
      move_tile(chunk, lost_columns, 0, sum);
    } else {
      if constexpr (OUT) wgmma_wait<0>();
      weigh_keys(0, keys);
      start_product<kByDepth, kPieceBytes>(keys, value_pieces(), sum);
      finish_out();
      PiecesA<3> more_keys[4];
      weigh_keys(1, more_keys);
      FragmentC more_sum[8];
      start_product<kByDepth, kPieceBytes>(more_keys, value_pieces(), more_sum);
      wgmma_wait<1>();
      move_tile(chunk, lost_columns, 0, sum);
      wgmma_wait<0>();
      move_tile(chunk, lost_columns, 1, more_sum);
    }
  }
  // The same for 64 key features, and shares them.
  __device__ __forceinline__ void move_tile(const ScanChunk& chunk, unsigned lost_columns, int m, FragmentC (&sum)[8]) {
    hold(sum);
    const float2 whole = shared_.decays.whole;
    if (chunk.starts_anew) {
      stay_branch();
#pragma unroll
      for (int n = 0; n < 8; ++n) state_[m][n] = FragmentC{};
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& s = state_[m][n].values[e];
        s = fmaf(s, whole.x, fmaf(s, whole.y, sum[n].values[e]));
      }
    }
    if (OUT && lost_columns != 0) {
      stay_branch();
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if ((lost_columns >> (2 * n + e % 2) & 1) != 0) state_[m][n].values[e] = NAN;
        }
      }
    }
    if (chunk.starts_anew && args_.from_end) {  // what comes before knows nothing of it
      stay_branch();
#pragma unroll
      for (int n = 0; n < 8; ++n) state_[m][n] = FragmentC{};
    }
    if constexpr (OUT) share_state(m);
  }

  __device__ __forceinline__ void weigh_keys(int m, PiecesA<3> (&keys)[4]) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) keys[j] = weighted_keys(j, m);
  }
  // Rows 16 j to 16 j + 15 of key, weighted, as operand A whose rows are the warp's key features of tile m.
  __device__ __forceinline__ PiecesA<3> weighted_keys(int j, int m) const {
    const unsigned lane = threadIdx.x % 32, eighth = lane % 8;
    const uint32_t from = shared_address(shared_.key[0].data) + (eighth + lane / 16 * 8) * 128 +
                          ((row_ / 8 + lane / 8 % 2) ^ eighth) * 16 + j * kSixteenRows + m * (64 * 128);
    unsigned stored[3][4];
#pragma unroll
    for (int p = 0; p < 3; ++p) load_four_transposed(from + p * sizeof(shared_.key[0]), stored[p]);
    PiecesA<3> result;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      float2 pair = unpack<bf16>(stored[2][w]);
#pragma unroll
      for (int p = 1; p >= 0; --p) {
        const float2 part = unpack<bf16>(stored[p][w]);
        pair.x += part.x;
        pair.y += part.y;
      }
      const float2 to = *reinterpret_cast<const float2*>(shared_.decays.to + j * 16 + t2_ + w / 2 * 8);
      unsigned words[3];
      split<3, true>(pair.x * to.x, pair.y * to.y, words);
#pragma unroll
      for (int p = 0; p < 3; ++p) result.parts[p].words[w] = words[p];
    }
    return result;
  }

  // The warpgroup, the same for all lanes of a warp, as the compiler can tell.
  static __device__ __forceinline__ int own_group() {
    return Shape::kGroups == 1 ? 0 : __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
  }

  __device__ __forceinline__ uint64_t value_pieces() const { return shared_.value[group_][0].by_depth(0, 0); }

  __device__ __forceinline__ int64_t batch() const { return blockIdx.x / static_cast<unsigned>(args_.query.heads); }
  __device__ __forceinline__ int64_t head_index() const {
    return blockIdx.x % static_cast<unsigned>(args_.query.heads);
  }
  __device__ __forceinline__ int64_t state_head() const { return args_.state_head(batch(), head_index()); }
  // From a row of a chunk to the next.
  __device__ __forceinline__ int64_t step_of(const HeadsView& view) const {
    return args_.from_end ? -view.length_stride : view.length_stride;
  }
  // The thread's first value feature.
  __device__ __forceinline__ int64_t first_column() const {
    return int64_t{blockIdx.y} * Shape::kValues + group_ * 64 + t2_;
  }

  const ScanArgs<float>& args_;
  Shared& shared_;
  Float32Rows<Shape::kThreads, kKeys> key_;
  Float32Rows<Shape::kThreads, Shape::kValues> value_;
  ScanDecays<Shape::kRows> decays_;
  int group_ = own_group();
  int row_ = static_cast<int>(threadIdx.x) % 128 / 32 * 16;  // the warp's rows of the chunk and of a tile of the state
  int g_ = static_cast<int>(threadIdx.x) % 32 / 4, t2_ = static_cast<int>(threadIdx.x) % 4 * 2;
  const float* query_ = nullptr;  // of token 0, for the thread's first row of a chunk
  float* out_ = nullptr;
  FragmentC state_[kStateTiles][8];
};

}  // namespace detail
}  // namespace heddle::kernels::cuda
