// The events of an allocator in their order: all of them, or the last ones.                        docs/memory.md
// Not thread-safe: the allocator that owns it holds its lock.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/runtime/memory_stats.h"

namespace heddle {

class MemoryRecorder {
 public:
  // The capacity with which no event is dropped.
  static constexpr size_t kAll = SIZE_MAX;

  // Keeps the last `capacity` events; 0: none.
  explicit MemoryRecorder(size_t capacity) : capacity_(capacity) {
    if (capacity != kAll) ring_.reserve(capacity);
  }

  bool is_on() const { return capacity_ > 0; }
  // Adds the event with its number and time.
  void add(MemoryEvent event);
  // Those that are still kept, oldest first.
  std::vector<MemoryEvent> events() const;

 private:
  using Clock = std::chrono::steady_clock;
  size_t capacity_;
  int64_t added_ = 0;
  std::vector<MemoryEvent> ring_;
  Clock::time_point start_ = Clock::now();
};

}  // namespace heddle
