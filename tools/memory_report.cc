#include "tools/memory_report.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <string>

#include "core/runtime/error.h"

namespace heddle {
namespace {

MemoryTrace trace_of(const CachingAllocator& allocator) {
  MemoryTrace trace{allocator.trace(), {}};
  uint32_t names = 0;
  for (const MemoryEvent& event : trace.events) names = std::max(names, event.scope + 1);
  for (uint32_t id = 0; id < names; ++id) trace.names.push_back(allocator.scope_name(id));
  return trace;
}

// Fills everything that follows from the trace.
void follow_trace(MemoryReport& report) {
  MemoryReplay replay(report.trace);
  size_t peak = 0;
  report.phases.emplace_back();
  for (const MemoryEvent& event : report.trace.events) {
    if (event.action == MemoryAction::mark) {
      report.phases.back().at_end = replay.now();
      MemoryPhase& phase = report.phases.emplace_back();
      phase.name = report.trace.names[event.scope];
      phase.at_begin = replay.layers();
      phase.at_peak = replay.now();
    }
    if (!replay.add(event)) continue;
    const size_t allocated = total(replay.now());
    MemoryPhase& phase = report.phases.back();
    if (allocated > total(phase.at_peak)) phase.at_peak = replay.now();
    if (allocated <= peak) continue;
    peak = allocated;
    report.peak_phase = report.phases.size() - 1;
    report.peak_layer = report.trace.names[event.scope];
  }
  report.phases.back().at_end = replay.now();
}

}  // namespace

size_t total(const CategoryBytes& bytes) { return std::accumulate(bytes.begin(), bytes.end(), size_t{0}); }

CategoryBytes sum(const LayerBytes& layers) {
  CategoryBytes sum{};
  for (const auto& [layer, bytes] : layers) {
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += bytes[i];
  }
  return sum;
}

ContextOptions recording_options(int threads) {
  return {.threads = threads, .allocator = {.trace_capacity = MemoryRecorder::kAll}};
}

MemoryReport report_memory(Context& context) {
  const CachingAllocator& allocator = context.allocator();
  check(allocator.is_recording(), "a memory report needs a context that records: see recording_options()");
  MemoryReport report;
  report.device = context.device();
  report.stats = allocator.stats();
  for (const ScopeBytes& scope : allocator.scopes()) {
    if (total(scope.at_peak) > 0) report.layers[scope.scope] = scope.at_peak;
  }
  report.trace = trace_of(allocator);
  follow_trace(report);
  return report;
}

MemoryReport measure_memory(const Device& device, const std::function<void(Context&)>& work) {
  Context context(device, recording_options());
  work(context);
  return report_memory(context);
}

bool MemoryReplay::add(const MemoryEvent& event) {
  const bool frees = event.action == MemoryAction::free || event.action == MemoryAction::free_requested;
  if (event.action != MemoryAction::allocate && !frees) return false;
  const auto category = static_cast<size_t>(event.category);
  for (CategoryBytes* bytes : {&now_, &scopes_[event.scope]}) {
    (*bytes)[category] += frees ? size_t{0} - event.bytes : event.bytes;
  }
  return true;
}

LayerBytes MemoryReplay::layers() const {
  LayerBytes layers;
  for (const auto& [scope, bytes] : scopes_) {
    if (total(bytes) > 0) layers[trace_.names[scope]] = bytes;
  }
  return layers;
}

}  // namespace heddle
