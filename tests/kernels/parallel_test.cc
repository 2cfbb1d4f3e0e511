#include "kernels/common/cpu/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace heddle::kernels::cpu {
namespace {

TEST(ParallelForThreaded, EachTaskRunsOnce) {
  for (const int threads : {1, 2, 5}) {
    const Context context(Device{}, {.threads = threads});
    std::vector<std::atomic<int>> calls(100);
    parallel_for(context, 100, [&](int64_t index) { ++calls[static_cast<size_t>(index)]; });
    for (const std::atomic<int>& count : calls) EXPECT_EQ(count, 1);
  }
}

// A task that finds no memory must not end the process.
TEST(ParallelForThreaded, AnExceptionOfATaskReachesTheCaller) {
  for (const int threads : {1, 2, 5}) {
    const Context context(Device{}, {.threads = threads});
    const auto fail_at = [&](int64_t bad) {
      parallel_for(context, 100, [&](int64_t index) {
        if (index >= bad) throw std::bad_alloc();
      });
    };
    EXPECT_THROW(fail_at(0), std::bad_alloc) << threads;
    EXPECT_THROW(fail_at(99), std::bad_alloc) << threads;
    EXPECT_NO_THROW(fail_at(100));
  }
}

}  // namespace
}  // namespace heddle::kernels::cpu
