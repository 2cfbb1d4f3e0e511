// How oneDNN is called: on the thread that calls it.
#pragma once

#include <omp.h>

#include "core/runtime/block_signals.h"

namespace heddle::kernels::cpu {

// Throws std::bad_alloc where the memory of the process is limited and little of it is left. oneDNN (version 2.6)
// generates code at the first product of a kind and does not look whether it got memory for it: the process would
// crash.
void check_room_for_code();

// Looks for room as above, and keeps oneDNN on one thread while it lives. oneDNN would use more where it is called
// outside of a parallel region and OpenMP offers them. Its generated code (version 2.6) points the stack register into
// the heap, where a signal handler would write: meanwhile no handler runs on this thread.
class OneThread {
 public:
  OneThread() {
    check_room_for_code();
    omp_set_num_threads(1);
  }
  ~OneThread() { omp_set_num_threads(outer_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int outer_ = omp_get_max_threads();
  BlockSignals no_handlers_;
};

}  // namespace heddle::kernels::cpu
