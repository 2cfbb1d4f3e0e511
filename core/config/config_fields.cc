#include "core/config/config_fields.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

#include "core/config/for_each_scalar.h"
#include "core/config/nearest_name.h"

namespace heddle {
namespace {

using Kind = ConfigValue::Kind;

template <ConfigScalar T>
ConfigTree make_value(const std::string& key, const T& scalar) {
  auto value = std::make_shared<ConfigValue>();
  value->kind = Kind::scalar;
  value->scalar = format_scalar(scalar);
  if constexpr (std::is_floating_point_v<T>) {
    check(std::isfinite(scalar), "{} is {}, expected a finite number: a config cannot hold another", key,
          value->scalar);
  }
  if constexpr (std::is_same_v<T, std::string>) value->quoted = needs_quotes(scalar);
  return value;
}

template <ConfigScalar T>
ConfigTree make_value(const std::string& key, const std::vector<T>& scalars) {
  auto value = std::make_shared<ConfigValue>();
  value->kind = Kind::sequence;
  for (const auto& scalar : scalars) value->items.push_back(make_value<T>(key, scalar));
  return value;
}

}  // namespace

ConfigFields::ConfigFields(const ConfigNode& section) : node_(section) {}

ConfigFields::ConfigFields(ConfigValue& map) : map_(&map) { map.kind = Kind::map; }

const ConfigNode& ConfigFields::node() const {
  check(reads(), "a config that is written was asked for the section that it is read from");
  return *node_;
}

void ConfigFields::required_name(const std::string& key, std::string& value, const std::vector<std::string>& names) {
  if (reads()) {
    value = node_->require_name(key, names);
    return;
  }
  for (const std::string& name : names) {
    if (name == value) return write(key, value);
  }
  fail_without_name(key, names);
}

void ConfigFields::section(const std::string& key, const std::function<void(ConfigFields&)>& describe) {
  if (!reads()) return write_section(key, describe);
  ConfigFields fields(node_->section(key));
  describe(fields);
}

void ConfigFields::required_section(const std::string& key, const std::function<void(ConfigFields&)>& describe) {
  if (!reads()) return write_section(key, describe);
  ConfigFields fields(node_->require_section(key));
  describe(fields);
}

void ConfigFields::fail(const std::string& key, const std::string& message) const {
  if (reads()) node_->fail(key, message);
  heddle::fail("{}: {}", key, message);
}

void ConfigFields::fail_without_name(const std::string& key, const std::vector<std::string>& names) {
  heddle::fail("{} has a value without a name, expected one of {}", key, join_names(names));
}

void ConfigFields::write_section(const std::string& key, const std::function<void(ConfigFields&)>& describe) {
  auto map = std::make_shared<ConfigValue>();
  ConfigFields fields(*map);
  describe(fields);
  add(key, std::move(map));
}

void ConfigFields::write_list(const std::string& key, std::size_t count,
                              const std::function<void(ConfigFields&, std::size_t)>& describe) {
  auto list = std::make_shared<ConfigValue>();
  list->kind = Kind::sequence;
  for (std::size_t i = 0; i < count; ++i) {
    auto map = std::make_shared<ConfigValue>();
    ConfigFields fields(*map);
    describe(fields, i);
    list->items.push_back(std::move(map));
  }
  add(key, std::move(list));
}

void ConfigFields::add(const std::string& key, ConfigTree value) {
  check(map_->find(key) == nullptr, "{} is described twice", key);
  map_->entries.push_back({key, {}, std::move(value)});
}

template <ConfigReadable T>
void ConfigFields::write(const std::string& key, const T& value) {
  add(key, make_value(key, value));
}

#define HEDDLE_CONFIG_READABLE(T) template void ConfigFields::write<T>(const std::string&, const T&);
#define HEDDLE_CONFIG_SCALAR(T) \
  HEDDLE_CONFIG_READABLE(T)     \
  HEDDLE_CONFIG_READABLE(std::vector<T>)
HEDDLE_FOR_EACH_CONFIG_SCALAR(HEDDLE_CONFIG_SCALAR)
#undef HEDDLE_CONFIG_SCALAR
#undef HEDDLE_CONFIG_READABLE

}  // namespace heddle
