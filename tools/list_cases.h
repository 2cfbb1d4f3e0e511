// The cases of operators as text, so that programs in other languages check the same ones.    docs/run_layer.md
#pragma once

#include <string>

#include "layers/registry.h"

namespace heddle {

// A JSON list with an object for each case of an operator, or of all where `op_name` is "": name, operator, options as
// a map, large, and inputs, a list of {name, shape, kind, range, scale, mean, differentiate} with `kind` one of
// activation, parameter, matrix, angle, decay, state, tokens: how its numbers are drawn.
std::string cases_as_json(const Registry& registry, const std::string& op_name = "");

}  // namespace heddle
