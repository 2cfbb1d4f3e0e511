#include "core/config/config_difference.h"

namespace heddle {
namespace {

using Kind = ConfigValue::Kind;

void compare(const std::string& path, const ConfigValue* first, const ConfigValue* second,
             std::vector<ConfigDifference>& differences) {
  if (first == nullptr || second == nullptr || first->kind != Kind::map || second->kind != Kind::map) {
    const std::string a = first != nullptr ? to_line(*first) : "", b = second != nullptr ? to_line(*second) : "";
    if (a != b) differences.push_back({path, a, b});
    return;
  }
  const auto path_of = [&](const ConfigEntry& entry) { return path.empty() ? entry.name : path + "." + entry.name; };
  for (const ConfigEntry& entry : first->entries) {
    const ConfigEntry* other = second->find(entry.name);
    compare(path_of(entry), entry.value.get(), other != nullptr ? other->value.get() : nullptr, differences);
  }
  for (const ConfigEntry& entry : second->entries) {
    if (first->find(entry.name) == nullptr) compare(path_of(entry), nullptr, entry.value.get(), differences);
  }
}

}  // namespace

std::vector<ConfigDifference> config_differences(const ConfigValue& first, const ConfigValue& second) {
  std::vector<ConfigDifference> differences;
  compare("", &first, &second, differences);
  return differences;
}

}  // namespace heddle
