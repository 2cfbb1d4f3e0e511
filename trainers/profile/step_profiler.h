// Times of the kernels of a training step, on the clock of the device.                       docs/watching.md#profile
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/runtime/stream.h"
#include "core/runtime/work_listener.h"

namespace heddle {

// One call of a kernel. Times are in milliseconds since the beginning of its step.
struct ProfiledKernel {
  std::string phase;  // Context::mark(): forward, backward or optimizer
  std::string layer;  // "blocks.3.mixer"; empty outside of any
  std::string name;   // "gemm"
  KernelWork work;
  double begin = 0.0, end = 0.0;
  CategoryBytes allocated{};  // when it was called
};

struct ProfiledStep {
  int64_t step = 0;
  double milliseconds = 0.0;  // all of it
  std::vector<ProfiledKernel> kernels;
};

// Puts a mark into the stream before and after every kernel of the work that it records. On the CPU the marks are times
// of the host. In work that is being captured they become part of the graph, and each replay sets them anew.
class StepProfiler : public WorkListener {
 public:
  explicit StepProfiler(Context& context);
  StepProfiler(const StepProfiler&) = delete;
  StepProfiler& operator=(const StepProfiler&) = delete;

  // Does the work, which takes the place of what was recorded before.
  void record(const std::function<void()>& work);
  // What was recorded, with the times of the last time that it was done; the device must be done with it.
  ProfiledStep result(int64_t step) const;

  void mark(std::string_view moment) override { phase_ = moment; }
  void begin_kernel(const char* name, const KernelWork& work) override;
  void end_kernel() override;

 private:
  struct Marks {
    Event begin, end;
  };
  Context& context_;
  Marks whole_;
  std::vector<Marks> marks_;  // as many as there were ever kernels
  std::vector<ProfiledKernel> kernels_;
  std::string phase_;
};

}  // namespace heddle
