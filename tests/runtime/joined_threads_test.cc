#include "core/runtime/joined_threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <new>
#include <thread>

namespace heddle::joined_threads_test {
namespace {

// Work that cannot be handed to a thread, as when there is no memory for it.
struct WithoutMemory {
  WithoutMemory() = default;
  WithoutMemory(WithoutMemory&&) { throw std::bad_alloc(); }
  void operator()() const {}
};

TEST(JoinedThreadsTest, ThreadsEndBeforeTheirGroupDoes) {
  std::atomic<int> done = 0;
  const auto work = [&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    ++done;
  };
  {
    JoinedThreads threads;
    for (int i = 0; i < 3; ++i) threads.start(work);
    threads.join();
    EXPECT_EQ(done, 3);
    threads.start(work);
  }
  EXPECT_EQ(done, 4);
  const auto fail = [&] {
    JoinedThreads threads;
    threads.start(work);
    threads.start(WithoutMemory());
  };
  EXPECT_THROW(fail(), std::bad_alloc);
  EXPECT_EQ(done, 5);
}

}  // namespace
}  // namespace heddle::joined_threads_test
