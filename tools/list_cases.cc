#include "tools/list_cases.h"

#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/config/config_scalar.h"
#include "core/config/config_tree.h"
#include "core/io/json_text.h"

namespace heddle {
namespace {

using Json = nlohmann::json;

Json scalar_as_json(const ConfigValue& value) {
  const std::string& text = value.scalar;
  if (value.quoted) return text;
  if (text == "true" || text == "false") return text == "true";
  if (const auto integer = number_of<int64_t>(text)) return *integer;
  if (const auto number = number_of<double>(text)) return *number;
  return text;
}

Json as_json(const ConfigValue& value) {
  switch (value.kind) {
    case ConfigValue::Kind::null:
      return nullptr;
    case ConfigValue::Kind::scalar:
      return scalar_as_json(value);
    case ConfigValue::Kind::sequence: {
      Json list = Json::array();
      for (const ConfigTree& item : value.items) list.push_back(as_json(*item));
      return list;
    }
    case ConfigValue::Kind::map: {
      Json map = Json::object();
      for (const ConfigEntry& entry : value.entries) map[entry.name] = as_json(*entry.value);
      return map;
    }
  }
  return nullptr;
}

std::string_view kind_name(CaseInputKind kind) {
  constexpr std::string_view names[] = {
      "activation", "parameter", "matrix", "full_precision_parameter", "angle", "decay", "state", "tokens", "segments"};
  return names[static_cast<int>(kind)];
}

Json as_json(const CaseInput& input) {
  Json shape = Json::array();
  for (const int64_t extent : input.shape) shape.push_back(extent);
  return {{"name", input.name},   {"shape", shape},     {"kind", kind_name(input.kind)},       {"range", input.range},
          {"scale", input.scale}, {"mean", input.mean}, {"differentiate", input.differentiate}};
}

}  // namespace

std::string cases_as_json(const Registry& registry, const std::string& op_name) {
  Json list = Json::array();
  for (const Operator& op : registry.operators()) {
    if (!op_name.empty() && op.name != op_name) continue;
    for (const OperatorCase& operator_case : op.cases()) {
      Json inputs = Json::array();
      for (const CaseInput& input : operator_case.inputs) inputs.push_back(as_json(input));
      list.push_back({{"name", operator_case.name},
                      {"operator", op.name},
                      {"options", as_json(*parse_yaml(operator_case.options, operator_case.name))},
                      {"large", operator_case.large},
                      {"cpu_only", operator_case.cpu_only},
                      {"inputs", inputs}});
    }
  }
  return json_text(list, 1);
}

}  // namespace heddle
