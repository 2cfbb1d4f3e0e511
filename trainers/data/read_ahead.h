// Batches of the steps to come, made by a thread of their own while the steps before them run.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "trainers/data/dataset.h"

namespace heddle {

// Which batches: those of `steps` steps, each of `micro_batches` batches of `batch_size` sequences, from the training
// sequence `first_sequence` on; of each batch the part of process `rank`.
struct ReadAheadOptions {
  int64_t first_sequence = 0;
  int64_t steps = 0;
  int64_t micro_batches = 1;
  int64_t batch_size = 1;
  int rank = 0;
  int processes = 1;
  size_t depth = 2;  // steps whose batches wait, at most
};

// The batches are those that training_part() gives, in order, whatever the threads do. next() is for one thread. The
// own thread takes no signals; it ends with the last step, after an error, and when this is destroyed, which waits for
// the batch that is being made.
class ReadAhead {
 public:
  // `data` must outlive it. Nothing is read before the first next().
  ReadAhead(const Dataset& data, const ReadAheadOptions& options) : data_(data), options_(options) {}
  ~ReadAhead();
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;

  // The batches of the next step, for which it waits. Throws what making them threw, at the step that needs them, and
  // Error behind the last step.
  std::vector<Batch> next();

 private:
  void run();
  std::vector<Batch> make(int64_t step) const;

  const Dataset& data_;
  const ReadAheadOptions options_;
  int64_t taken_ = 0;  // steps that next() has given; its thread alone uses it
  std::mutex mutex_;   // guards what follows
  std::condition_variable changed_;
  std::deque<std::vector<Batch>> ready_;
  std::exception_ptr error_;  // of the step behind those that are ready
  bool is_stopped_ = false;
  std::thread thread_;  // started by the first next()
};

}  // namespace heddle
