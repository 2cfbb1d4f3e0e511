// Tensor core instructions on 16-bit operands: one warp, 16 x 8 results, depth 16, fp32 sums. (sm_80 and newer)
// Lane l holds, with g = l / 4 and t = l % 4: of a result rows g and g + 8, columns 2t and 2t + 1; of operand A the
// same rows, depths 2t, 2t + 1 and 8 + those; of operand B column g and the same depths.
#pragma once

#include "kernels/common/cuda/types.h"

namespace heddle::kernels::cuda {

struct FragmentA {
  unsigned words[4];
};
struct FragmentB {
  unsigned words[2];
};
struct FragmentC {
  float values[4] = {0.0f, 0.0f, 0.0f, 0.0f};  // (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
};

template <class T>
__device__ __forceinline__ void mma(FragmentC& c, const FragmentA& a, const FragmentB& b) {
  static_assert(sizeof(T) == 2);
  if constexpr (std::is_same_v<T, bf16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c.values[0]), "+f"(c.values[1]), "+f"(c.values[2]), "+f"(c.values[3])
        : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]), "r"(b.words[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c.values[0]), "+f"(c.values[1]), "+f"(c.values[2]), "+f"(c.values[3])
        : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[0]), "r"(b.words[1]));
  }
}

namespace detail {

template <bool TRANSPOSE>
__device__ __forceinline__ void load_matrices(unsigned (&words)[4], const void* shared) {
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (TRANSPOSE) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
  }
}

}  // namespace detail

// The 16 x 16 block at `block` of a matrix in shared memory, rows `stride` elements apart (a multiple of 8, best an odd
// multiple, so that rows fall into different banks).

// Operand A (rows x depth) stored as it is, and stored transposed (depth x rows).
template <class T>
__device__ __forceinline__ FragmentA load_a(const T* block, int stride) {
  const int lane = threadIdx.x % 32;
  FragmentA a;
  detail::load_matrices<false>(a.words, block + (lane % 16) * stride + lane / 16 * 8);
  return a;
}
template <class T>
__device__ __forceinline__ FragmentA load_a_transposed(const T* block, int stride) {
  const int lane = threadIdx.x % 32;
  FragmentA a;
  detail::load_matrices<true>(a.words, block + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
  return a;
}

// Operand B for two neighbouring results (columns 0-7 and 8-15): stored depth x columns, and columns x depth.
struct FragmentPairB {
  FragmentB parts[2];
};
template <class T>
__device__ __forceinline__ FragmentPairB load_b(const T* block, int stride) {
  const int lane = threadIdx.x % 32;
  unsigned words[4];
  detail::load_matrices<true>(words, block + (lane % 16) * stride + lane / 16 * 8);
  return {{{{words[0], words[1]}}, {{words[2], words[3]}}}};
}
template <class T>
__device__ __forceinline__ FragmentPairB load_b_transposed(const T* block, int stride) {
  const int lane = threadIdx.x % 32;
  unsigned words[4];
  detail::load_matrices<false>(words, block + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
  return {{{{words[0], words[1]}}, {{words[2], words[3]}}}};
}

// Two numbers rounded to T in one word, the first in the lower half.
template <class T>
__device__ __forceinline__ unsigned pack(float first, float second) {
  const T pair[2] = {narrow<T>(first), narrow<T>(second)};
  unsigned word;
  memcpy(&word, pair, 4);
  return word;
}
template <class T>
__device__ __forceinline__ float2 unpack(unsigned word) {
  T pair[2];
  memcpy(pair, &word, 4);
  return {widen(pair[0]), widen(pair[1])};
}

// Two neighbouring results as operand A of depth 16.
template <class T>
__device__ __forceinline__ FragmentA as_a(const FragmentC& left, const FragmentC& right) {
  return {{pack<T>(left.values[0], left.values[1]), pack<T>(left.values[2], left.values[3]),
           pack<T>(right.values[0], right.values[1]), pack<T>(right.values[2], right.values[3])}};
}

}  // namespace heddle::kernels::cuda
