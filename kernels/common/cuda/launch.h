// Checked kernel launches on a context's stream, and the sizes of their grids.
//   HEDDLE_LAUNCH(context, (my_kernel<T, 4>), grid, block, shared_bytes, arguments...);
// throws Error with the kernel, file and line when the launch is refused. More than 48 KiB of dynamic shared memory are
// asked for by themselves. Nothing here waits for the device, so all of it can be captured into a graph.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "core/runtime/context.h"
#include "core/runtime/cuda_check.h"

#define HEDDLE_LAUNCH(context, kernel, grid, block, shared_bytes, ...)                                           \
  ::heddle::kernels::cuda::launch((context), ::heddle::kernels::cuda::LaunchMode{}, #kernel, __FILE__, __LINE__, \
                                  kernel, (grid), (block), (shared_bytes), __VA_ARGS__)
// For a kernel that begins with grid_dependency_wait(): its blocks may take their places while the kernel before it on
// the stream still runs, from where all blocks of that one have called grid_dependency_trigger() (sm_90; older GPUs:
// afterwards).
#define HEDDLE_LAUNCH_DEPENDENT(context, kernel, grid, block, shared_bytes, ...)                              \
  ::heddle::kernels::cuda::launch((context), ::heddle::kernels::cuda::LaunchMode{.dependent = true}, #kernel, \
                                  __FILE__, __LINE__, kernel, (grid), (block), (shared_bytes), __VA_ARGS__)
// For a kernel whose blocks work in clusters of `blocks` along x (sm_90).
#define HEDDLE_LAUNCH_CLUSTERS(context, kernel, grid, block, shared_bytes, blocks, ...)                         \
  ::heddle::kernels::cuda::launch((context), ::heddle::kernels::cuda::LaunchMode{.cluster = (blocks)}, #kernel, \
                                  __FILE__, __LINE__, kernel, (grid), (block), (shared_bytes), __VA_ARGS__)

namespace heddle::kernels::cuda {

// Kernels go to the current device of the thread, which another context may have changed.
inline void use_device(const Context& context) { HEDDLE_CUDA_CHECK(cudaSetDevice(context.device().index)); }

// More than 48 KiB of shared memory must be asked for, those included that the kernel declares: less than 8 KiB here.
template <class... Parameters>
void allow_shared(void (*kernel)(Parameters...), size_t bytes) {
  if (bytes <= 40 * 1024) return;
  HEDDLE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

struct LaunchMode {
  bool dependent = false;
  int cluster = 1;
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

// Waits until the kernel before it is done and what it wrote can be read.
__device__ __forceinline__ void grid_dependency_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}
__device__ __forceinline__ void grid_dependency_trigger() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Blocks of a kernel that a multiprocessor holds at once; 0 when not even one.
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

// Blocks that cover `items`, `per_block` each, but no more than `blocks_per_multiprocessor` on each multiprocessor: for
// kernels that walk their items in strides of the grid (all indices int64_t). For results that depend on the grid use a
// grid made of the sizes alone.
inline unsigned grid_for(Context& context, int64_t items, int64_t per_block, int blocks_per_multiprocessor) {
  const int64_t most = static_cast<int64_t>(context.properties().multiprocessors) * blocks_per_multiprocessor;
  return static_cast<unsigned>(std::max<int64_t>(1, std::min(ceil_div(items, per_block), most)));
}

}  // namespace heddle::kernels::cuda
