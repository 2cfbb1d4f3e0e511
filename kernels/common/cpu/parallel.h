// Work split over threads. Pieces are made from the sizes alone, never from the number of threads, so that results do
// not depend on it. With HEDDLE_STD_THREADS the threads are std::thread, which ThreadSanitizer understands.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/runtime/context.h"

#if defined(HEDDLE_STD_THREADS)
#include <atomic>
#include <thread>
#include <vector>
#endif

namespace heddle::kernels::cpu {

// Calls piece(index) for index in [0, pieces), each once, in any order, on up to context.threads() threads.
// `piece` must not throw.
template <class Piece>
void parallel_pieces(const Context& context, int64_t pieces, const Piece& piece) {
  if (context.threads() <= 1 || pieces <= 1) {
    for (int64_t index = 0; index < pieces; ++index) piece(index);
    return;
  }
#if defined(HEDDLE_STD_THREADS)
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t index = next++; index < pieces; index = next++) piece(index);
  };
  const int threads = static_cast<int>(std::min<int64_t>(context.threads(), pieces));
  std::vector<std::thread> pool;
  for (int thread = 1; thread < threads; ++thread) pool.emplace_back(work);
  work();
  for (std::thread& thread : pool) thread.join();
#else
  // Always the same number of threads, though some may find no piece: libgomp ends the threads that a smaller team
  // leaves out and starts them anew for the next.
#pragma omp parallel for schedule(dynamic, 1) num_threads(context.threads())
  for (int64_t index = 0; index < pieces; ++index) piece(index);
#endif
}

// Calls range(begin, end) for consecutive ranges of at most `grain` that cover [0, count).
template <class Range>
void parallel_ranges(const Context& context, int64_t count, int64_t grain, const Range& range) {
  parallel_pieces(context, (count + grain - 1) / grain,
                  [&](int64_t index) { range(index * grain, std::min(count, (index + 1) * grain)); });
}

}  // namespace heddle::kernels::cpu
