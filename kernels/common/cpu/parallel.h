// Loops that run on several threads. Callers divide their work into tasks by its sizes alone, never by the number of
// threads, so that results do not depend on that number. The threads are OpenMP's; with HEDDLE_STD_THREADS they are
// std::thread, which ThreadSanitizer understands.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>

#include "core/runtime/context.h"

#if defined(HEDDLE_STD_THREADS)
#include <atomic>

#include "core/runtime/joined_threads.h"
#endif

namespace heddle::kernels::cpu {

// Keeps the first exception of a loop, which must not leave the thread that it was thrown in.
class FirstException {
 public:
  template <class Call>
  void catch_from(const Call& call) noexcept {
    try {
      call();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!first_) first_ = std::current_exception();
    }
  }
  // Called when all threads are done.
  void rethrow() const {
    if (first_) std::rethrow_exception(first_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr first_;
};

// Calls task(index) once for each index in [0, tasks), in any order, on up to context.threads() threads. When tasks
// throw (std::bad_alloc, for want of memory), one of their exceptions is thrown once the loop has ended; other tasks
// may or may not have been called.
template <class Task>
void parallel_for(const Context& context, int64_t tasks, const Task& task) {
  if (context.threads() <= 1 || tasks <= 1) {
    for (int64_t index = 0; index < tasks; ++index) task(index);
    return;
  }
  FirstException exception;
#if defined(HEDDLE_STD_THREADS)
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t index = next++; index < tasks; index = next++) exception.catch_from([&] { task(index); });
  };
  const int threads = static_cast<int>(std::min<int64_t>(context.threads(), tasks));
  JoinedThreads others;
  for (int thread = 1; thread < threads; ++thread) others.start(work);
  work();
  others.join();
#else
  // The number of threads is always the same, though some may find no task: libgomp ends the threads that a smaller
  // parallel region does not use and creates them anew for the next region.
#pragma omp parallel for schedule(dynamic, 1) num_threads(context.threads())
  for (int64_t index = 0; index < tasks; ++index) exception.catch_from([&] { task(index); });
#endif
  exception.rethrow();
}

// How many indices one task takes, where each costs `multiplications`: few, and a step of one token does not wake up
// other threads.
inline int64_t grain_of(double multiplications) {
  constexpr double kMinimumWork = 65536.0;
  return static_cast<int64_t>(1.0 + kMinimumWork / (multiplications + 1.0));
}

// Calls range(begin, end) for consecutive ranges of at most `grain` indices that together cover [0, count). Each call
// is a task of parallel_for.
template <class Range>
void parallel_ranges(const Context& context, int64_t count, int64_t grain, const Range& range) {
  parallel_for(context, (count + grain - 1) / grain,
               [&](int64_t index) { range(index * grain, std::min(count, (index + 1) * grain)); });
}

}  // namespace heddle::kernels::cpu
