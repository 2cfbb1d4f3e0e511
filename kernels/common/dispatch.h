// The device switch, written once. HEDDLE_KERNEL(norm_forward, NormForwardArgs) declares
//   cpu::norm_forward, cuda::norm_forward (defined in kernels/cpu and kernels/cuda) and
//   norm_forward(Context&, const NormForwardArgs&), which calls the one of the context's device; on meta, neither.
#pragma once

#include "core/runtime/context.h"

#if defined(HEDDLE_CUDA)
#define HEDDLE_CALL_CUDA(function) return cuda::function(context, args)
#else
#define HEDDLE_CALL_CUDA(function) break  // no Context on a GPU exists in this build
#endif

#define HEDDLE_KERNEL(function, Args)                        \
  namespace cpu {                                            \
  void function(Context& context, const Args& args);         \
  }                                                          \
  namespace cuda {                                           \
  void function(Context& context, const Args& args);         \
  }                                                          \
  inline void function(Context& context, const Args& args) { \
    switch (context.device().type) {                         \
      case DeviceType::cpu:                                  \
        return cpu::function(context, args);                 \
      case DeviceType::cuda:                                 \
        HEDDLE_CALL_CUDA(function);                          \
      case DeviceType::meta:                                 \
        break;                                               \
    }                                                        \
  }                                                          \
  static_assert(true, "a semicolon follows")
