// What is told of the work that a context gives to its device.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace heddle {

// The sizes and the arithmetic of one call of a kernel, as far as the kernel's header tells them.
struct KernelWork {
  std::array<int64_t, 3> sizes{};  // such as m, n and k of a matrix product; 0: not told
  double operations = 0.0;         // of floating-point arithmetic; 0: not told
};

// Hears what happens while it is the listener of a context (Context::set_listener), in the order in which the work is
// given to the device. The label of the context says which layer it is done for.
class WorkListener {
 public:
  virtual ~WorkListener() = default;
  // The beginning of what is called `moment`: Context::mark().
  virtual void mark(std::string_view moment) = 0;
  // A kernel is called. `name` is that of its function and lives as long as the program. There is no end_kernel() after
  // a kernel that throws.
  virtual void begin_kernel(const char* name, const KernelWork& work) = 0;
  virtual void end_kernel() = 0;
};

}  // namespace heddle
