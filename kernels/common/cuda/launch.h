// Checked kernel launches on a context's stream, and the sizes of their grids.
//   HEDDLE_LAUNCH(context, (my_kernel<T, 4>), grid, block, shared_bytes, arguments...);
// throws Error with the kernel, file and line when the launch fails. It also raises the kernel's limit of dynamic
// shared memory where that is needed. Nothing here waits for the device, so launches can be captured into a graph.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/runtime/context.h"
#include "core/runtime/cuda_check.h"

#define HEDDLE_LAUNCH(context, kernel, grid, block, shared_bytes, ...)                                           \
  ::heddle::kernels::cuda::launch((context), ::heddle::kernels::cuda::LaunchMode{}, #kernel, __FILE__, __LINE__, \
                                  kernel, (grid), (block), (shared_bytes), __VA_ARGS__)
// Programmatic dependent launch, for a kernel that calls grid_dependency_wait(): its blocks may start while the
// previous kernel of the stream still runs, as soon as all blocks of that one have called grid_dependency_trigger() or
// have ended. On GPUs before sm_90 this is a plain launch.
#define HEDDLE_LAUNCH_DEPENDENT(context, kernel, grid, block, shared_bytes, ...)                              \
  ::heddle::kernels::cuda::launch((context), ::heddle::kernels::cuda::LaunchMode{.dependent = true}, #kernel, \
                                  __FILE__, __LINE__, kernel, (grid), (block), (shared_bytes), __VA_ARGS__)
// For a kernel whose blocks form clusters of `blocks` along x (sm_90 or later).
#define HEDDLE_LAUNCH_CLUSTERS(context, kernel, grid, block, shared_bytes, blocks, ...)                         \
  ::heddle::kernels::cuda::launch((context), ::heddle::kernels::cuda::LaunchMode{.cluster = (blocks)}, #kernel, \
                                  __FILE__, __LINE__, kernel, (grid), (block), (shared_bytes), __VA_ARGS__)

namespace heddle::kernels::cuda {

// Makes the context's device the current one of the thread, to which kernels are launched; another context may have
// changed it.
inline void use_device(const Context& context) { HEDDLE_CUDA_CHECK(cudaSetDevice(context.device().index)); }

// Raises the kernel's limit of dynamic shared memory to `bytes`. The default limit is 48 KiB together with the kernel's
// static shared memory, which is less than 8 KiB here.
template <class... Parameters>
void allow_shared(void (*kernel)(Parameters...), size_t bytes) {
  if (bytes <= 40 * 1024) return;
  HEDDLE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

struct LaunchMode {
  bool dependent = false;  // by programmatic dependent launch
  int cluster = 1;         // blocks of a cluster
};

template <class... Parameters, class... Arguments>
void launch(const Context& context, LaunchMode mode, const char* name, const char* file, int line,
            void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, const Arguments&... arguments) {
  use_device(context);
  allow_shared(kernel, shared_bytes);
  cudaLaunchAttribute attributes[2]{};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = context.stream();
  config.attrs = attributes;
  if (mode.dependent && context.properties().compute_capability >= 90) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (mode.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(mode.cluster), 1, 1};
  }
  check_cuda(static_cast<int>(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...)), name, file,
             line);
}

// Waits until the previous grid of the stream has ended and its writes are visible.
__device__ __forceinline__ void grid_dependency_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}
// Lets the next grid of the stream start, once all blocks have called this or have ended. That grid still waits for the
// end of this one in grid_dependency_wait().
__device__ __forceinline__ void grid_dependency_trigger() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// The number of blocks of a kernel that can be resident on a multiprocessor; 0 where one block needs too much.
template <class... Parameters>
int resident_blocks(const Context& context, void (*kernel)(Parameters...), int threads, size_t shared_bytes) {
  if (shared_bytes > context.properties().shared_bytes_per_block) return 0;
  use_device(context);
  int blocks = 0;
  allow_shared(kernel, shared_bytes);
  HEDDLE_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes));
  return blocks;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The number of blocks that cover `items`, `per_block` each, but at most `blocks_per_multiprocessor` per
// multiprocessor: for kernels with a grid-stride loop over int64_t indices. The result depends on the GPU, so a kernel
// whose order of summation depends on the grid must choose its grid from the sizes alone.
inline unsigned grid_for(Context& context, int64_t items, int64_t per_block, int blocks_per_multiprocessor) {
  const int64_t max_blocks = static_cast<int64_t>(context.properties().multiprocessors) * blocks_per_multiprocessor;
  return static_cast<unsigned>(std::max<int64_t>(1, std::min(ceil_div(items, per_block), max_blocks)));
}

}  // namespace heddle::kernels::cuda
