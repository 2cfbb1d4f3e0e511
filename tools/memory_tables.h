// What `heddle memory` prints and writes as JSON.                                                   docs/memory.md
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/memory_report.h"
#include "tools/training_memory.h"

namespace heddle {

// One line of a tree of layers.
struct LayerTree {
  std::string name;                 // of this level: "mixer", "3", or "0-22" for layers with the same bytes
  int64_t count = 1;                // layers that the line stands for
  CategoryBytes bytes{};            // of each of them, with all layers below it
  std::vector<LayerTree> children;  // of each of them, the largest first
};
// The tree of the paths of layers. What a layer holds beside its children is a child "(own)"; what belongs to no layer
// is
// "(shared)".
LayerTree layer_tree(const LayerBytes& layers);

// The peak and where it is; at the peak, the bytes by category and by layer; and the bytes of each phase.
std::string to_text(const MemoryReport& report);
// The same, with what the layers keep for backward, and the grid and what fits, if they were asked for.
std::string to_text(const TrainingMemory& memory);
std::string to_json(const TrainingMemory& memory);

}  // namespace heddle
