#include "core/runtime/memory_recorder.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace heddle {

void MemoryRecorder::add(MemoryEvent event) {
  if (!is_on()) return;
  event.sequence = added_;
  event.nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start_).count();
  if (ring_.size() < capacity_) {
    ring_.push_back(event);
  } else {
    ring_[static_cast<size_t>(added_) % capacity_] = event;
  }
  ++added_;
}

std::vector<MemoryEvent> MemoryRecorder::events() const {
  std::vector<MemoryEvent> events = ring_;
  if (added_ > static_cast<int64_t>(events.size())) {
    std::rotate(events.begin(), events.begin() + added_ % static_cast<int64_t>(events.size()), events.end());
  }
  return events;
}

}  // namespace heddle
