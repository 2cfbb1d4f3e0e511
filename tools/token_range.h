// Where an operator's cases say how many values its tokens may have.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "layers/operator_case.h"

namespace heddle {

// The input of a case by its name; nullptr when it has none of that name.
const CaseInput* find_input(const OperatorCase& operator_case, const std::string& name);

// The extent that is the range of some tokens: that of dimension `dim` of an input, counted from behind.
struct RangePlace {
  std::string input;
  int dim;
};

// The place that is right in all examples with these tokens; none for the numbers of segments.
std::optional<RangePlace> range_place(const std::vector<OperatorCase>& examples, const std::string& tokens);

}  // namespace heddle
