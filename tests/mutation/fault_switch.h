// The switch of the private build of `./dev mutate`, which is compiled with this header in front of every source.
// Wherever weave.py has planted a fault the source asks HEDDLE_FAULT(NUMBER). The environment variable HEDDLE_FAULT,
// read once at the start of a program, selects one; without it none is.
#pragma once

#include <cstdlib>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

namespace heddle::mutation {

inline int number_in_environment() {
  const char* text = std::getenv("HEDDLE_FAULT");
  return text == nullptr ? 0 : std::atoi(text);
}
inline const int host_fault = number_in_environment();

#if defined(__CUDACC__)

// Every translation unit has its own variable on the GPU. Without a GPU the copy fails, which changes nothing.
static __device__ int device_fault = 0;
[[maybe_unused]] static const bool is_device_fault_set = [] {
  const int fault = number_in_environment();
  return fault != 0 && cudaMemcpyToSymbol(device_fault, &fault, sizeof fault) == cudaSuccess;
}();

__host__ __device__ static constexpr bool fault_selected(int number) {
  if (__builtin_is_constant_evaluated()) return false;
#if defined(__CUDA_ARCH__)
  return device_fault == number;
#else
  return host_fault == number;
#endif
}

#else

constexpr bool fault_selected(int number) { return !__builtin_is_constant_evaluated() && host_fault == number; }

#endif

}  // namespace heddle::mutation

#define HEDDLE_FAULT(number) (::heddle::mutation::fault_selected(number))
