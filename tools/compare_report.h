// The table, the JSON and the chart of `heddle compare`.                                            docs/models.md
#pragma once

#include <string>

#include "tools/compare.h"

namespace heddle {

// A Markdown table with a row a model, aligned for a terminal, and what its columns mean.
std::string to_text(const Comparison& comparison);
std::string to_json(const Comparison& comparison);
// Tokens/s by length: of training as solid lines, of generation as dashed ones.
std::string to_svg(const Comparison& comparison);

}  // namespace heddle
