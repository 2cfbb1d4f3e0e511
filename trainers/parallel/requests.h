// What a run is asked for while it trains, or finds out: stops and checkpoints.          docs/distributed.md#stopping
#pragma once

#include <functional>
#include <utility>

#include "trainers/parallel/processes.h"

namespace heddle {

// Of one process, each question is asked when the answer is needed. Of several, all questions are asked in exchange(),
// and what is true on one process is then true on all until the next exchange().
class Requests {
 public:
  using Question = std::function<bool()>;
  // All must outlive it.
  Requests(const Processes& processes, const Question& stop, const Question& checkpoint, Question is_time_over)
      : processes_(processes), stop_(stop), checkpoint_(checkpoint), is_time_over_(std::move(is_time_over)) {}

  // Collective.
  void exchange();
  bool stop() const { return is_alone() ? stop_() : asked_.stop; }
  bool checkpoint() const { return is_alone() ? checkpoint_() : asked_.checkpoint; }
  bool is_time_over() const { return is_alone() ? is_time_over_() : asked_.time_over; }

 private:
  struct Asked {
    bool stop = false, checkpoint = false, time_over = false;
  };
  bool is_alone() const { return processes_.count() == 1; }

  const Processes& processes_;
  const Question& stop_;
  const Question& checkpoint_;
  Question is_time_over_;
  Asked asked_;
};

}  // namespace heddle
