// Threads that end before what they work on does.
#pragma once

#include <thread>
#include <utility>
#include <vector>

namespace heddle {

// Joins its threads when it goes, also when one of them could not be started: start() throws std::system_error or
// std::bad_alloc then, where the memory or the number of threads of the process is limited. Work must not throw.
class JoinedThreads {
 public:
  JoinedThreads() = default;
  ~JoinedThreads() { join(); }
  JoinedThreads(const JoinedThreads&) = delete;
  JoinedThreads& operator=(const JoinedThreads&) = delete;

  template <class Work>
  void start(Work work) {
    threads_.emplace_back(std::move(work));
  }
  void join() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  std::vector<std::thread> threads_;
};

}  // namespace heddle
