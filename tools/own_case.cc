#include "tools/own_case.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/config/config_tree.h"
#include "core/config/nearest_name.h"
#include "core/runtime/error.h"

namespace heddle {
namespace {

// The input and the dimension whose extent is the range of `tokens` in an example.
std::optional<std::pair<std::string, int>> range_place(const OperatorCase& example, const CaseInput& tokens) {
  for (const CaseInput& input : example.inputs) {
    for (int dim = input.shape.rank() - 1; dim >= 0 && is_real(input.kind); --dim) {
      if (input.shape[dim] == tokens.range) return std::pair{input.name, dim};
    }
  }
  return {};
}

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

}  // namespace

OperatorCase own_case(const Operator& op, const std::string& options,
                      const std::vector<std::pair<std::string, Shape>>& shapes) {
  OperatorCase result{.name = op.name + " of one's own", .op = op.name, .options = options, .inputs = {}};
  const std::vector<OperatorCase> examples = nearest_first(op.cases(), options, shapes);
  const auto shape_of = [&](const std::string& name) {
    return std::find_if(shapes.begin(), shapes.end(), [&](const auto& shape) { return shape.first == name; });
  };
  for (const InputSpec& spec : op.inputs) {
    const auto given = shape_of(spec.name);
    if (given == shapes.end()) {
      if (!spec.optional) throw UsageError(fmt::format("{} needs a shape for its input {}", op.name, spec.name));
      continue;
    }
    CaseInput input{.name = spec.name, .shape = given->second};
    for (const OperatorCase& example : examples) {
      const auto known = std::find_if(example.inputs.begin(), example.inputs.end(),
                                      [&](const CaseInput& other) { return other.name == spec.name; });
      if (known == example.inputs.end()) continue;
      input = *known;
      input.shape = given->second;
      if (input.kind != CaseInputKind::tokens) break;
      const auto place = range_place(example, *known);
      const auto other = place ? shape_of(place->first) : shapes.end();
      if (other == shapes.end() || place->second >= other->second.rank()) continue;
      input.range = other->second[place->second];
      break;
    }
    result.inputs.push_back(std::move(input));
  }
  for (const auto& [name, shape] : shapes) {
    if (op.find_input(name)) continue;
    const std::string hint = did_you_mean(name, op.input_names());
    throw UsageError(fmt::format("{} has no input {}{}", op.name, name,
                                 hint.empty() ? "; inputs: " + join_names(op.input_names()) : hint));
  }
  return result;
}

}  // namespace heddle
