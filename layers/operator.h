// An operator as `heddle run-layer`, `heddle gradcheck`, the benchmarks and the tests see it: a function of named
// tensors (parameters among them) and of options as a config writes them.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/autograd/tape.h"

namespace heddle {

class ConfigNode;

// Named values: the inputs or the outputs of an operator, by SPEC's names.
using NamedVariables = std::map<std::string, Variable>;

struct OperatorEntry {
  std::string name;                               // "rms_norm"
  std::vector<std::string> required_inputs = {};  // in the order of documentation
  std::vector<std::string> optional_inputs = {};
  std::vector<std::string> outputs = {};  // those it may have; "y", "r", "o", "final_state"
  // Throws ConfigError for bad options and Error for bad inputs. Reads `options` to its finish().
  NamedVariables (*apply)(Tape& tape, const ConfigNode& options, const NamedVariables& inputs) = nullptr;
  // Inputs that stay float32 (float64 for float64) whatever the compute dtype: angles, decays, states.
  std::vector<std::string> exact_inputs = {};
  // Inputs that are indices (int32) and have no gradient.
  std::vector<std::string> index_inputs = {};
};

// The input of that name; undefined when it was not given.
inline Variable input_or_none(const NamedVariables& inputs, const std::string& name) {
  const auto found = inputs.find(name);
  return found != inputs.end() ? found->second : Variable{};
}

}  // namespace heddle
