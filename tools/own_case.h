// A case of an operator that a user writes on the command line.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "core/tensor/shape.h"
#include "layers/operator.h"

namespace heddle {

// A case of a user's own: these options (YAML) and shapes by input name. How the numbers of an input are drawn is taken
// from the operator's cases, and so is the range of tokens, as the extent of the input that it is the extent of there.
// Throws ConfigError for the options, and UsageError for shapes that the operator refuses with them, for inputs that it
// lacks or that are given twice, and where no input with a gradient has elements.
OperatorCase own_case(const Operator& op, const std::string& options,
                      const std::vector<std::pair<std::string, Shape>>& shapes);

}  // namespace heddle
