// Tensor core instructions of one warp on 16-bit operands (sm_80 or later): C (16, 8) += A (16, 16) B (16, 8) in float.
// The inner dimension is called depth. With g = l / 4 and t = l % 4, lane l holds rows g and g + 8, columns 2t and 2t +
// 1 of C; the same rows, depths 2t, 2t + 1, 2t + 8 and 2t + 9 of A; and column g, the same depths of B.
#pragma once

#include <type_traits>

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

// c += a b
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

// ldmatrix: four 8 x 8 matrices, each lane giving the address of one row.
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

// The loads below read the 16 x 16 tile at `tile` of a matrix in shared memory whose rows are `stride` elements apart:
// a multiple of 8, best an odd one, so that the rows lie in different banks.

// Operand A, stored as (rows, depth) or, transposed, as (depth, rows).
template <class T>
__device__ __forceinline__ FragmentA load_a(const T* tile, int stride) {
  const int lane = threadIdx.x % 32;
  FragmentA a;
  detail::load_matrices<false>(a.words, tile + (lane % 16) * stride + lane / 16 * 8);
  return a;
}
template <class T>
__device__ __forceinline__ FragmentA load_a_transposed(const T* tile, int stride) {
  const int lane = threadIdx.x % 32;
  FragmentA a;
  detail::load_matrices<true>(a.words, tile + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
  return a;
}

// Operand B for two neighbouring tiles of C, columns 0-7 and 8-15: stored as (depth, columns) or, transposed, as
// (columns, depth).
struct FragmentPairB {
  FragmentB parts[2];
};
template <class T>
__device__ __forceinline__ FragmentPairB load_b(const T* tile, int stride) {
  const int lane = threadIdx.x % 32;
  unsigned words[4];
  detail::load_matrices<true>(words, tile + (lane % 16) * stride + lane / 16 * 8);
  return {{{{words[0], words[1]}}, {{words[2], words[3]}}}};
}
template <class T>
__device__ __forceinline__ FragmentPairB load_b_transposed(const T* tile, int stride) {
  const int lane = threadIdx.x % 32;
  unsigned words[4];
  detail::load_matrices<false>(words, tile + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
  return {{{{words[0], words[1]}}, {{words[2], words[3]}}}};
}

// Two numbers rounded to T in one word, the first in the lower half; and back.
template <class T>
__device__ __forceinline__ unsigned pack(float first, float second) {
  const T pair[2] = {narrow<T>(first), narrow<T>(second)};
  unsigned word;
  memcpy(&word, pair, 4);
  return word;
}
template <class T>
__device__ __forceinline__ float2 unpack(unsigned word) {
  if constexpr (std::is_same_v<T, bf16>) return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
  T pair[2];
  memcpy(pair, &word, 4);
  return {widen(pair[0]), widen(pair[1])};
}

// Two neighbouring tiles of C, rounded to T, as operand A of depth 16.
template <class T>
__device__ __forceinline__ FragmentA as_a(const FragmentC& left, const FragmentC& right) {
  return {{pack<T>(left.values[0], left.values[1]), pack<T>(left.values[2], left.values[3]),
           pack<T>(right.values[0], right.values[1]), pack<T>(right.values[2], right.values[3])}};
}

}  // namespace heddle::kernels::cuda
