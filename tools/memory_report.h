// Where the bytes of a computation go: at the peak by category and by layer, and on the way there.     docs/memory.md
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/runtime/context.h"
#include "core/runtime/memory_stats.h"

namespace heddle {

// Bytes by layer ("blocks.3.mixer"; "" for what belongs to no layer) and category.
using LayerBytes = std::map<std::string, CategoryBytes>;

size_t total(const CategoryBytes& bytes);
CategoryBytes sum(const LayerBytes& layers);

// What lies between one Context::mark() and the next.
struct MemoryPhase {
  std::string name;         // of the mark that it begins with; "" before the first mark
  LayerBytes at_begin;      // by layer
  CategoryBytes at_end{};   // of all layers together
  CategoryBytes at_peak{};  // of all layers together when the phase had the most
};

// The trace of an allocator with the names of its scopes and marks.
struct MemoryTrace {
  std::vector<MemoryEvent> events;
  std::vector<std::string> names;  // names[event.scope]
};

struct MemoryReport {
  Device device;
  MemoryStats stats;
  LayerBytes layers;      // at the peak: all bytes add up to stats.allocated.peak
  size_t peak_phase = 0;  // the phase with the peak, and the layer whose allocation made it
  std::string peak_layer;
  std::vector<MemoryPhase> phases;
  MemoryTrace trace;
};

// The options of a context on which a report can be made: its allocator keeps all events.
ContextOptions recording_options(int threads = 0);

// Reports on all that the context allocated since it was made. A layer is a MemoryScope, and a phase begins with
// Context::mark(). On meta the bytes are those of every other device. Throws Error when the context does not record.
MemoryReport report_memory(Context& context);
// Runs `work` on a context of its own and reports on it.
MemoryReport measure_memory(const Device& device, const std::function<void(Context&)>& work);

// Follows a trace: the bytes that are allocated after each event.
class MemoryReplay {
 public:
  explicit MemoryReplay(const MemoryTrace& trace) : trace_(trace) {}

  // Whether the event allocates or frees.
  bool add(const MemoryEvent& event);
  const CategoryBytes& now() const { return now_; }
  // By layer; those that hold nothing are left out.
  LayerBytes layers() const;

 private:
  const MemoryTrace& trace_;
  CategoryBytes now_{};
  std::map<uint32_t, CategoryBytes> scopes_;
};

}  // namespace heddle
