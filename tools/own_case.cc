#include "tools/own_case.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/config/config_load.h"
#include "core/config/config_tree.h"
#include "core/config/nearest_name.h"
#include "core/runtime/context.h"
#include "core/runtime/error.h"
#include "tools/token_range.h"

namespace heddle {
namespace {

// The small cases, those first that are most like a case with these options and shapes: how its inputs are drawn and
// which are differentiated may depend on them.
std::vector<OperatorCase> nearest_first(std::vector<OperatorCase> cases, const std::string& options,
                                        const std::vector<std::pair<std::string, Shape>>& shapes) {
  std::erase_if(cases, [](const OperatorCase& one) { return one.large; });
  const auto values_of = [](const std::string& text) {
    std::map<std::string, std::string> values;
    const ConfigTree map = parse_yaml(text, "options");
    for (const ConfigEntry& entry : map->entries) values[entry.name] = entry.value->scalar;
    return values;
  };
  const auto wanted = values_of(options);
  const auto in_common = [&](const OperatorCase& one) {
    const auto values = values_of(one.options);
    const auto ranks = std::count_if(shapes.begin(), shapes.end(), [&](const auto& shape) {
      return std::any_of(one.inputs.begin(), one.inputs.end(), [&](const CaseInput& input) {
        return input.name == shape.first && input.shape.rank() == shape.second.rank();
      });
    });
    return ranks + std::count_if(wanted.begin(), wanted.end(), [&](const auto& option) {
             const auto found = values.find(option.first);
             return found != values.end() && found->second == option.second;
           });
  };
  std::vector<std::pair<std::ptrdiff_t, OperatorCase>> ranked;
  for (OperatorCase& one : cases) ranked.emplace_back(-in_common(one), std::move(one));
  std::stable_sort(ranked.begin(), ranked.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (size_t i = 0; i < cases.size(); ++i) cases[i] = std::move(ranked[i].second);
  return cases;
}

// Runs the operator on shapes alone: what it refuses about them or its options is a mistake of the user's.
void check_on_meta(const OperatorFunction& function, const OperatorCase& own) {
  Context meta(Device{DeviceType::meta});
  Tape tape(meta, Tape::Mode::inference);
  NamedVariables inputs;
  for (const CaseInput& input : own.inputs) {
    inputs[input.name] = tape.constant(Tensor::empty(meta, input.shape, case_dtype(input, DType::float64)));
  }
  try {
    function(tape, inputs);
  } catch (const ConfigError&) {
    throw;
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
}

// How the numbers of an input are drawn, from the first of the examples that has it.
CaseInput drawn_as(const std::vector<OperatorCase>& examples, const std::string& name, const Shape& shape) {
  CaseInput input;
  input.name = name;
  for (const OperatorCase& example : examples) {
    if (const CaseInput* known = find_input(example, name)) {
      input = *known;
      break;
    }
  }
  input.shape = shape;
  return input;
}

// The range of tokens is that of the given shapes. Throws UsageError when there is none to draw.
void set_range(CaseInput& tokens, const std::vector<OperatorCase>& examples, const OperatorCase& own) {
  if (const auto place = range_place(examples, tokens.name)) {
    const CaseInput* of = find_input(own, place->input);
    if (of != nullptr && of->shape.rank() >= -place->dim) tokens.range = of->shape[place->dim];
  }
  if (numel(tokens.shape) == 0) return;
  const bool excludes = !tokens.excluded_by.empty() && parse_config(own.options, own.name).has(tokens.excluded_by);
  if (tokens.range > (excludes ? 1 : 0)) return;
  throw UsageError(fmt::format("{} of shape {} are numbers of [0, {}){}, found none to draw", tokens.name,
                               to_string(tokens.shape), tokens.range,
                               excludes ? fmt::format(" without {}", tokens.excluded_by) : ""));
}

void check_names(const Operator& op, const std::vector<std::pair<std::string, Shape>>& shapes) {
  for (auto shape = shapes.begin(); shape != shapes.end(); ++shape) {
    const std::string& name = shape->first;
    if (op.find_input(name) == nullptr) {
      const std::string hint = did_you_mean(name, op.input_names());
      throw UsageError(fmt::format("{} has no input {}{}", op.name, name,
                                   hint.empty() ? "; inputs: " + join_names(op.input_names()) : hint));
    }
    const auto other = std::find_if(shapes.begin(), shape, [&](const auto& given) { return given.first == name; });
    if (other == shape) continue;
    throw UsageError(fmt::format("found two shapes for input {}, {} and {}, expected one", name,
                                 to_string(other->second), to_string(shape->second)));
  }
}

}  // namespace

OperatorCase own_case(const Operator& op, const std::string& options,
                      const std::vector<std::pair<std::string, Shape>>& shapes) {
  check_names(op, shapes);
  OperatorCase result{.name = op.name + " of one's own", .op = op.name, .options = options, .inputs = {}};
  const OperatorFunction function = bind_operator(op, parse_config(options, result.name));
  const std::vector<OperatorCase> examples = nearest_first(op.cases(), options, shapes);
  for (const InputSpec& spec : op.inputs) {
    const auto given =
        std::find_if(shapes.begin(), shapes.end(), [&](const auto& shape) { return shape.first == spec.name; });
    if (given != shapes.end()) {
      result.inputs.push_back(drawn_as(examples, spec.name, given->second));
    } else if (!spec.optional) {
      throw UsageError(fmt::format("{} needs a shape for its input {}", op.name, spec.name));
    }
  }
  check_on_meta(function, result);
  for (CaseInput& input : result.inputs) {
    if (input.kind == CaseInputKind::tokens) set_range(input, examples, result);
  }
  const bool has_gradients = std::any_of(result.inputs.begin(), result.inputs.end(), [](const CaseInput& input) {
    return is_real(input.kind) && input.differentiate && numel(input.shape) > 0;
  });
  if (!has_gradients) {
    throw UsageError(
        fmt::format("{}: found no element in any input that has a gradient, so nothing to check", op.name));
  }
  return result;
}

}  // namespace heddle
