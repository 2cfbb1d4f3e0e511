// Storage types of CUDA kernels, conversion to and from the type of arithmetic, and the dtype switch on the host.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/common/types.h"

namespace heddle::kernels::cuda {

using bf16 = __nv_bfloat16;
using fp16 = __half;

template <class T>
inline constexpr DType dtype_of = DType::float32;
template <>
inline constexpr DType dtype_of<double> = DType::float64;
template <>
inline constexpr DType dtype_of<bf16> = DType::bfloat16;
template <>
inline constexpr DType dtype_of<fp16> = DType::float16;

// Converts to the type of arithmetic, exactly.
template <class T>
__device__ __forceinline__ accumulate_t<T> widen(T value) {
  return static_cast<accumulate_t<T>>(value);
}

// Converts to a storage type, rounding once to nearest even.
template <class T, class A>
__device__ __forceinline__ T narrow(A value) {
  return static_cast<T>(value);
}
template <>
__device__ __forceinline__ bf16 narrow<bf16, float>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ __forceinline__ fp16 narrow<fp16, float>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ bf16 narrow<bf16, double>(double value) {
  return __double2bfloat16(value);
}
template <>
__device__ __forceinline__ fp16 narrow<fp16, double>(double value) {
  return __double2half(value);
}

// The same for two neighbouring elements; the address is aligned to both together.
__device__ __forceinline__ void widen_pair(const bf16* from, float& first, float& second) {
  const unsigned word = *reinterpret_cast<const unsigned*>(from);
  first = __uint_as_float(word << 16);
  second = __uint_as_float(word & 0xffff0000u);
}
__device__ __forceinline__ void widen_pair(const fp16* from, float& first, float& second) {
  const float2 both = __half22float2(*reinterpret_cast<const __half2*>(from));
  first = both.x;
  second = both.y;
}
__device__ __forceinline__ void narrow_pair(float first, float second, bf16* to) {
  *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(first, second);
}
__device__ __forceinline__ void narrow_pair(float first, float second, fp16* to) {
  *reinterpret_cast<__half2*>(to) = __floats2half2_rn(first, second);
}

// The larger of each of two neighbouring elements; NaN is ignored.
__device__ __forceinline__ void max_pair(const bf16* a, const bf16* b, bf16* to) {
  *reinterpret_cast<__nv_bfloat162*>(to) =
      __hmax2(*reinterpret_cast<const __nv_bfloat162*>(a), *reinterpret_cast<const __nv_bfloat162*>(b));
}
__device__ __forceinline__ void max_pair(const fp16* a, const fp16* b, fp16* to) {
  *reinterpret_cast<__half2*>(to) = __hmax2(*reinterpret_cast<const __half2*>(a), *reinterpret_cast<const __half2*>(b));
}

// a * b, rounded. The compiler never contracts it to a fused multiply-add, so every use has the same bits.
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double rounded_product(double a, double b) { return __dmul_rn(a, b); }

// The value that is read back after storing `value` as T, for results that are also used in further arithmetic.
template <class T>
__device__ __forceinline__ accumulate_t<T> round_to(accumulate_t<T> value) {
  return widen<T>(narrow<T>(value));
}

template <class A>
__device__ __forceinline__ A infinity() {
  return static_cast<A>(__int_as_float(0x7f800000));
}
template <class A>
__device__ __forceinline__ A nan() {
  return static_cast<A>(__int_as_float(0x7fffffff));
}

// Host: calls visit(T{}) with the device's type of a floating dtype. Throws Error for a dtype of integers.
template <class Visit>
void visit_floating(DType dtype, const Visit& visit) {
  visit_floating_as<bf16, fp16>(dtype, visit);
}

}  // namespace heddle::kernels::cuda
