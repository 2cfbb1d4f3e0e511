#include "layers/operator.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "core/config/nearest_name.h"
#include "core/runtime/error.h"

namespace heddle {
namespace {

void check_inputs(const Operator& op, const NamedVariables& inputs) {
  for (const InputSpec& input : op.inputs) {
    check(input.optional || inputs.contains(input.name), "[{}] input {} is missing", op.name, input.name);
  }
  for (const auto& [name, variable] : inputs) {
    if (op.find_input(name) != nullptr) continue;
    const std::vector<std::string> known = op.input_names();
    const std::string hint = did_you_mean(name, known);
    fail("[{}] unknown input '{}'{}", op.name, name, hint.empty() ? ", expected " + join_names(known) : hint);
  }
}

}  // namespace

std::vector<OperatorCase> Operator::cases_on(DeviceType device) const {
  std::vector<OperatorCase> found = cases();
  if (device == DeviceType::cuda) std::erase_if(found, [](const OperatorCase& one) { return one.cpu_only; });
  return found;
}

const InputSpec* Operator::find_input(const std::string& input) const {
  const auto found =
      std::find_if(inputs.begin(), inputs.end(), [&](const InputSpec& spec) { return spec.name == input; });
  return found != inputs.end() ? &*found : nullptr;
}

std::vector<std::string> Operator::input_names() const {
  std::vector<std::string> names;
  for (const InputSpec& input : inputs) names.push_back(input.name);
  return names;
}

OperatorFunction bind_operator(const Operator& op, const ConfigNode& options) {
  OperatorFunction function = op.make(options);
  options.finish();
  return [op, function = std::move(function)](Tape& tape, const NamedVariables& inputs) {
    check_inputs(op, inputs);
    return function(tape, inputs);
  };
}

}  // namespace heddle
