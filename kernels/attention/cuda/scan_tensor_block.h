// The work of one block of scan_tensor.h.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>
#include <type_traits>

#include "kernels/attention/cuda/row_copier.h"
#include "kernels/attention/cuda/scan.h"
#include "kernels/attention/cuda/scan_decays.h"
#include "kernels/common/cuda/activation.h"
#include "kernels/common/cuda/pieces.h"
#include "kernels/common/cuda/reduce.h"
#include "kernels/common/cuda/vec.h"

namespace heddle::kernels::cuda {
namespace detail {

// Fragments are laid out as mma.h says.
template <class Shape>
class TensorScan {
 public:
  using T = typename Shape::T;
  using Shared = typename Shape::Shared;
  using Decays = ScanDecayShared<Shape::kRows>;

  __device__ __forceinline__ TensorScan(const ScanArgs<float>& args, bool vectorized, Shared& shared)
      : args_(args),
        shared_(shared),
        vectorized_(vectorized),
        head_(blockIdx.x % args.query.heads),
        batch_(blockIdx.x / args.query.heads),
        state_head_(args.state_head(batch_, head_)),
        first_value_(int64_t{blockIdx.y} * Shape::kValues),
        query_(args.query, batch_, head_, 0, args.from_end),
        key_(args.key, batch_, head_ / args.group, 0, args.from_end),
        value_(args.value, batch_, head_ / args.group, first_value_, args.from_end),
        decays_(args, state_head_),
        walk_(args, args.span(), state_head_, Shape::kRows) {}

  __device__ __forceinline__ void run() {
    ScanChunk chunk = walk_.next();
    fetch_pairs(chunk, 0);
    fetch_query(chunk);
    if (chunk.rows > 0) decays_.put(chunk, shared_.decays);
    if (const StateView<float> state_in = args_.span().state_in; state_in.data != nullptr) {
      for_each_number([&](int64_t d, int64_t c, float& s) { s = state_in.at(state_head_, d, c); });
    }
    share_state();
    for (int stage = 0; chunk.rows > 0; stage ^= 1) {
      const ScanChunk next = walk_.next();
      __pipeline_wait_prior(0);
      __syncthreads();  // the chunk, its decays and the state are written
      if constexpr (Shape::kStages == 2) fetch_pairs(next, stage ^ 1);
      const Decays& decays = shared_.decays;
      const auto& key = shared_.key[stage % Shape::kStages];
      const auto& value = shared_.value[stage % Shape::kStages];
      if constexpr (Shape::kDecay) {
        load_partner(chunk);
        __syncthreads();
      } else {
        if (args_.window_states.data != nullptr) put_window_state(chunk);
      }
      if (!args_.is_for_span_states) {
        compute_out(chunk, decays, key, value);
        __syncthreads();  // all warps have read query
      }
      fetch_query(next);
      if constexpr (Shape::kDecay) note_crossing(chunk, decays);
      if (owns_state_) advance_state(chunk, decays, key, value);
      __syncthreads();  // all warps have read the chunk and the state from before
      if constexpr (Shape::kDecay) put_token_gradients(chunk);
      share_state();
      if constexpr (Shape::kStages == 1) fetch_pairs(next, stage ^ 1);
      if (next.rows > 0) decays_.put(next, shared_.decays);
      chunk = next;
    }
    __pipeline_wait_prior(0);
    const ScanSpan<float> span = args_.span();
    if (span.state_out.data == nullptr) return;
    for_each_number([&](int64_t d, int64_t c, float& s) { put_state(args_, span, state_head_, d, c, s); });
  }

 private:
  static constexpr int kKeys = Shape::kKeys, kValues = Shape::kValues, kRows = Shape::kRows;
  static constexpr int kOutTiles = Shape::kColumns / 8, kPieceCount = kComputedPieces<T>;

  // Start to load the rows of the chunk: those of key and value while the chunk before is computed, those of query, of
  // which there is one copy, while the state moves on.
  __device__ __forceinline__ void fetch_pairs(const ScanChunk& chunk, int stage) {
    if (chunk.rows == 0) return;
    const int64_t token = args_.token(chunk, 0);
    key_.copy(token, chunk.rows, vectorized_, shared_.key[stage % Shape::kStages]);
    value_.copy(token, chunk.rows, vectorized_, shared_.value[stage % Shape::kStages]);
    decays_.fetch(chunk);
  }
  __device__ __forceinline__ void fetch_query(const ScanChunk& chunk) {
    if (chunk.rows == 0) return;
    if (!args_.is_for_span_states) query_.copy(args_.token(chunk, 0), chunk.rows, vectorized_, shared_.query);
    __pipeline_commit();
  }

  // Calls visit(key feature, feature of the tile, address of two numbers) for the thread's numbers of the state.
  template <class Visit>
  __device__ __forceinline__ void for_each_pair(const Visit& visit) {
    if (!owns_state_) return;
#pragma unroll
    for (int m = 0; m < Shape::kStateTiles; ++m) {
#pragma unroll
      for (int n = 0; n < Shape::kStateColumns / 8; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          visit(state_row_ + m * 16 + g_ + half * 8, state_column_ + n * 8 + t2_, state_[m][n].values + 2 * half);
        }
      }
    }
  }
  // Calls visit(key feature, value feature, number) for those that are no padding.
  template <class Visit>
  __device__ __forceinline__ void for_each_number(const Visit& visit) {
    for_each_pair([&](int d, int c, float* numbers) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int64_t feature = first_value_ + c + e;
        if (d < args_.query.dim && feature < args_.value.dim) visit(d, feature, numbers[e]);
      }
    });
  }
  __device__ __forceinline__ void share_state() {
    for_each_pair([&](int d, int c, const float* s) { shared_.state.put_computed(d, c, s[0], s[1]); });
  }

  __device__ __forceinline__ void put_window_state(const ScanChunk& chunk) {
    const int64_t window = args_.window_begun_by(chunk, state_head_);
    if (window < 0) return;
    for_each_number([&](int64_t d, int64_t c, float& s) { args_.window_states.at(window, d, c) = s; });
  }

  // out = exp(..) query S + the sum over the chunk's pairs, for the warp's rows and columns.
  template <class Key, class Value>
  __device__ __forceinline__ void compute_out(const ScanChunk& chunk, const Decays& decays, const Key& key,
                                              const Value& value) {
    FragmentC out[kOutTiles];
    const bool has_rows = row_tile_ < chunk.rows, is_forgotten = !args_.from_end && chunk.starts_anew;
    if (has_rows && !is_forgotten) apply_state(decays, out);
    if constexpr (Shape::kDecay) note_rows(out, is_forgotten);
    if (!has_rows) return;
#pragma unroll 1
    for (int j = 0; j < row_tile_; j += 16) apply_scores<false>(decays, key, value, j, out);
    apply_scores<true>(decays, key, value, row_tile_, out);
    if (args_.out) store_out(chunk, out);
  }

  __device__ __forceinline__ void apply_state(const Decays& decays, FragmentC (&out)[kOutTiles]) const {
#pragma unroll
    for (int d = 0; d < kKeys; d += 16) {
      const auto q = pieces<T>(load_a(shared_.query, row_tile_, d));
#pragma unroll
      for (int n = 0; n < kOutTiles / 2; ++n) {
        multiply(out + 2 * n, q, load_b(shared_.state, d, column_ + n * 16));
      }
    }
    const float upper = decays.in[row_tile_ + g_], lower = decays.in[row_tile_ + g_ + 8];
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
      out[n].values[0] *= upper;
      out[n].values[1] *= upper;
      out[n].values[2] *= lower;
      out[n].values[3] *= lower;
    }
  }

  // Adds what the rows j to j + 15 of key and value give. DIAGONAL: they are those of query and out, so that a row does
  // not see all of them.
  template <bool DIAGONAL, class Key, class Value>
  __device__ __forceinline__ void apply_scores(const Decays& decays, const Key& key, const Value& value, int j,
                                               FragmentC (&out)[kOutTiles]) {
    FragmentC scores[2];
#pragma unroll
    for (int d = 0; d < kKeys; d += 16)
      multiply_stored<T>(scores, load_a(shared_.query, row_tile_, d), load_b_transposed(key, j, d));
    const auto sees = [](int row, int depth) { return !DIAGONAL || row >= depth; };
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int row = g_ + e % 4 / 2 * 8, depth = e / 4 * 8 + t2_ + e % 2;
      const float2 exponent = difference(decays.sums[row_tile_ + row], decays.sums[j + depth]);
      const float power = sizeof(T) == 2 ? fast_exp2(exponent.x + exponent.y) : decay_power(exponent);
      float& score = scores[e / 4].values[e % 4];
      score = sees(row, depth) ? score * (args_.inner * power) : 0.0f;
    }
    if constexpr (Shape::kDecay) {
      if (!args_.from_end && column_ == 0) note_pairs(value, scores, j, sees);
    }
    if constexpr (DIAGONAL) {
      add_masked_product<T>(out, scores, value, j, column_, sees);
    } else {
      add_product<T>(out, scores, value, j, column_);
    }
  }

  __device__ __forceinline__ void store_out(const ScanChunk& chunk, const FragmentC (&out)[kOutTiles]) const {
    const bool adds = args_.out.mode == GradientMode::accumulate;
    // Calls visit(address, number of features that are there, two numbers).
    const auto each_pair = [&](auto type, const auto& visit) {
      using Out = decltype(type);
      const int64_t first = first_value_ + column_ + t2_;
      const int there = static_cast<int>(args_.value.dim - first);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = row_tile_ + g_ + half * 8;
        if (r >= chunk.rows) continue;
        Out* const row = head<Out>(args_.out.view, batch_, args_.token(chunk, r), head_) + first;
#pragma unroll
        for (int n = 0; n < kOutTiles; ++n) {
          const Vec<float, 2> numbers = {out[n].values[2 * half] * args_.outer,
                                         out[n].values[2 * half + 1] * args_.outer};
          if (n * 8 < there) visit(row + n * 8, there - n * 8, numbers);
        }
      }
    };
    const auto put = [&](auto type) {
      using Out = decltype(type);
      if (vectorized_) {  // both are there, and the address is a multiple of their size
        each_pair(type, [&](Out* to, int, const Vec<float, 2>& numbers) { store_or_add(to, numbers, adds); });
      } else {
        each_pair(type, [&](Out* to, int there, const Vec<float, 2>& numbers) {
          for (int e = 0; e < min(there, 2); ++e) to[e] = narrow<Out>(adds ? numbers[e] + widen(to[e]) : numbers[e]);
        });
      }
    };
    if (sizeof(T) == sizeof(float) || args_.out.view.dtype == dtype_of<T>) {
      put(T{});
    } else {
      put(float{});
    }
  }

  template <class Key, class Value>
  __device__ __forceinline__ void advance_state(const ScanChunk& chunk, const Decays& decays, const Key& key,
                                                const Value& value) {
    const float2 whole = decays.whole;
    if (chunk.starts_anew) clear_state();
#pragma unroll
    for (int m = 0; m < Shape::kStateTiles; ++m) {
      PiecesA<kPieceCount> k[kRows / 16];
#pragma unroll
      for (int j = 0; j < kRows / 16; ++j) k[j] = weighted_keys(decays, key, j * 16, state_row_ + m * 16);
#pragma unroll
      for (int n = 0; n < Shape::kStateColumns / 16; ++n) {
        FragmentC sum[2];
#pragma unroll
        for (int j = 0; j < kRows / 16; ++j) {
          multiply(sum, k[j], pieces<T>(load_b(value, j * 16, state_column_ + n * 16)));
        }
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          float& s = state_[m][2 * n + e / 4].values[e % 4];
          const float added = sum[e / 4].values[e % 4];
          s = fmaf(s, whole.x, fmaf(s, whole.y, added));
        }
      }
    }
    if (chunk.starts_anew && args_.from_end) clear_state();  // what comes before knows nothing of it
  }
  __device__ __forceinline__ void clear_state() {
    for_each_pair([](int, int, float* s) { s[0] = s[1] = 0.0f; });
  }

  // Rows j to j + 15 of key, weighted, as operand A whose rows are the key features from d on.
  template <class Key>
  __device__ __forceinline__ PiecesA<kPieceCount> weighted_keys(const Decays& decays, const Key& key, int j,
                                                                int d) const {
    PiecesA<kPieceCount> result;
    const auto stored = load_a_transposed(key, j, d);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const int depth = j + t2_ + w / 2 * 8;
      float2 pair = {0.0f, 0.0f};
#pragma unroll
      for (int p = 0; p < Stored<T>::kPlanes; ++p) {
        const float2 part = unpack<typename Stored<T>::type>(stored.parts[p].words[w]);
        pair.x += part.x;
        pair.y += part.y;
      }
      unsigned words[kPieceCount];
      split<kPieceCount, true>(pair.x * decays.to[depth], pair.y * decays.to[depth + 1], words);
#pragma unroll
      for (int p = 0; p < kPieceCount; ++p) result.parts[p].words[w] = words[p];
    }
    return result;
  }

  // --- The gradient of the log decays ---

  __device__ __forceinline__ float& history(const ScanChunk& chunk, int64_t d, int64_t c) const {
    const int64_t chunks = parts_of(args_.query.length, kRows);
    return args_.history[((state_head_ * chunks + chunk.begin / kRows) * args_.query.dim + d) * args_.value.dim + c];
  }

  __device__ __forceinline__ void load_partner(const ScanChunk& chunk) {
    const RowCopier<T, Shape::kThreads, kRows, kValues> partner(args_.partner, batch_, head_, first_value_,
                                                                args_.from_end);
    partner.copy(args_.token(chunk, 0), chunk.rows, false, shared_.decay.partner);
    if (args_.from_end || chunk.starts_anew) return;
    for_each_number([&](int64_t d, int64_t c, float& s) { history(chunk, d, c) = s; });
  }

  // The products of partner with the part of out that comes from the state: X or c of each row.
  __device__ __forceinline__ void note_rows(const FragmentC (&out)[kOutTiles], bool is_forgotten) {
    float sums[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sums[e / 2] +=
            out[n].values[e] * shared_.decay.partner.value(row_tile_ + g_ + e / 2 * 8, column_ + n * 8 + t2_ + e % 2);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = is_forgotten ? 0.0f : group_sum<4>(sums[half]) * args_.outer;
      if (t2_ == 0) shared_.decay.rows[column_ / Shape::kColumns][row_tile_ + g_ + half * 8] = sum;
    }
  }

  // P of the warp's rows and the rows j to j + 15 of value.
  template <class Value, class Sees>
  __device__ __forceinline__ void note_pairs(const Value& value, const FragmentC (&scores)[2], int j,
                                             const Sees& sees) {
    FragmentC pairs[2];
#pragma unroll
    for (int c = 0; c < kValues; c += 16) {
      multiply_stored<T>(pairs, load_a(shared_.decay.partner, row_tile_, c), load_b_transposed(value, j, c));
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int row = g_ + e % 4 / 2 * 8, depth = e / 4 * 8 + t2_ + e % 2;
      shared_.decay.pairs[row_tile_ + row][j + depth] =
          sees(row, depth) ? pairs[e / 4].values[e % 4] * scores[e / 4].values[e % 4] * args_.outer : 0.0f;
    }
  }

  // exp(L_last) <S, dS> of the warp's numbers, in a scan from the end.
  __device__ __forceinline__ void note_crossing(const ScanChunk& chunk, const Decays& decays) {
    if (!args_.from_end) return;
    float sum = 0.0f;
    if (!chunk.starts_anew) {
      for_each_number([&](int64_t d, int64_t c, float& s) { sum += history(chunk, d, c) * s; });
    }
    sum = group_sum(sum);
    if (thread_ % 32 == 0) shared_.decay.warps[warp_] = sum * decays.whole.x;
  }

  __device__ __forceinline__ void put_token_gradients(const ScanChunk& chunk) {
    auto& decay = shared_.decay;
    const int r = thread_;
    if (!args_.from_end) {
      if (r < chunk.rows) {
        for (int j = 1; j < r; ++j) decay.pairs[r][j] += decay.pairs[r][j - 1];
      }
      __syncthreads();
    }
    if (r >= chunk.rows) return;
    const auto row = [&](int i) {
      float sum = 0.0f;
      for (int part = 0; part < Shape::kColumnParts; ++part) sum += decay.rows[part][i];
      return sum;
    };
    float sum = 0.0f;
    if (args_.from_end) {
      for (int w = 0; w < Shape::kWarps; ++w) sum += decay.warps[w];
      for (int j = r + 1; j < chunk.rows; ++j) sum += row(j);
    } else {
      for (int i = r; i < chunk.rows; ++i) sum += row(i) + (r > 0 ? decay.pairs[i][r - 1] : 0.0f);
    }
    const int64_t states = args_.query.batch * args_.heads;
    float& to =
        args_
            .token_gradients[(int64_t{blockIdx.y} * states + state_head_) * args_.query.length + args_.token(chunk, r)];
    to = args_.from_end ? to + sum : sum;
  }

  const ScanArgs<float>& args_;
  Shared& shared_;
  bool vectorized_;  // rows can be read 16 bytes at a time and written two numbers at a time
  int64_t head_, batch_, state_head_, first_value_;
  RowCopier<T, Shape::kThreads, kRows, kKeys> query_, key_;
  RowCopier<T, Shape::kThreads, kRows, kValues> value_;
  ScanDecays<kRows> decays_;
  ChunkWalk<float> walk_;

  int thread_ = static_cast<int>(threadIdx.x), warp_ = thread_ / 32;
  int g_ = thread_ % 32 / 4, t2_ = thread_ % 4 * 2;
  int row_tile_ = warp_ % Shape::kRowTiles * 16;             // the warp's rows of the chunk
  int column_ = warp_ / Shape::kRowTiles * Shape::kColumns;  // and features of the tile
  int state_row_ = warp_ / Shape::kStateParts * 16 * Shape::kStateTiles;
  int state_column_ = warp_ % Shape::kStateParts * Shape::kStateColumns;
  bool owns_state_ = state_row_ < Shape::kKeys;
  FragmentC state_[Shape::kStateTiles][Shape::kStateColumns / 8];
};

}  // namespace detail
}  // namespace heddle::kernels::cuda
