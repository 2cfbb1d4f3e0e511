// Products of scan_float32.h, and what values that are not finite add to them.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/scan.h"
#include "kernels/attention/cuda/wgmma.h"
#include "kernels/common/cuda/pieces.h"

namespace heddle::kernels::cuda {
namespace detail {

// Starts to = A B, of depth 64, as a group of products, the smaller products of pieces first. B has 64 columns; `b`
// describes its first piece, and the others lie BYTES after each other.
template <cuda::Stored STORED, int BYTES>
__device__ __forceinline__ void start_product(const PiecesA<3> (&a)[4], uint64_t b, FragmentC (&to)[8]) {
  constexpr int kStep = STORED == cuda::Stored::by_depth ? 16 * 128 : 32;  // bytes from 16 depths to the next
  wgmma_fence();
#pragma unroll
  for (int order = 2; order >= 0; --order) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int p = 0; p <= order; ++p) {
        wgmma<bf16, STORED>(to, a[j].parts[p], b + ((order - p) * BYTES + j * kStep) / 16, order < 2 || j > 0 || p > 0);
      }
    }
  }
  wgmma_commit();
}

// Pairs of numbers, in the order of an operand A, as its pieces.
__device__ __forceinline__ PiecesA<3> pieces_of_pairs(const float2 (&pairs)[4]) {
  PiecesA<3> result;
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    unsigned words[3];
    split<3, true>(pairs[w].x, pairs[w].y, words);
#pragma unroll
    for (int p = 0; p < 3; ++p) result.parts[p].words[w] = words[p];
  }
  return result;
}

// Starts scores = query key^T and out = query S for the warp's 16 rows of query, as operand A, the smaller products of
// pieces first. For 64 features they are two groups, scores first; for 128 there are no registers for all pieces.
template <int KEYS>
__device__ __forceinline__ void start_query_products(const float2 (&query)[KEYS / 16][4],
                                                     const SwizzledMatrix<bf16, 64, KEYS> (&key)[3],
                                                     const SwizzledMatrix<bf16, KEYS, 64> (&state)[3],
                                                     FragmentC (&scores)[8], FragmentC (&out)[8]) {
  constexpr int kKeyPiece = sizeof(key[0]), kStatePiece = sizeof(state[0]), kSteps = KEYS / 16;
  const uint64_t keys = key[0].by_rows(0, 0), states = state[0].by_depth(0, 0);
  if constexpr (kSteps == 4) {
    PiecesA<3> pieces[4];
#pragma unroll
    for (int d = 0; d < 4; ++d) pieces[d] = pieces_of_pairs(query[d]);
    start_product<cuda::Stored::by_rows, kKeyPiece>(pieces, keys, scores);
    start_product<cuda::Stored::by_depth, kStatePiece>(pieces, states, out);
  } else {
    const auto add = [&](const FragmentA& a, int d, int piece, bool adds) {
      wgmma<bf16, cuda::Stored::by_rows>(scores, a, keys + (piece * kKeyPiece + d / 4 * (64 * 128) + d % 4 * 32) / 16,
                                         adds);
      wgmma<bf16, cuda::Stored::by_depth>(out, a, states + (piece * kStatePiece + d * (16 * 128)) / 16, adds);
    };
#pragma unroll
    for (int d = 0; d < kSteps; ++d) {
      const PiecesA<3> a = pieces_of_pairs(query[d]);
      wgmma_fence();
#pragma unroll
      for (int order = 2; order > 0; --order) {
#pragma unroll
        for (int p = 0; p <= order; ++p) add(a.parts[p], d, order - p, d > 0 || order < 2 || p > 0);
      }
      wgmma_commit();
      if (d > 0) wgmma_wait<1>();
    }
#pragma unroll
    for (int d = 0; d < kSteps; ++d) {
      FragmentA first;
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        first.words[w] = __byte_perm(__float_as_uint(query[d][w].x), __float_as_uint(query[d][w].y), 0x7632);
      }
      wgmma_fence();
      add(first, d, 0, true);
      wgmma_commit();
      if (d > 0 && d + 1 < kSteps) wgmma_wait<1>();
    }
  }
}

// Keeps the compiler from computing what follows in a rarely taken branch in any case.
__device__ __forceinline__ void stay_branch() { asm volatile("" ::: "memory"); }

// out += what values that are not finite give in the rows that see them: they are 0 in shared memory. `weights` are the
// weighted scores of the warp's 16 rows, without args.inner; `row` and `first_column` are the first ones of the thread.
// Returns a bit for each of the thread's 16 columns that has such a value.
__device__ __forceinline__ unsigned add_not_finite(const ScanArgs<float>& args, const ScanChunk& chunk,
                                                   const PiecesA<3> (&weights)[4], int row, int64_t first_column,
                                                   FragmentC (&out)[8]) {
  FragmentC scores[8];
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float2 sum = {0.0f, 0.0f};
#pragma unroll
      for (int p = 2; p >= 0; --p) {
        const float2 part = unpack<bf16>(weights[n / 2].parts[p].words[n % 2 * 2 + half]);
        sum.x += part.x;
        sum.y += part.y;
      }
      scores[n].values[2 * half] = sum.x;
      scores[n].values[2 * half + 1] = sum.y;
    }
  }
  unsigned lost_columns = 0;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
  for (int tile = 0; tile < 8; ++tile) {
#pragma unroll 1
    for (int i = 0; i < 8; ++i) {
      const int j = tile * 8 + i, from = lane / 4 * 4 + i / 2;
      const float upper = __shfl_sync(0xffffffffu, i % 2 == 0 ? scores[0].values[0] : scores[0].values[1], from);
      const float lower = __shfl_sync(0xffffffffu, i % 2 == 0 ? scores[0].values[2] : scores[0].values[3], from);
      if (j >= chunk.rows) continue;
      const float* const values = head<const float>(args.value, blockIdx.x / args.query.heads, args.token(chunk, j),
                                                    blockIdx.x % args.query.heads / args.group) +
                                  first_column;
      const auto features = static_cast<int>(args.value.dim - first_column);
#pragma unroll
      for (int c = 0; c < 16; ++c) {
        const int col = c / 2 * 8 + c % 2;
        const float number = col < features ? values[col] : 0.0f;
        if (isfinite(number)) continue;
        lost_columns |= 1u << c;
        if (row >= j) out[c / 2].values[c % 2] += upper * args.inner * number;
        if (row + 8 >= j) out[c / 2].values[c % 2 + 2] += lower * args.inner * number;
      }
    }
#pragma unroll
    for (int n = 0; n < 7; ++n) scores[n] = scores[n + 1];
  }
  return lost_columns;
}

}  // namespace detail
}  // namespace heddle::kernels::cuda
