// Small examples of every operator of the registry: options and shapes that together reach each of its branches.
// `heddle gradcheck` runs them; a new operator brings its own (a test asks for them).
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor/shape.h"

namespace heddle {

struct OperatorCase {
  std::string layer;
  std::string options;  // as a config writes them: "{groups: 2, eps: 1.0e-6}"
  std::vector<std::pair<std::string, Shape>> inputs;
  // Real inputs that have no gradient with these options.
  std::vector<std::string> fixed = {};
  // Index inputs are drawn from [0, index_bound).
  int64_t index_bound = 0;
};

std::span<const OperatorCase> operator_cases();

}  // namespace heddle
