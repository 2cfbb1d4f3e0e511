// Traces in Chrome's format, which https://ui.perfetto.dev opens, too: slices in rows, and bytes as counters.
// Source: "Trace Event Format", Google, 2016.                                                        docs/memory.md
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/runtime/memory_stats.h"

namespace heddle {

// Times are in microseconds and do not run backward within a row.
class ChromeTrace {
 public:
  // Three rows: phases, below them layers, and below these, if there are any slices of them, kernels.
  explicit ChromeTrace(std::string_view process);

  // From now on work is done for this layer: "blocks.3.mixer" is a slice within one within one. What is no longer part
  // of the path ends.
  void enter_layer(std::string_view path, double time);
  // Ends the phase and all layers, and begins the phase `name`, if it is not empty.
  void enter_phase(std::string_view name, double time);
  void kernel(std::string_view name, double from, double to);
  // The bytes that are allocated from now on, by category.
  void allocated(const CategoryBytes& bytes, double time);

  // The whole file. Phases and layers must have ended: enter_phase("", time).
  std::string text() const;

 private:
  void begin(int row, std::string_view name, double time);
  void end(int row, double time);
  void name_row(int row, std::string_view name);

  std::string events_;             // JSON, each followed by a comma
  std::vector<std::string> open_;  // the parts of the path of the layer
  bool in_phase_ = false;
  bool has_kernels_ = false;
};

}  // namespace heddle
