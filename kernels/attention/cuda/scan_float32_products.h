// Products of scan_float32.h, and what values that are not finite add to them.
#pragma once

#include <cstdint>

#include "kernels/attention/cuda/scan.h"
#include "kernels/attention/cuda/wgmma.h"
#include "kernels/common/cuda/pieces.h"

namespace heddle::kernels::cuda {
namespace detail {

// Bytes from an operand of depth 16 to the next in a matrix of 64 rows.
template <cuda::Stored STORED>
__device__ __forceinline__ constexpr int depth_bytes(int step) {
  return STORED == cuda::Stored::by_depth ? step * (16 * 128) : step / 4 * (64 * 128) + step % 4 * 32;
}

// A descriptor of what lies `bytes` further on. Only the lower word changes, so that the upper one stays a constant and
// takes no registers.
__device__ __forceinline__ uint64_t further_on(uint64_t descriptor, int bytes) {
  constexpr uint64_t kLower = 0xffffffffu;
  return (descriptor & ~kLower) | static_cast<uint32_t>(descriptor + static_cast<uint32_t>(bytes / 16));
}

// Starts to = A B^T, both in shared memory by rows and of depth 16 STEPS, as a group of products, the smaller products
// of pieces first. `a` and `b` describe the first pieces, and the others lie BYTES after each other.
template <int STEPS, int BYTES, int TILES>
__device__ __forceinline__ void start_product_of_rows(uint64_t a, uint64_t b, FragmentC (&to)[TILES]) {
  constexpr cuda::Stored kByRows = cuda::Stored::by_rows;
  wgmma_fence();
#pragma unroll
  for (int order = 2; order >= 0; --order) {
#pragma unroll
    for (int j = 0; j < STEPS; ++j) {
      const int step = depth_bytes<kByRows>(j);
#pragma unroll
      for (int p = 0; p <= order; ++p) {
        wgmma<bf16, kByRows, kByRows>(to, further_on(a, p * BYTES + step), further_on(b, (order - p) * BYTES + step),
                                      order < 2 || j > 0 || p > 0);
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

// Starts to = A B, of depth 16 STEPS. numbers(j, pairs) gives the numbers of step j of A, which are split while the
// products of the step before run; `b` describes the first piece of B, and the others lie BYTES after each other. The
// products of the first pieces, which are the largest, come last. Whatever was started before the second step is done
// in the end. meanwhile(j) is called while the products of step j run.
template <cuda::Stored STORED, int STEPS, int BYTES, int TILES, class Numbers, class Meanwhile>
__device__ __forceinline__ void start_product(const Numbers& numbers, uint64_t b, FragmentC (&to)[TILES],
                                              const Meanwhile& meanwhile) {
#pragma unroll
  for (int j = 0; j < STEPS; ++j) {
    float2 pairs[4];
    numbers(j, pairs);
    const PiecesA<3> a = pieces_of_pairs(pairs);
    wgmma_fence();
#pragma unroll
    for (int order = 2; order > 0; --order) {
#pragma unroll
      for (int p = 0; p <= order; ++p) {
        wgmma<bf16, STORED>(to, a.parts[p], further_on(b, (order - p) * BYTES + depth_bytes<STORED>(j)),
                            order < 2 || j > 0 || p > 0);
      }
    }
    wgmma_commit();
    meanwhile(j);
    if (j > 0) wgmma_wait<1>();
  }
#pragma unroll
  for (int j = 0; j < STEPS; j += 2) {
    FragmentA first[2];
#pragma unroll
    for (int i = 0; i < 2 && j + i < STEPS; ++i) {
      float2 pairs[4];
      numbers(j + i, pairs);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        first[i].words[w] = __byte_perm(__float_as_uint(pairs[w].x), __float_as_uint(pairs[w].y), 0x7632);
      }
    }
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 2 && j + i < STEPS; ++i) {
      wgmma<bf16, STORED>(to, first[i], further_on(b, depth_bytes<STORED>(j + i)), true);
    }
    wgmma_commit();
    if (j + 2 < STEPS) wgmma_wait<1>();
  }
}

template <cuda::Stored STORED, int STEPS, int BYTES, int TILES, class Numbers>
__device__ __forceinline__ void start_product(const Numbers& numbers, uint64_t b, FragmentC (&to)[TILES]) {
  start_product<STORED, STEPS, BYTES>(numbers, b, to, [](int) {});
}

// out += what values that are not finite give in the rows that see them: they are 0 in the products. `scores` are the
// weighted scores of the chunk in pieces, without args.inner. A thread has the value features `feature` and `feature` +
// 8, the rows of out, and the tokens 8 n + first_row and the one after it, its columns.
__device__ __forceinline__ void add_not_finite(const ScanArgs<float>& args, const ScanChunk& chunk,
                                               SwizzledMatrix<bf16, 64, 64> (&scores)[3], const float* values,
                                               int64_t feature, int first_row, FragmentC (&out)[8]) {
#pragma unroll 1
  for (int j = 0; j < chunk.rows; ++j) {
    const float* const row = values + args.token(chunk, j) * args.value.length_stride;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float number = feature + half * 8 < args.value.dim ? row[half * 8] : 0.0f;
      if (isfinite(number)) continue;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int i = n * 8 + first_row + e;
          if (i < j) continue;
          float score = 0.0f;
#pragma unroll
          for (int p = 2; p >= 0; --p) score += widen(scores[p].unit(i, j / 8 * 8)[j % 8]);
          out[n].values[2 * half + e] += score * args.inner * number;
        }
      }
    }
  }
}

}  // namespace detail
}  // namespace heddle::kernels::cuda
