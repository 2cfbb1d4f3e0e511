// Declares kernels and chooses among their devices, so that the switch over devices is written once.
//
//   HEDDLE_KERNEL(norm_forward, NormForwardArgs);     a kernel of both devices
//   HEDDLE_CPU_KERNEL(softcap, SoftcapArgs);          a kernel that exists on the CPU only
//   HEDDLE_CUDA_KERNEL(softcap, SoftcapArgs);         a kernel that exists on GPUs only
//
// Each macro stands in a namespace and is followed by a semicolon. It declares, in that namespace,
//   cpu::FUNCTION(heddle::Context&, const ARGS&)      for the author to define, unless the kernel is for GPUs only
//   cuda::FUNCTION(heddle::Context&, const ARGS&)     for the author to define, unless the kernel is for the CPU only
// and defines FUNCTION(heddle::Context&, const ARGS&), which callers use. FUNCTION calls the kernel of the context's
// device. It throws Error when that device has no kernel, for example
//   [softcap] has no CUDA kernel; run it with --device cpu
// and does nothing on the meta device, which counts memory and computes nothing. A build without CUDA has no CUDA
// kernels, so there cuda::FUNCTION need not be defined.
//
// The macros name everything of heddle's in full, so a program outside heddle may use them in a namespace of its own.
#pragma once

#include "core/runtime/context.h"

namespace heddle::kernels {

// A kernel as one device defines it.
template <class Args>
using KernelFunction = void (*)(Context& context, const Args& args);

// Throws the Error that says that the kernel `name` does not exist on devices of this type.
[[noreturn]] void fail_without_kernel(const char* name, DeviceType device);

// What a profile tells of a call beside its name. The header of a kernel may say it by a function
//   KernelWork work_of(const ARGS&)      beside ARGS
template <class Args>
KernelWork told_work(const Args& args) {
  if constexpr (requires { work_of(args); }) return work_of(args);
  return {};
}

// Calls the kernel `name` of the context's device. A null pointer stands for a device that has no kernel.
template <class Args>
void call_kernel(Context& context, const Args& args, const char* name, KernelFunction<Args> cpu,
                 KernelFunction<Args> cuda) {
  const DeviceType device = context.device().type;
  if (device == DeviceType::meta) return;
  const KernelFunction<Args> kernel = device == DeviceType::cpu ? cpu : cuda;
  if (kernel == nullptr) fail_without_kernel(name, device);
  if (WorkListener* const listener = context.listener(); listener != nullptr) {
    listener->begin_kernel(name, told_work(args));
    kernel(context, args);
    listener->end_kernel();
  } else {
    kernel(context, args);
  }
}

}  // namespace heddle::kernels

#define HEDDLE_KERNEL(function, Args)         \
  HEDDLE_DECLARE_KERNEL(cpu, function, Args)  \
  HEDDLE_DECLARE_KERNEL(cuda, function, Args) \
  HEDDLE_DEFINE_CALL(function, Args, cpu::function, HEDDLE_CUDA_FUNCTION(function))

#define HEDDLE_CPU_KERNEL(function, Args)    \
  HEDDLE_DECLARE_KERNEL(cpu, function, Args) \
  HEDDLE_DEFINE_CALL(function, Args, cpu::function, nullptr)

#define HEDDLE_CUDA_KERNEL(function, Args)    \
  HEDDLE_DECLARE_KERNEL(cuda, function, Args) \
  HEDDLE_DEFINE_CALL(function, Args, nullptr, HEDDLE_CUDA_FUNCTION(function))

// What the macros above are made of.
#if defined(HEDDLE_CUDA)
#define HEDDLE_CUDA_FUNCTION(function) cuda::function
#else
#define HEDDLE_CUDA_FUNCTION(function) nullptr
#endif

#define HEDDLE_DECLARE_KERNEL(device, function, Args)          \
  namespace device {                                           \
  void function(::heddle::Context& context, const Args& args); \
  }

#define HEDDLE_DEFINE_CALL(function, Args, cpu_function, cuda_function)                          \
  inline void function(::heddle::Context& context, const Args& args) {                           \
    ::heddle::kernels::call_kernel<Args>(context, args, #function, cpu_function, cuda_function); \
  }                                                                                              \
  static_assert(true, "a semicolon follows")
