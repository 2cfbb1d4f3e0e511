// A consumer of scan_warpgroup.h: the warpgroup that holds the state of 64 value features and computes out of them.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/scan_warpgroup_partial.h"
#include "kernels/attention/cuda/scan_warpgroup_shape.h"
#include "kernels/common/cuda/pieces.h"

namespace heddle::kernels::cuda {
namespace detail {

// ADDS: out (+=), else out (=).
template <class Shape, bool OUT, bool ADDS, PartialOut PARTIAL>
class ScanConsumer {
 public:
  using Shared = typename Shape::Shared;
  using Keys = typename Shape::Keys;
  using Scores = typename Shape::Scores;
  using WeightedKeys = typename Shape::WeightedKeys;
  using Chunk = typename Shape::Chunk;

  __device__ __forceinline__ ScanConsumer(const WarpgroupScan& scan, Shared& shared)
      : scan_(scan), args_(scan.args), shared_(shared), place_(scan.args) {}

  __device__ __forceinline__ void run() {
    if (const StateView<float> state_in = args_.span().state_in; state_in.data != nullptr) {
      for_each_number([&](int64_t key, int64_t value, float& s) { s = state_in.at(place_.state_head, key, value); });
    }
    shared_.ready[0].wait(0);
    if (shared_.chunks[0].starts_anew && !args_.from_end) clear_state();
    int stage = 0;
    for (int t = 0;; ++t) {
      const int pair = t % 2;
      shared_.ready[pair].wait(t / 2 % 2);
      const Chunk& chunk = shared_.chunks[stage];
      if (chunk.rows == 0) break;
      if (args_.window_states.data != nullptr) put_window_state(chunk);
      shared_.value_loaded[pair].wait(t / 2 % 2);
      advance(chunk, shared_.chunks[stage].in, t % 2, shared_.query[stage], shared_.scores[pair],
              shared_.weighted[pair % Shape::kWeightedStages]);
      arrive(shared_.free[pair]);
      stage = stage == 2 ? 0 : stage + 1;
    }
    if (OUT && lane_ == 0) wait_for_stores();
    const ScanSpan<float> span = args_.span();
    if (span.state_out.data == nullptr) return;
    for_each_number(
        [&](int64_t key, int64_t value, float& s) { put_state(args_, span, place_.state_head, key, value, s); });
  }

 private:
  static constexpr int kSixteenRows = 16 * 128;  // bytes in a matrix of 64 columns

  // Products are started so early that what follows, in this thread, has time until they are needed.
  __device__ __forceinline__ void advance(const Chunk& chunk, const float* in, unsigned parity, const Keys& query,
                                          const Scores& scores, const WeightedKeys& weighted) {
    FragmentA values[4];
    FragmentC out[8], added[8];
    const uint32_t own_values = shared_address(shared_.value.data) + value_offset_;
#pragma unroll
    for (int j = 0; j < 4; ++j) load_transposed(own_values + j * kSixteenRows, values[j].words);
    const bool is_finite = !OUT || all_finite(values);
    if constexpr (PARTIAL == PartialOut::added) partial().fetch(chunk);
    if (is_finite) arrive(shared_.value_free);
    if constexpr (OUT) apply_state<0>(query, out);
    if constexpr (OUT && Shape::kKeys == 64) wgmma_wait<0>();  // frees registers
    add_keys<0>(weighted, values, added);
    if constexpr (Shape::kKeys == 128) {
      if constexpr (OUT) {
        wgmma_wait<1>();
        apply_state<4>(query, out);
        wgmma_wait<1>();
      } else {
        wgmma_wait<0>();
      }
      move_on<0>(chunk, added);
      add_keys<64>(weighted, values, added);
    }
    if constexpr (OUT) {
      wgmma_wait<1>();
      hold(out);
      scale(in, out);
      if (!is_finite) {
        wgmma_wait<0>();
        drop_not_finite(values);
      }
      apply_scores(scores, values, out);
      wgmma_wait<1>();
    } else {
      wgmma_wait<0>();
    }
    move_on<Shape::kKeys / 8 - 8>(chunk, added);
    if constexpr (Shape::kWeightedStages == 1) arrive(shared_.weighted_free);
    if constexpr (OUT) {
      FragmentC before[8];
      if constexpr (PARTIAL == PartialOut::added) partial().load(chunk, before);
      if constexpr (PARTIAL != PartialOut::written) make_room(chunk, parity);
      wgmma_wait<0>();
      hold(out);
      if (!is_finite) {
        add_not_finite(shared_.value, scores, out);
        arrive(shared_.value_free);
      }
      if constexpr (PARTIAL == PartialOut::added) {
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) out[n].values[e] += before[n].values[e];
        }
      }
      if constexpr (PARTIAL == PartialOut::written) {
        partial().put(chunk, out);
      } else {
        put_out(chunk, out);
      }
    }
  }

  // Of 8 elements in a SwizzledMatrix of 64 rows, in bytes.
  static __device__ __forceinline__ uint32_t offset(unsigned row, unsigned col) {
    return col / 64 * (64 * 128) + row * 128 + ((col % 64 / 8) ^ (row % 8)) * 16;
  }
  __device__ __forceinline__ void clear_state() {
#pragma unroll
    for (int n = 0; n < Shape::kKeys / 8; ++n) state_[n] = FragmentC{};
  }
  // Calls visit(key feature, value feature, number) for the thread's numbers of the state that are no padding.
  template <class Visit>
  __device__ __forceinline__ void for_each_number(const Visit& visit) {
#pragma unroll
    for (int n = 0; n < Shape::kKeys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t key = n * 8 + static_cast<int>(t2_) + e % 2,
                      value = place_.first_value + column_ + g_ + e / 2 * 8;
        if (key < args_.query.dim && value < args_.value.dim) visit(key, value, state_[n].values[e]);
      }
    }
  }

  __device__ __forceinline__ void put_window_state(const Chunk& chunk) const {
    const int64_t window = args_.window_begun_by(chunk, place_.state_head);
    if (window < 0) return;
    stay_branch();
    const int keys = static_cast<int>(args_.query.dim),
              first = opaque(static_cast<int>(place_.first_value + column_ + g_));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (first + half * 8 >= args_.value.dim) break;
      float* const row = &args_.window_states.at(window, 0, first + half * 8) + t2_;
#pragma unroll
      for (int n = 0; n < Shape::kKeys / 8; ++n) {
        if (n * 8 >= keys) break;
        *reinterpret_cast<float2*>(row + n * 8) = {state_[n].values[half * 2], state_[n].values[half * 2 + 1]};
      }
    }
  }

  // out (= for the first, +=) S^T query^T for the key features 16 BEGIN to 16 BEGIN + 63, as a group of products.
  template <int BEGIN>
  __device__ __forceinline__ void apply_state(const Keys& queries, FragmentC (&out)[8]) const {
    PiecesA<2> state[4];
#pragma unroll
    for (int d = 0; d < 4; ++d) state[d] = pieces_of<2, true>(state_[2 * (BEGIN + d)], state_[2 * (BEGIN + d) + 1]);
    const uint64_t query = queries.by_rows(0, 0);
    wgmma_fence();
#pragma unroll
    for (int d = 0; d < 4; ++d) {
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        wgmma<bf16, cuda::Stored::by_rows>(out, state[d].parts[p], further(query, col_bytes((BEGIN + d) * 16)),
                                           BEGIN + d > 0 || p > 0);
      }
    }
    wgmma_commit();
  }

  // out += value^T scores^T, as a group of products.
  __device__ __forceinline__ void apply_scores(const Scores& scores, const FragmentA (&values)[4],
                                               FragmentC (&out)[8]) const {
    const uint64_t pieces = scores.pieces[0].by_rows(0, 0);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        constexpr int kPiece = sizeof(scores.pieces[0]);
        wgmma<bf16, cuda::Stored::by_rows>(out, values[j], further(pieces, p * kPiece + col_bytes(j * 16)), true);
      }
    }
    wgmma_commit();
  }

  // to = value^T (weighted key) for 64 key features from FIRST on, as a group of products.
  template <int FIRST>
  __device__ __forceinline__ void add_keys(const WeightedKeys& weighted, const FragmentA (&values)[4],
                                           FragmentC (&to)[8]) const {
    const uint64_t key = weighted.pieces[0].by_depth(0, 0);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        wgmma<bf16, cuda::Stored::by_depth>(
            to, values[j], further(key, p * Keys::kBytes + col_bytes(FIRST) + j * kSixteenRows), j > 0 || p > 0);
      }
    }
    wgmma_commit();
  }
  // S^T = whole S^T + added, or 0 where it is forgotten, for the key features 8 FIRST to 8 FIRST + 63. Added here,
  // since tensor cores cut what they add to a sum.
  template <int FIRST>
  __device__ __forceinline__ void move_on(const Chunk& chunk, FragmentC (&added)[8]) {
    hold(added);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& s = state_[FIRST + n].values[e];
        s = fmaf(s, chunk.whole, added[n].values[e]);
      }
    }
    if (chunk.is_forgotten) {
      stay_branch();
#pragma unroll
      for (int n = 0; n < 8; ++n) state_[FIRST + n] = FragmentC{};
    }
  }
  // Whether all values of the warp are finite.
  static __device__ __forceinline__ bool all_finite(const FragmentA (&values)[4]) {
    unsigned zeros = 0;
#pragma unroll
    for (int w = 0; w < 16; ++w) add_zero_times<bf16>(values[w / 4].words[w % 4], zeros);
    return __all_sync(0xffffffffu, (zeros & 0x7fff7fffu) == 0);
  }
  // Puts 0 in place of values that are not finite, so that 0 times them is 0.
  static __device__ __forceinline__ void drop_not_finite(FragmentA (&values)[4]) {
    stay_branch();
#pragma unroll
    for (int w = 0; w < 16; ++w) {
      unsigned& word = values[w / 4].words[w % 4];
      word &= ((word & 0x7f80u) == 0x7f80u ? 0u : 0xffffu) | ((word >> 16 & 0x7f80u) == 0x7f80u ? 0u : 0xffff0000u);
    }
  }
  // What those values give in the rows of out that see them.
  __device__ __forceinline__ void add_not_finite(typename Shape::Values& values, const Scores& scores,
                                                 FragmentC (&out)[8]) const {
    // Opaque, so that no address is computed before it is known to be needed.
    const int g = opaque(static_cast<int>(g_)), t2 = opaque(static_cast<int>(t2_));
#pragma unroll 1
    for (int j = 0; j < Shape::kRows; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int col = static_cast<int>(column_) + g + half * 8;
        const float value = widen(values.unit(j, col / 8 * 8)[col % 8]);
        if (isfinite(value)) continue;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int row = n * 8 + t2 + e;
            if (args_.from_end ? row <= j : row >= j) out[n].values[half * 2 + e] += score(scores, row, j) * value;
          }
        }
      }
    }
  }
  static __device__ __forceinline__ float score(const Scores& scores, int row, int col) {
    return widen(*element(scores.pieces[0], row, col)) + widen(*element(scores.pieces[1], row, col));
  }
  static __device__ __forceinline__ const bf16* element(const SwizzledMatrix<bf16, 64, 64>& matrix, int row, int col) {
    return matrix.data + row * 64 + ((col / 8) ^ (row % 8)) * 8 + col % 8;
  }

  __device__ __forceinline__ void scale(const float* in, FragmentC (&out)[8]) const {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 weight = *reinterpret_cast<const float2*>(in + n * 8 + t2_);
      out[n].values[0] *= weight.x;
      out[n].values[1] *= weight.y;
      out[n].values[2] *= weight.x;
      out[n].values[3] *= weight.y;
    }
  }

  // --- Out goes through shared memory, from where the copy engine takes it, 16 features of each warp ---

  // Makes sure that the chunk before has left shared memory; brings in what out is added to.
  __device__ __forceinline__ void make_room(const Chunk& chunk, unsigned parity) {
    if (lane_ == 0) {
      wait_for_stores();
      if constexpr (ADDS) {
        SharedBarrier& barrier = shared_.before_loaded[warp()];
        barrier.arrive_and_expect(sizeof(shared_.out[0]));
        copy_features(shared_address(shared_.out[warp()].data), scan_.out, barrier, batch(), head(), chunk.begin,
                      feature());
      }
    }
    __syncwarp();
    if constexpr (ADDS) shared_.before_loaded[warp()].wait(parity);
  }

  __device__ __forceinline__ void put_out(const Chunk& chunk, const FragmentC (&out)[8]) {
    constexpr int kTile = 16 * 32;  // bytes of 16 rows
    const uint32_t tile = shared_address(shared_.out[warp()].data);
    const uint32_t to = tile + (lane_ % 8 + lane_ / 16 * 8) * 32 + ((lane_ / 8 % 2) ^ (lane_ % 8 / 4)) * 16;
    const float outer = args_.outer;
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      unsigned words[4] = {};
      if constexpr (ADDS) load_transposed(to + n / 2 * kTile, words);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float* const pair = out[n + w / 2].values + w % 2 * 2;
        const float2 before = unpack<bf16>(words[w]);
        words[w] = ADDS ? pack<bf16>(fmaf(pair[0], outer, before.x), fmaf(pair[1], outer, before.y))
                        : pack<bf16>(pair[0] * outer, pair[1] * outer);
      }
      store_matrices<true>(to + n / 2 * kTile, words);
    }
    fence_async_proxy();
    __syncwarp();
    // The copy engine leaves out rows beyond the last token.
    if (chunk.rows == Shape::kRows || chunk.begin + chunk.rows == args_.query.length) {
      if (lane_ == 0) store_features(tile, scan_.out, batch(), head(), chunk.begin, feature());
    } else {
      put_rows(chunk);
    }
  }
  // The rows of a chunk that ends before the next multiple of kWindow.
  __device__ __forceinline__ void put_rows(const Chunk& chunk) {
    const int lane = opaque(static_cast<int>(lane_)), unit = lane % 2;
    if (feature() + unit * 8 >= args_.value.dim) return;
#pragma unroll 1
    for (int row = lane / 2; row < chunk.rows; row += 16) {
      bf16* const to =
          kernels::head<bf16>(args_.out.view, place_.batch, chunk.begin + row, place_.head) + feature() + unit * 8;
      const bf16* const from = shared_.out[warp()].data + row * 16 + (unit ^ (row / 4 % 2)) * 8;
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    }
  }

  __device__ __forceinline__ int batch() const { return static_cast<int>(place_.batch); }
  __device__ __forceinline__ int head() const { return static_cast<int>(place_.head); }
  // The first of the warp's features.
  __device__ __forceinline__ int feature() const { return static_cast<int>(place_.first_value + column_); }
  __device__ __forceinline__ PartialRows<Shape> partial() const { return {args_, place_, column_ + g_, t2_}; }
  // Which of the consumers' warps it is.
  __device__ __forceinline__ unsigned warp() const { return column_ / 16; }

  const WarpgroupScan& scan_;
  const ScanArgs<float>& args_;
  Shared& shared_;
  WarpgroupPlace<Shape> place_;
  unsigned lane_ = threadIdx.x % 32, g_ = lane_ / 4, t2_ = lane_ % 4 * 2;
  unsigned column_ = (threadIdx.x - 128) / 32 * 16;  // the warp's first value feature of the tile
  // In the matrix of values, of the row that the lane gives to load_transposed().
  uint32_t value_offset_ = offset(lane_ % 8 + lane_ / 16 * 8, column_ + lane_ / 8 % 2 * 8);
  FragmentC state_[Shape::kKeys / 8];
};

}  // namespace detail
}  // namespace heddle::kernels::cuda
