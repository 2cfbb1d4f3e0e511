#include "trainers/profile/step_profiler.h"

namespace heddle {

StepProfiler::StepProfiler(Context& context) : context_(context), whole_{Event(context), Event(context)} {}

void StepProfiler::record(const std::function<void()>& work) {
  struct Listening {
    Listening(Context& of, StepProfiler* profiler) : context(of) { context.set_listener(profiler); }
    ~Listening() { context.set_listener(nullptr); }
    Context& context;
  };
  kernels_.clear();
  phase_.clear();
  whole_.begin.record_timing(context_.stream());
  {
    const Listening listening(context_, this);
    work();
  }
  whole_.end.record_timing(context_.stream());
}

void StepProfiler::begin_kernel(const char* name, const KernelWork& work) {
  const CachingAllocator& allocator = context_.allocator();
  ProfiledKernel& kernel = kernels_.emplace_back();
  kernel.phase = phase_;
  kernel.layer = allocator.scope_name(context_.label().scope);
  kernel.name = name;
  kernel.work = work;
  const MemoryStats stats = allocator.stats();
  for (size_t i = 0; i < kMemoryCategories; ++i) kernel.allocated[i] = stats.by_category[i].current;
  if (marks_.size() < kernels_.size()) marks_.push_back({Event(context_), Event(context_)});
  marks_[kernels_.size() - 1].begin.record_timing(context_.stream());
}

void StepProfiler::end_kernel() { marks_[kernels_.size() - 1].end.record_timing(context_.stream()); }

ProfiledStep StepProfiler::result(int64_t step) const {
  ProfiledStep result{.step = step, .milliseconds = whole_.begin.milliseconds_to(whole_.end), .kernels = kernels_};
  for (size_t i = 0; i < result.kernels.size(); ++i) {
    result.kernels[i].begin = whole_.begin.milliseconds_to(marks_[i].begin);
    result.kernels[i].end = whole_.begin.milliseconds_to(marks_[i].end);
  }
  return result;
}

}  // namespace heddle
