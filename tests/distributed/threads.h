// Communicators between threads of one process, for tests: what several processes do, without starting them.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "core/distributed/communicator.h"
#include "core/runtime/error.h"

namespace heddle::testing {

// Where the threads meet. Guarded by `mutex`, but for what lies behind the addresses between two meetings.
struct Meeting {
  explicit Meeting(int count) : size(count), tensors(static_cast<size_t>(count)), texts(static_cast<size_t>(count)) {}

  // Returns when all have come. Throws Error when one of them has aborted.
  void meet() {
    std::unique_lock lock(mutex);
    const int64_t round = rounds;
    if (++waiting == size) {
      waiting = 0;
      ++rounds;
      changed.notify_all();
    } else {
      changed.wait(lock, [&] { return rounds != round || !aborted.empty(); });
    }
    if (rounds == round) throw Error("aborted: " + aborted);
  }

  const int size;
  std::mutex mutex;
  std::condition_variable changed;
  int waiting = 0;
  int64_t rounds = 0;
  std::string aborted;
  std::vector<Tensor> tensors;
  std::vector<std::string> texts;
};

// Of tensors on the CPU. Sums are taken in double, in the order of the ranks.
class ThreadsCommunicator final : public Communicator {
 public:
  ThreadsCommunicator(Meeting& meeting, int rank) : meeting_(meeting), rank_(rank) {}

  std::string_view name() const override { return "threads"; }
  int rank() const override { return rank_; }
  int size() const override { return meeting_.size; }

  void all_reduce(const Tensor& values, StreamHandle stream) override {
    const std::vector<int64_t> bounds = equal_bounds(values.numel(), size());
    reduce_scatter(values, bounds, stream);
    all_gather(values, bounds, stream);
  }
  void reduce_scatter(const Tensor& values, std::span<const int64_t> bounds, StreamHandle) override {
    if (values.dtype() == DType::float64) return reduce_scatter<double>(values, bounds);
    reduce_scatter<float>(values, bounds);
  }
  void all_gather(const Tensor& values, std::span<const int64_t> bounds, StreamHandle) override {
    exchange(values, [&] {
      const auto bytes = static_cast<int64_t>(size_of(values.dtype()));
      for (int r = 0; r < size(); ++r) {
        if (r != rank_) copy(values, r, bounds[r] * bytes, bounds[r + 1] * bytes);
      }
    });
  }
  void broadcast(const Tensor& values, int root, StreamHandle) override {
    exchange(values, [&] {
      if (root != rank_) copy(values, root, 0, values.numel() * static_cast<int64_t>(size_of(values.dtype())));
    });
  }
  std::vector<std::string> all_gather_bytes(std::string_view bytes) override {
    meeting_.texts[static_cast<size_t>(rank_)] = bytes;
    meeting_.meet();
    std::vector<std::string> all = meeting_.texts;
    meeting_.meet();
    return all;
  }
  void barrier() override { meeting_.meet(); }
  void abort(std::string_view message) noexcept override {
    const std::lock_guard lock(meeting_.mutex);
    if (meeting_.aborted.empty()) meeting_.aborted = "process " + std::to_string(rank_) + ": " + std::string(message);
    meeting_.changed.notify_all();
  }

 private:
  // Calls work() while the tensors of all are there and nobody changes his own part of them.
  template <class Work>
  void exchange(const Tensor& values, const Work& work) {
    meeting_.tensors[static_cast<size_t>(rank_)] = values;
    meeting_.meet();
    work();
    meeting_.meet();
  }
  void copy(const Tensor& values, int from, int64_t begin, int64_t end) {
    const auto* source = static_cast<const char*>(meeting_.tensors[static_cast<size_t>(from)].raw());
    std::copy(source + begin, source + end, static_cast<char*>(values.raw()) + begin);
  }
  template <class T>
  void reduce_scatter(const Tensor& values, std::span<const int64_t> bounds) {
    std::vector<double> reduced;
    exchange(values, [&] {
      for (int64_t i = bounds[rank_]; i < bounds[rank_ + 1]; ++i) {
        double result = static_cast<double>(meeting_.tensors[0].template data<T>()[i]);
        for (int r = 1; r < size(); ++r) {
          result += static_cast<double>(meeting_.tensors[static_cast<size_t>(r)].template data<T>()[i]);
        }
        reduced.push_back(result);
      }
    });
    for (size_t i = 0; i < reduced.size(); ++i) {
      values.template data<T>()[bounds[rank_] + static_cast<int64_t>(i)] = static_cast<T>(reduced[i]);
    }
  }

  Meeting& meeting_;
  int rank_;
};

// Calls work(communicator) in `count` threads, each with a communicator of its own. Returns the message of what each
// threw, "" where that is nothing. A thread that throws ends the others as a process does.
inline std::vector<std::string> run_together(int count, const std::function<void(Communicator&)>& work) {
  Meeting meeting(count);
  std::vector<std::string> errors(static_cast<size_t>(count));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < count; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadsCommunicator communicator(meeting, rank);
      try {
        work(communicator);
      } catch (const std::exception& error) {
        errors[static_cast<size_t>(rank)] = error.what();
        communicator.abort(error.what());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

}  // namespace heddle::testing
