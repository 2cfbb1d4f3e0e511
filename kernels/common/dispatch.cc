#include "kernels/common/dispatch.h"

#include "core/runtime/error.h"

namespace heddle::kernels {

void fail_without_kernel(const char* name, DeviceType device) {
  if (device == DeviceType::cpu) fail("[{}] has no CPU kernel; run it with --device cuda", name);
  fail("[{}] has no CUDA kernel; run it with --device cpu", name);
}

}  // namespace heddle::kernels
