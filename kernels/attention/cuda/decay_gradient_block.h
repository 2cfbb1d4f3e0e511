// The work of one block of decay_gradient.cu: a window of one head.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "kernels/attention/cuda/decay_gradient.h"
#include "kernels/attention/cuda/row_copier.h"
#include "kernels/attention/cuda/scan.h"
#include "kernels/common/cuda/activation.h"
#include "kernels/common/cuda/pieces.h"
#include "kernels/common/cuda/reduce.h"
#include "kernels/common/cuda/vec.h"

namespace heddle::kernels::cuda {
namespace detail {

inline constexpr int kDecayTiles = kDecayWindow / 16;  // of 16 tokens in a window, each computed by a warp
inline constexpr int kDecayThreads = 32 * kDecayTiles;

// DIM: features of q and k, and of v and d_o, that are computed at once; the others are 0.
template <class T_, int DIM>
struct DecayShape {
  using T = T_;
  static constexpr int kDim = DIM;

  struct Shared {
    StoredMatrix<T, kDecayWindow, DIM> rows, columns;  // q and d_o, then k and v
    ComputedMatrix<T, DIM, DIM> state;                 // S, then dS
    float2 sums[kDecayWindow];                         // of log decays, from the start of the window
    int documents[kDecayWindow];                       // how many tokens up to this one start anew
    // Of each token: X of its row, c of its column, and sums of P_ij (scan.h): over the columns of the tiles before,
    // for its row i; over the rows of the tiles after, for its column j; and over the pairs of its tile on either side
    // of it.
    float row[kDecayWindow], column[kDecayWindow];
    float row_pairs[kDecayWindow], column_pairs[kDecayWindow], tile_pairs[kDecayWindow];
    // Of each tile: the sums of the first two; and of P over the rows of tile i, for the columns j of the tiles before.
    float row_tiles[kDecayTiles], column_tiles[kDecayTiles];
    float columns_of_tile[kDecayTiles * (kDecayTiles - 1) / 2][16];
    float totals[kDecayTiles]
                [kDecayTiles + 1];  // the sums of those over the columns of a tile, then of all tiles before one
    ReduceShared<float, kDecayThreads> reduce;
  };
};

template <class Shape>
class DecayBlock {
 public:
  using T = typename Shape::T;
  using Shared = typename Shape::Shared;
  static constexpr int kDim = Shape::kDim, kDepths = kDim / 16;
  using Rows = StoredMatrix<T, kDecayWindow, kDim>;
  using RowFragments = PiecesA<Rows::kPlanes>[kDepths];  // of the tile of the warp

  __device__ __forceinline__ DecayBlock(const DecayGradientArgs& args, bool vectorized, Shared& shared)
      : args_(args), shared_(shared), vectorized_(vectorized) {
    const int64_t windows = parts_of(args.decays.query.length, kDecayWindow);
    begin_ = blockIdx.x % windows * kDecayWindow;
    state_head_ = blockIdx.x / windows;
    rows_ = static_cast<int>(min(int64_t{kDecayWindow}, args.decays.query.length - begin_));
    const auto value_parts = static_cast<unsigned>(parts_of(args.v.dim, kDim));
    first_key_ = static_cast<int>(blockIdx.y / value_parts) * kDim;
    first_value_ = static_cast<int>(blockIdx.y % value_parts) * kDim;
  }

  __device__ __forceinline__ void run() {
    load_rows(q(), q().heads, first_key_, shared_.rows);
    load_rows(args_.d_o, q().heads, first_value_, shared_.columns);
    find_decays();
    const float* const state = state_of_window(args_.states);
    const float* const d_state = state_of_window(args_.d_states);
    load_state(state, [](int, int, const auto&) {});
    prefetch(d_state);
    __pipeline_wait_prior(0);
    __syncthreads();
    RowFragments queries, gradients;
    load_fragments(shared_.rows, queries);
    load_fragments(shared_.columns, gradients);
    __syncthreads();
    load_rows(args_.k, args_.k.heads, first_key_, shared_.rows);
    load_rows(args_.v, args_.k.heads, first_value_, shared_.columns);

    const int last = rows_ - 1;
    apply_state(
        gradients, [&](int f) { return queries[f]; }, shared_.row,
        [&](int i) { return shared_.documents[i] == 0 ? args_.scale * power_of(shared_.sums[i]) : 0.0f; });
    __syncthreads();
    float crossing = 0.0f;
    load_state(d_state, [&](int f, int v, const Vec<float, 4>& after) {
      const Vec<float, 4> before = numbers_of(state, f, v);
#pragma unroll
      for (int e = 0; e < 4; ++e) crossing += before[e] * after[e];
    });
    crossing = block_sum(crossing, shared_.reduce);
    __pipeline_wait_prior(0);
    __syncthreads();
    multiply_pairs(queries, gradients);
    RowFragments values;
    load_fragments(shared_.columns, values);
    const auto keys = [&](int f) { return load_a(shared_.rows, tile_ * 16, f * 16); };
    apply_state(values, keys, shared_.column, [&](int j) {
      return shared_.documents[j] == shared_.documents[last] ? power_of(difference(shared_.sums[last], shared_.sums[j]))
                                                             : 0.0f;
    });
    __syncthreads();
    sum_columns();
    __syncthreads();
    sum_tiles();
    __syncthreads();
    if (thread_ >= rows_) return;
    crossing = shared_.documents[last] == 0 ? crossing * power_of(shared_.sums[last]) : 0.0f;
    const int64_t heads = q().batch * q().heads;
    args_.token_gradients[(blockIdx.y * heads + state_head_) * q().length + begin_ + thread_] =
        crossing + sum_around(thread_);
  }

 private:
  __device__ __forceinline__ const HeadsView& q() const { return args_.decays.query; }
  static __device__ __forceinline__ float power_of(float2 sum) { return fast_exp2(sum.x + sum.y); }

  // Starts to copy the window's rows of one tensor to shared memory, as one group of asynchronous copies.
  __device__ __forceinline__ void load_rows(const HeadsView& view, int64_t heads, int64_t first, Rows& to) const {
    const int64_t batch = state_head_ / q().heads, head = state_head_ % q().heads / (q().heads / heads);
    const RowCopier<T, kDecayThreads, kDecayWindow, kDim> copier(view, batch, head, first, false);
    copier.copy(begin_, rows_, vectorized_, to);
    __pipeline_commit();
  }

  // The first kDecayWindow threads each compute the sum of log decays and the document number of one token.
  __device__ __forceinline__ void find_decays() {
    if (thread_ >= kDecayWindow) return;
    const ScanArgs<float>& args = args_.decays;
    const HeadDecay<float> decay(args, state_head_);
    const bool forgets = decay.sums == nullptr && args.log_decay != nullptr &&
                         args.log_decay[state_head_ % args.decays] == -infinity<float>();
    const int64_t words = parts_of(q().length, kWindow), first = state_head_ * words + begin_ / kWindow;
    int documents = 0;
    double sum = decay.slope * 1.4426950408889634 * (thread_ + 1);
    if (decay.sums != nullptr) sum = thread_ < rows_ ? as_double(decay.sums[begin_ + thread_]) : 0.0;
    for (int word = 0; word * kWindow <= thread_ && word * kWindow < rows_; ++word) {
      uint64_t starts = forgets ? ~uint64_t{0} : args.starts != nullptr ? args.starts[first + word] : 0;
      const int end = (word + 1) * kWindow;
      if (thread_ < end) {
        starts &= ~uint64_t{0} >> (end - 1 - thread_);
      } else if (decay.sums != nullptr && end <= rows_) {
        sum += as_double(decay.sums[begin_ + end - 1]);
      }
      documents += __popcll(starts);
    }
    shared_.documents[thread_] = documents;
    const float high = static_cast<float>(sum);
    shared_.sums[thread_] = {high, static_cast<float>(sum - static_cast<double>(high))};
  }
  static __device__ __forceinline__ double as_double(float2 sum) {
    return static_cast<double>(sum.x) + static_cast<double>(sum.y);
  }

  // The state of this block's head and window, from the block's first features on.
  __device__ __forceinline__ const float* state_of_window(const float* states) const {
    const int64_t windows = parts_of(q().length, kDecayWindow);
    return states + ((state_head_ * windows + begin_ / kDecayWindow) * q().dim + first_key_) * args_.v.dim +
           first_value_;
  }
  // Starts to bring a state to L2: a line of 32 numbers at once.
  __device__ __forceinline__ void prefetch(const float* state) const {
    for (int i = thread_; i < kDim * kDim / 32; i += kDecayThreads) {
      const int f = i / (kDim / 32), v = i % (kDim / 32) * 32;
      if (first_key_ + f >= q().dim || first_value_ + v >= args_.v.dim) continue;
      asm volatile("prefetch.global.L2 [%0];" ::"l"(state + f * args_.v.dim + v));
    }
  }
  // Numbers (f, v) to (f, v + 3) of a state, 0 where there are none.
  __device__ __forceinline__ Vec<float, 4> numbers_of(const float* state, int f, int v) const {
    const int value_dim = static_cast<int>(args_.v.dim);
    const int there = first_key_ + f < q().dim ? value_dim - first_value_ - v : 0;
    const float* const from = state + f * value_dim + v;
    Vec<float, 4> numbers = {};
    if (there >= 4 && value_dim % 4 == 0) {
      numbers = load<4>(from);
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (e < there) numbers[e] = from[e];
      }
    }
    return numbers;
  }
  // Puts a state into shared memory and calls visit(f, v, numbers) for all of it.
  template <class Visit>
  __device__ __forceinline__ void load_state(const float* state, const Visit& visit) {
#pragma unroll 4
    for (int i = thread_; i < kDim * kDim / 4; i += kDecayThreads) {
      const int f = i / (kDim / 4), v = i % (kDim / 4) * 4;
      const Vec<float, 4> numbers = numbers_of(state, f, v);
      visit(f, v, numbers);
      shared_.state.put_computed(f, v, numbers[0], numbers[1]);
      shared_.state.put_computed(f, v + 2, numbers[2], numbers[3]);
    }
  }

  __device__ __forceinline__ void load_fragments(const Rows& from, RowFragments& to) const {
#pragma unroll
    for (int d = 0; d < kDepths; ++d) to[d] = load_a(from, tile_ * 16, d * 16);
  }

  // to_i = weight(i) (the sum over f and v of first_if state_fv second_iv) for the warp's tokens; 0 after the last one.
  // first(f) is a fragment.
  template <class First, class Weight>
  __device__ __forceinline__ void apply_state(const RowFragments& second, const First& first, float* to,
                                              const Weight& weight) const {
    float sums[2] = {};
#pragma unroll
    for (int f = 0; f < kDepths; f += 2) {
      FragmentC products[2][2];
#pragma unroll
      for (int d = 0; d < kDepths; ++d) {
        const auto rows = pieces<T>(second[d]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply(products[i], rows, load_b_transposed(shared_.state, (f + i) * 16, d * 16));
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const auto fragment = first(f + i);
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          const float2 pair = unpack<T>(fragment.parts[0].words[w]);
          const float* const product = products[i][w / 2].values + w % 2 * 2;
          sums[w % 2] += product[0] * pair.x + product[1] * pair.y;
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = tile_ * 16 + g_ + half * 8;
      const float sum = group_sum<4>(sums[half]), factor = weight(token);
      if (t2_ == 0) to[token] = token < rows_ && factor != 0.0f ? factor * sum : 0.0f;
    }
  }

  // --- Pairs ---

  // Computes the pairs of the rows of the warp's tile with the columns of the tiles before it, and of its own.
  __device__ __forceinline__ void multiply_pairs(const RowFragments& queries, const RowFragments& gradients) {
    const TokenDecays rows = {{shared_.sums[tile_ * 16 + g_], shared_.sums[tile_ * 16 + g_ + 8]},
                              {shared_.documents[tile_ * 16 + g_], shared_.documents[tile_ * 16 + g_ + 8]}};
    float row_sums[2] = {};
    FragmentC pairs[2];
#pragma unroll 1
    for (int j = 0; j < tile_ && j * 16 < rows_; ++j) {
      multiply_tile(queries, gradients, rows, j, pairs);
      float column_sums[2][2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) column_sums[n][e] = pairs[n].values[e] + pairs[n].values[2 + e];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          row_sums[half] += pairs[n].values[half * 2] + pairs[n].values[half * 2 + 1];
        }
      }
      put_sums_of_columns(column_sums, shared_.columns_of_tile[place_of(tile_, j)]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = group_sum<4>(row_sums[half]);
      if (t2_ == 0) shared_.row_pairs[tile_ * 16 + g_ + half * 8] = sum;
    }
    multiply_tile(queries, gradients, rows, tile_, pairs);
    put_pairs_of_tile(pairs);
  }
  // Index in columns_of_tile of the sums for tiles i and j < i.
  static __device__ __forceinline__ int place_of(int i, int j) { return i * (i - 1) / 2 + j; }

  // Sums of log decays and document numbers of the two rows that a lane holds.
  struct TokenDecays {
    float2 sums[2];
    int documents[2];
  };

  // The pairs with the columns of tile j, as C; 0 for those of two documents, of which a row is after the last token,
  // or whose column is not before its row.
  __device__ __forceinline__ void multiply_tile(const RowFragments& queries, const RowFragments& gradients,
                                                const TokenDecays& rows, int j, FragmentC (&pairs)[2]) const {
    FragmentC scores[2], d_scores[2];
    auto key = load_b_transposed(shared_.rows, j * 16, 0), value = load_b_transposed(shared_.columns, j * 16, 0);
#pragma unroll
    for (int d = 0; d < kDepths; ++d) {
      const auto k = key, v = value;
      if (d + 1 < kDepths) {  // before the products, so that they do not wait for it
        key = load_b_transposed(shared_.rows, j * 16, (d + 1) * 16);
        value = load_b_transposed(shared_.columns, j * 16, (d + 1) * 16);
      }
      multiply_stored<T>(scores, queries[d], k);
      multiply_stored<T>(d_scores, gradients[d], v);
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int first = j * 16 + n * 8 + t2_;
      const float4 sums = *reinterpret_cast<const float4*>(&shared_.sums[first]);
      const int2 documents = *reinterpret_cast<const int2*>(&shared_.documents[first]);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = tile_ * 16 + g_ + e / 2 * 8, column = first + e % 2;
        const float2 from = e % 2 == 0 ? float2{sums.x, sums.y} : float2{sums.z, sums.w};
        const bool counts =
            rows.documents[e / 2] == (e % 2 == 0 ? documents.x : documents.y) && column < row && row < rows_;
        const float weight = args_.scale * power_of(difference(rows.sums[e / 2], from));
        pairs[n].values[e] = counts ? scores[n].values[e] * d_scores[n].values[e] * weight : 0.0f;
      }
    }
  }

  // Adds up over the eight g: to[n * 8 + t2 + e] = the sum of sums[n][e].
  __device__ __forceinline__ void put_sums_of_columns(const float (&sums)[2][2], float* to) const {
    const bool upper = thread_ & 16, odd = thread_ & 8;  // each lane keeps one of the four
    float kept[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      kept[e] = (upper ? sums[1][e] : sums[0][e]) + __shfl_xor_sync(0xffffffffu, upper ? sums[0][e] : sums[1][e], 16);
    }
    float sum = (odd ? kept[1] : kept[0]) + __shfl_xor_sync(0xffffffffu, odd ? kept[0] : kept[1], 8);
    sum += __shfl_xor_sync(0xffffffffu, sum, 4);
    if ((thread_ & 4) == 0) to[(upper ? 8 : 0) + t2_ + (odd ? 1 : 0)] = sum;
  }

  // For each token t of the tile the sum of the pairs of a row at or after it and a column before it.
  __device__ __forceinline__ void put_pairs_of_tile(const FragmentC (&pairs)[2]) {
    float sums[2][2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float before = 0.0f;  // the sum of the row's columns before 8 n
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float first = pairs[n].values[half * 2], second = pairs[n].values[half * 2 + 1];
        float upto = first + second;  // of the columns up to those of the lane
#pragma unroll
        for (int distance = 1; distance < 4; distance *= 2) {
          const float other = __shfl_up_sync(0xffffffffu, upto, distance, 4);
          if (t2_ >= 2 * distance) upto += other;
        }
        const float lower = __shfl_up_sync(0xffffffffu, upto, 1, 4), at = before + (t2_ > 0 ? lower : 0.0f);
        const int row = g_ + half * 8, column = n * 8 + t2_;
        if (row >= column) sums[n][0] += at;
        if (row >= column + 1) sums[n][1] += at + first;
        before += __shfl_sync(0xffffffffu, upto, 3, 4);
      }
    }
    put_sums_of_columns(sums, shared_.tile_pairs + tile_ * 16);
  }

  // --- Sums over tokens ---

  // Half of the threads add up over the rows of later tiles, for one column each; the others over the columns of a
  // tile.
  __device__ __forceinline__ void sum_columns() {
    const int t = thread_ % kDecayWindow, tile = t / 16, place = t % 16;
    float sum = 0.0f;
    if (thread_ < kDecayWindow) {
      if (t < rows_) {
        for (int i = tile + 1; i < kDecayTiles; ++i) sum += shared_.columns_of_tile[place_of(i, tile)][place];
      }
      shared_.column_pairs[t] = sum;
    } else {
      if (place < tile && place * 16 < rows_) sum = sum_of_16(shared_.columns_of_tile[place_of(tile, place)]);
      shared_.totals[tile][place] = sum;
    }
  }
  __device__ __forceinline__ void sum_tiles() {
    const int i = thread_ % 32;
    if (i >= kDecayTiles) return;
    if (tile_ == 0) {
      float before = 0.0f;
      for (int j = 0; j < kDecayTiles; ++j) {
        const float total = shared_.totals[i][j];
        shared_.totals[i][j] = before;
        before += total;
      }
    } else if (tile_ == 1) {
      shared_.row_tiles[i] = sum_of_16(shared_.row + i * 16);
    } else if (tile_ == 2) {
      shared_.column_tiles[i] = sum_of_16(shared_.column + i * 16);
    }
  }
  static __device__ __forceinline__ float sum_of_16(const float* numbers) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 16; ++i) sum += numbers[i];
    return sum;
  }

  // What is on either side of token t: rows at or after it, columns before it.
  __device__ __forceinline__ float sum_around(int t) const {
    const int tile = t / 16;
    float sum = shared_.tile_pairs[t];
    for (int i = t; i < tile * 16 + 16; ++i) sum += shared_.row[i] + shared_.row_pairs[i];
    for (int i = tile + 1; i < kDecayTiles; ++i) sum += shared_.row_tiles[i] + shared_.totals[i][tile];
    for (int j = tile * 16; j < t; ++j) sum += shared_.column[j] + shared_.column_pairs[j];
    for (int j = 0; j < tile; ++j) sum += shared_.column_tiles[j];
    return sum;
  }

  const DecayGradientArgs& args_;
  Shared& shared_;
  bool vectorized_;
  int64_t begin_ = 0, state_head_ = 0;
  int rows_ = 0, first_key_ = 0, first_value_ = 0;
  int thread_ = static_cast<int>(threadIdx.x), tile_ = thread_ / 32, g_ = thread_ % 32 / 4, t2_ = thread_ % 4 * 2;
};

}  // namespace detail
}  // namespace heddle::kernels::cuda
