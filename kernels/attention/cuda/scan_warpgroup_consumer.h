// A consumer of scan_warpgroup.h: the warpgroup that holds the state of 64 value features and computes out of them.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/scan_warpgroup_shape.h"
#include "kernels/common/cuda/pieces.h"
#include "kernels/common/cuda/vec.h"

namespace heddle::kernels::cuda {
namespace detail {

// ADDS: out (+=), else out (=).
template <class Shape, bool OUT, bool ADDS>
class ScanConsumer {
 public:
  using Shared = typename Shape::Shared;
  using Rows = typename Shape::Rows;
  using Chunk = typename Shape::Chunk;

  __device__ __forceinline__ ScanConsumer(const ScanArgs<float>& args, Shared& shared)
      : args_(args), shared_(shared), place_(args) {
    const int64_t feature = place_.first_value + group_ * 64 + thread_ % 8 * 8;
    has_out_ = feature < args.value.dim;
    if constexpr (OUT) out_ = head<bf16>(args.out.view, place_.batch, 0, place_.head) + feature;
  }

  __device__ __forceinline__ void run() {
    if (const StateView<float> state_in = args_.span().state_in; state_in.data != nullptr) {
      for_each_number([&](int64_t key, int64_t value, float& s) { s = state_in.at(place_.state_head, key, value); });
    }
    shared_.ready[0].wait(0);
    if (shared_.chunks[0].starts_anew && !args_.from_end) clear_state();
    int stage = 0;
    unsigned parity = 0;
    for (int t = 0;; ++t) {
      shared_.ready[stage].wait(parity);
      const Chunk& chunk = shared_.chunks[stage];
      if (chunk.rows == 0) break;
      advance(chunk, shared_.rows[stage], shared_.scores[t % 2]);
      __syncwarp();
      if (lane_ == 0) shared_.free[stage].arrive();
      stage = stage == Shape::kStages - 1 ? 0 : stage + 1;
      if (stage == 0) parity ^= 1;
    }
    const ScanSpan<float> span = args_.span();
    if (span.state_out.data == nullptr) return;
    for_each_number(
        [&](int64_t key, int64_t value, float& s) { put_state(args_, span, place_.state_head, key, value, s); });
  }

 private:
  static constexpr int kKeyTiles = Shape::kKeys / 16, kSixteenRows = 16 * 128;  // bytes in a matrix of 64 columns

  __device__ __forceinline__ void advance(const Chunk& chunk, Rows& rows, const typename Shape::Scores& scores) {
    FragmentC out[8];
    if constexpr (OUT) {
      apply_state<0, kKeyTiles / 2>(rows, out);
      apply_state<kKeyTiles / 2, kKeyTiles>(rows, out);
    }
    FragmentA values[4], weighted[2][4];
    const uint32_t own_values = shared_address(rows.value.data) + value_offset_;
    if constexpr (OUT) wgmma_wait<1>();
#pragma unroll
    for (int j = 0; j < 4; ++j) load_transposed(own_values + j * kSixteenRows, values[j].words);
#pragma unroll
    for (int j = 0; j < 4; ++j) weigh(chunk, values[j], j, weighted[0][j], weighted[1][j]);
    bool is_finite = true;
    if constexpr (OUT) {
      is_finite = drop_not_finite(values);
      wgmma_wait<0>();
      hold(out);
      scale(chunk, out);
      apply_scores(scores, values, out);
    }
    FragmentC added[8], added_too[8];
    add_keys(rows, weighted, 0, added);
    if constexpr (OUT) {
      const OutRows to(*this, chunk);
      const uint32_t staged = shared_address(rows.value.data) + out_offset_;
      uint4 before[kOutUnits];
      if constexpr (ADDS) to.each([&](int i, bf16* at) { before[i] = *reinterpret_cast<const uint4*>(at); });
      wgmma_wait<1>();
      hold(out);
      if (!is_finite) add_not_finite(rows, scores, out);
      if constexpr (ADDS) {
        barrier_sync(2 + group_, 128);  // all warps have read their values
        to.each([&](int i, bf16*) { store_shared(staged + i * kSixteenRows, before[i]); });
        barrier_sync(2 + group_, 128);
      }
      stage_out(own_values, out);
      barrier_sync(2 + group_, 128);
      to.each([&](int i, bf16* at) { copy_unit(staged + i * kSixteenRows, at); });
    }
    if constexpr (kKeyTiles == 8) {
      add_keys(rows, weighted, 64, added_too);
      wgmma_wait<1>();
      move_on<0>(chunk, added);
      wgmma_wait<0>();
      move_on<8>(chunk, added_too);
    } else {
      wgmma_wait<0>();
      move_on<0>(chunk, added);
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

  // out (= for the first, +=) S^T query^T for the key features 16 BEGIN to 16 END - 1, as a group of products.
  template <int BEGIN, int END>
  __device__ __forceinline__ void apply_state(const Rows& rows, FragmentC (&out)[8]) const {
    PiecesA<2> state[END - BEGIN];
#pragma unroll
    for (int d = BEGIN; d < END; ++d) state[d - BEGIN] = pieces_of<2, true>(state_[2 * d], state_[2 * d + 1]);
    const uint64_t query = rows.query.by_rows(0, 0);
    wgmma_fence();
#pragma unroll
    for (int d = BEGIN; d < END; ++d) {
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        wgmma<bf16, cuda::Stored::by_rows>(out, state[d - BEGIN].parts[p], further(query, col_bytes(d * 16)),
                                           d > 0 || p > 0);
      }
    }
    wgmma_commit();
  }

  // out += value^T scores^T, as a group of products.
  __device__ __forceinline__ void apply_scores(const typename Shape::Scores& scores, const FragmentA (&values)[4],
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

  // to = (weighted values)^T key for 64 key features from first_key on, as a group of products.
  __device__ __forceinline__ void add_keys(const Rows& rows, const FragmentA (&weighted)[2][4], int first_key,
                                           FragmentC (&to)[8]) const {
    const uint64_t key = rows.key.by_depth(0, 0);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        wgmma<bf16, cuda::Stored::by_depth>(to, weighted[p][j], further(key, col_bytes(first_key) + j * kSixteenRows),
                                            j > 0 || p > 0);
      }
    }
    wgmma_commit();
  }
  // S^T = whole S^T + added, or 0 where it is forgotten, for the key features 8 FIRST to 8 FIRST + 63. Added here,
  // since tensor cores cut what they add to a sum.
  template <int FIRST>
  __device__ __forceinline__ void move_on(const Chunk& chunk, FragmentC (&added)[8]) {
    hold(added);
    const float whole = chunk.whole;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& s = state_[FIRST + n].values[e];
        s = fmaf(s, whole, added[n].values[e]);
      }
    }
    if (chunk.is_forgotten) {
      stay_branch();
#pragma unroll
      for (int n = 0; n < 8; ++n) state_[FIRST + n] = FragmentC{};
    }
  }
  // Keeps the compiler from computing what follows in a rarely taken branch in any case.
  static __device__ __forceinline__ void stay_branch() { asm volatile("" ::: "memory"); }

  // The pieces of the rows times their weights in the state.
  __device__ __forceinline__ void weigh(const Chunk& chunk, const FragmentA& values, int j, FragmentA& high,
                                        FragmentA& low) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 weight = *reinterpret_cast<const float2*>(chunk.to + j * 16 + t2_ + half * 8);
#pragma unroll
      for (int w = 2 * half; w < 2 * half + 2; ++w) {
        const float2 pair = unpack<bf16>(values.words[w]);
        unsigned words[2];
        split<2, true>(pair.x * weight.x, pair.y * weight.y, words);
        high.words[w] = words[0];
        low.words[w] = words[1];
      }
    }
  }

  // Puts 0 in place of values that are not finite, so that 0 times them is 0. Returns false where the warp had any.
  __device__ __forceinline__ bool drop_not_finite(FragmentA (&values)[4]) const {
    unsigned zeros = 0;
#pragma unroll
    for (int w = 0; w < 16; ++w) add_zero_times<bf16>(values[w / 4].words[w % 4], zeros);
    const bool is_finite = __all_sync(0xffffffffu, (zeros & 0x7fff7fffu) == 0);
    if (!is_finite) {
      stay_branch();
#pragma unroll
      for (int w = 0; w < 16; ++w) {
        unsigned& word = values[w / 4].words[w % 4];
        word &= ((word & 0x7f80u) == 0x7f80u ? 0u : 0xffffu) | ((word >> 16 & 0x7f80u) == 0x7f80u ? 0u : 0xffff0000u);
      }
    }
    return is_finite;
  }
  // What those values give in the rows of out that see them.
  __device__ __forceinline__ void add_not_finite(Rows& rows, const typename Shape::Scores& scores,
                                                 FragmentC (&out)[8]) const {
    // Opaque, so that no address is computed before it is known to be needed.
    const int g = opaque(static_cast<int>(g_)), t2 = opaque(static_cast<int>(t2_));
#pragma unroll 1
    for (int j = 0; j < Shape::kRows; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int col = static_cast<int>(column_) + g + half * 8;
        const float value = widen(rows.value.unit(j, col / 8 * 8)[col % 8]);
        if (isfinite(value)) continue;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int row = n * 8 + t2 + e;
            if (row >= j) out[n].values[half * 2 + e] += score(scores, row, j) * value;
          }
        }
      }
    }
  }
  static __device__ __forceinline__ int opaque(int number) {
    asm volatile("" : "+r"(number));
    return number;
  }
  static __device__ __forceinline__ float score(const typename Shape::Scores& scores, int row, int col) {
    return widen(*element(scores.pieces[0], row, col)) + widen(*element(scores.pieces[1], row, col));
  }
  static __device__ __forceinline__ const bf16* element(const SwizzledMatrix<bf16, 64, 64>& matrix, int row, int col) {
    return matrix.data + row * 64 + ((col / 8) ^ (row % 8)) * 8 + col % 8;
  }

  __device__ __forceinline__ void scale(const Chunk& chunk, FragmentC (&out)[8]) const {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 in = *reinterpret_cast<const float2*>(chunk.in + n * 8 + t2_);
      out[n].values[0] *= in.x;
      out[n].values[1] *= in.y;
      out[n].values[2] *= in.x;
      out[n].values[3] *= in.y;
    }
  }

  // --- Out goes through shared memory, in place of the warp's values, so that whole rows are written ---

  static constexpr int kOutUnits = 4;  // of 8 features, of a thread

  // The thread's units of the consumer's part of out.
  class OutRows {
   public:
    __device__ __forceinline__ OutRows(const ScanConsumer& consumer, const Chunk& chunk)
        : rows_(consumer.rows_of(chunk)), step_(consumer.args_.out.view.length_stride) {
      const auto row = static_cast<int>(consumer.thread_ / 8);
      const bool from_end = consumer.args_.from_end;
      first_ = consumer.out_ + (from_end ? chunk.begin + chunk.rows - 1 - row : chunk.begin + row) * step_;
      step_ *= from_end ? -16 : 16;
    }
    // Calls visit(number of the unit, its address in global memory).
    template <class Visit>
    __device__ __forceinline__ void each(const Visit& visit) const {
      bf16* at = first_;
#pragma unroll
      for (int i = 0; i < kOutUnits; ++i, at += step_) {
        if (i * 16 < rows_) visit(i, at);
      }
    }

   private:
    int rows_;  // from the thread's first row on
    bf16* first_;
    int64_t step_;
  };
  __device__ __forceinline__ int rows_of(const Chunk& chunk) const {
    return has_out_ ? chunk.rows - static_cast<int>(thread_ / 8) : 0;
  }

  __device__ __forceinline__ void stage_out(uint32_t own_values, const FragmentC (&out)[8]) const {
    const float outer = args_.outer;
    __syncwarp();  // add_not_finite() has read the values
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      const uint32_t at = own_values + n / 2 * kSixteenRows;
      unsigned words[4] = {};
      if constexpr (ADDS) load_transposed(at, words);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float* const pair = out[n + w / 2].values + w % 2 * 2;
        const float2 before = unpack<bf16>(words[w]);
        words[w] = ADDS ? pack<bf16>(fmaf(pair[0], outer, before.x), fmaf(pair[1], outer, before.y))
                        : pack<bf16>(pair[0] * outer, pair[1] * outer);
      }
      store_matrices<true>(at, words);
    }
  }

  const ScanArgs<float>& args_;
  Shared& shared_;
  WarpgroupPlace<Shape> place_;
  unsigned thread_ = threadIdx.x % 128, group_ = threadIdx.x / 128 - 1;
  unsigned lane_ = threadIdx.x % 32, g_ = lane_ / 4, t2_ = lane_ % 4 * 2;
  unsigned column_ = group_ * 64 + thread_ / 32 * 16;  // the warp's first value feature of the tile
  // In the matrix of values: of the row that the lane gives to load_transposed(), and of the thread's first unit of
  // out.
  uint32_t value_offset_ = offset(lane_ % 8 + lane_ / 16 * 8, column_ + lane_ / 8 % 2 * 8);
  uint32_t out_offset_ = offset(thread_ / 8, group_ * 64 + thread_ % 8 * 8);
  bf16* out_ = nullptr;  // the thread's unit of the first token
  bool has_out_;         // and whether its features are there
  FragmentC state_[Shape::kKeys / 8];
};

}  // namespace detail
}  // namespace heddle::kernels::cuda
