// Asynchronous copies from global to shared memory (cp.async, sm_80 or later), and loads of what they copied. Shared
// memory is addressed by 32 bits, so that distances known at compile time cost no instructions. Groups of copies are
// committed and awaited by __pipeline_commit and __pipeline_wait_prior.
#pragma once

#include <cuda_pipeline_primitives.h>

#include <cstdint>

#include "kernels/common/cuda/vec.h"

namespace heddle::kernels::cuda {

// The 32-bit address of a pointer into shared memory.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Starts to copy 16 bytes. They bypass L1; L2 fetches whole lines of 128 bytes.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from,
                                           EvictionPriority priority = EvictionPriority::normal) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "l"(static_cast<uint64_t>(priority))
               : "memory");
}

// Starts to copy 16 bytes where they are `valid`, else to write 16 bytes of 0.
__device__ __forceinline__ void copy_async_if(bool valid, uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

// Starts to copy one float.
__device__ __forceinline__ void copy_async_float(uint32_t to, const float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}
// Starts to copy one float where it is `valid`, else to write 0.
__device__ __forceinline__ void copy_async_float_if(bool valid, uint32_t to, const float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(valid ? 4 : 0) : "memory");
}

// Loads 16 bytes.
template <class T>
__device__ __forceinline__ Vec<T, vector_width<T>> load_shared(uint32_t from) {
  uint4 words;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(from));
  return *reinterpret_cast<const Vec<T, vector_width<T>>*>(&words);
}

}  // namespace heddle::kernels::cuda
