#include "trainers/data/read_ahead.h"

#include <utility>

#include "core/runtime/block_signals.h"
#include "core/runtime/error.h"

namespace heddle {

ReadAhead::~ReadAhead() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    is_stopped_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

std::vector<Batch> ReadAhead::next() {
  check(taken_ < options_.steps, "batches of {} steps were read, expected no more", options_.steps);
  if (!thread_.joinable()) {
    const BlockSignals none_for_the_thread;  // a thread starts with the signals of the one that makes it
    thread_ = std::thread([this] { run(); });
  }
  std::vector<Batch> batches;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return !ready_.empty() || error_; });
    if (ready_.empty()) std::rethrow_exception(error_);
    batches = std::move(ready_.front());
    ready_.pop_front();
  }
  changed_.notify_all();
  ++taken_;
  return batches;
}

std::vector<Batch> ReadAhead::make(int64_t step) const {
  std::vector<Batch> batches;
  for (int64_t micro = 0; micro < options_.micro_batches; ++micro) {
    const int64_t batch = step * options_.micro_batches + micro;
    batches.push_back(
        data_.training_part(options_.first_sequence + batch * options_.batch_size, options_.rank, options_.processes));
  }
  return batches;
}

void ReadAhead::run() {
  try {
    for (int64_t step = 0; step < options_.steps; ++step) {
      std::vector<Batch> batches = make(step);
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return ready_.size() < options_.depth || is_stopped_; });
      if (is_stopped_) return;
      ready_.push_back(std::move(batches));
      lock.unlock();
      changed_.notify_all();
    }
  } catch (...) {
    {
      const std::lock_guard lock(mutex_);
      error_ = std::current_exception();
    }
    changed_.notify_all();
  }
}

}  // namespace heddle
