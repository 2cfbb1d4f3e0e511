// The way of a memory report through time: as a chart, and for viewers of traces.                   docs/memory.md
#pragma once

#include <string>

#include "tools/memory_report.h"

namespace heddle {

// Bytes by category as stacked areas over the number of allocations and frees, with a line where each phase begins
// (SVG).
std::string timeline_svg(const MemoryReport& report, const std::string& title);

// A trace in Chrome's format, which https://ui.perfetto.dev opens, too: layers as slices, one within the other, phases
// as slices above them, and the bytes by category as counters. Time is that of the host when it gave the work to the
// device; on meta, where nothing takes time, every allocation or free takes 1 microsecond.
std::string timeline_trace(const MemoryReport& report);

}  // namespace heddle
