#include "core/config/config_node.h"

#include <algorithm>

#include "core/config/nearest_name.h"

namespace heddle {
namespace {

using Kind = ConfigValue::Kind;

template <ConfigScalar T>
std::shared_ptr<ConfigValue> make_value(const T& scalar) {
  auto value = std::make_shared<ConfigValue>();
  value->kind = Kind::scalar;
  value->scalar = format_scalar(scalar);
  return value;
}

template <ConfigScalar T>
std::shared_ptr<ConfigValue> make_value(const std::vector<T>& scalars) {
  auto value = std::make_shared<ConfigValue>();
  value->kind = Kind::sequence;
  for (const T& scalar : scalars) value->items.push_back(make_value<T>(scalar));
  return value;
}

template <ConfigReadable T>
std::string expected() {
  if constexpr (ConfigScalar<T>) {
    return expected_type<T>();
  } else {
    return "a list, each item " + expected_type<typename T::value_type>();
  }
}

// Of the copy of a map that with_scalars() gives.
void replace_scalars(ConfigValue& value, const std::function<std::string(const std::string&)>& replace) {
  if (value.kind == Kind::scalar) value.scalar = replace(value.scalar);
  for (const std::shared_ptr<ConfigValue>& item : value.items) replace_scalars(*item, replace);
  for (const ConfigEntry& entry : value.entries) replace_scalars(*entry.value, replace);
  value.known.clear();
}

}  // namespace

ConfigNode::ConfigNode() : value_(std::make_shared<ConfigValue>()) { value_->kind = Kind::map; }

ConfigNode::ConfigNode(const std::shared_ptr<ConfigValue>& root) : ConfigNode(root, root->location, "") {}

ConfigNode::ConfigNode(std::shared_ptr<ConfigValue> value, Location location, std::string path)
    : value_(std::move(value)), location_(std::move(location)), path_(std::move(path)) {
  if (value_->kind != Kind::map) {
    throw ConfigError(value_->location,
                      path_ + ": found " + describe_found(*value_) + ", expected a map of keys and values");
  }
}

std::string ConfigNode::path_of(std::string_view key) const {
  return path_.empty() ? std::string(key) : path_ + "." + std::string(key);
}

Location ConfigNode::location_of(std::string_view key) const {
  const ConfigEntry* entry = value_->find(key);
  if (entry == nullptr || entry->is_default) return location_;
  return entry->value->location;
}

const ConfigValue* ConfigNode::ask(const std::string& key) const {
  std::vector<std::string>& known = value_->known;
  if (std::find(known.begin(), known.end(), key) == known.end()) {
    known.push_back(key);
  }
  const ConfigEntry* entry = value_->find(key);
  if (entry == nullptr || entry->is_default) return nullptr;
  return entry->value.get();
}

std::vector<std::string> ConfigNode::keys() const {
  std::vector<std::string> names;
  for (const ConfigEntry& entry : value_->entries) {
    if (!entry.is_default) names.push_back(entry.name);
  }
  return names;
}

bool ConfigNode::has(const std::string& key) const {
  const ConfigValue* value = ask(key);
  return value != nullptr && value->kind != Kind::null;
}

void ConfigNode::record_default(const std::string& key, std::shared_ptr<ConfigValue> value) const {
  value->location = location_;
  if (ConfigEntry* entry = value_->find(key)) {
    entry->value = std::move(value);
  } else {
    value_->entries.push_back({key, location_, std::move(value), true});
  }
}

void ConfigNode::fail_missing(const std::string& key, const std::string& expected) const {
  std::string message = "missing key '" + key + "'" + (path_.empty() ? "" : " in " + path_) + ", expected " + expected;
  std::vector<std::string> unread;
  for (const ConfigEntry& entry : value_->entries) {
    if (std::find(value_->known.begin(), value_->known.end(), entry.name) == value_->known.end()) {
      unread.push_back(entry.name);
    }
  }
  const std::string misspelt = nearest_name(key, unread);
  if (!misspelt.empty()) {
    message += "; is '" + misspelt + "' at " + value_->find(misspelt)->location.to_string() + " meant?";
  }
  throw ConfigError(location_, message);
}

template <ConfigReadable T>
T ConfigNode::parse(const std::string& key, const ConfigValue& value, const Range& range) const {
  if constexpr (ConfigScalar<T>) {
    return parse_scalar<T>(value, path_of(key), range);
  } else {
    if (value.kind != Kind::sequence) {
      throw ConfigError(value.location,
                        path_of(key) + ": found " + describe_found(value) + ", expected " + expected<T>());
    }
    T items;
    for (std::size_t i = 0; i < value.items.size(); ++i) {
      items.push_back(
          parse_scalar<typename T::value_type>(*value.items[i], path_of(key) + "." + std::to_string(i), range));
    }
    return items;
  }
}

template <ConfigReadable T>
T ConfigNode::get(const std::string& key, const std::type_identity_t<T>& otherwise, const Range& range) const {
  if (const ConfigValue* value = ask(key)) return parse<T>(key, *value, range);
  record_default(key, make_value(otherwise));
  return otherwise;
}

template <ConfigReadable T>
T ConfigNode::require(const std::string& key, const Range& range) const {
  const ConfigValue* value = ask(key);
  if (value == nullptr) fail_missing(key, expected<T>() + range.describe());
  return parse<T>(key, *value, range);
}

template <ConfigReadable T>
std::optional<T> ConfigNode::find(const std::string& key, const Range& range) const {
  if (!has(key)) return std::nullopt;
  return parse<T>(key, *ask(key), range);
}

#define HEDDLE_CONFIG_READABLE(T)                                                                        \
  template T ConfigNode::get<T>(const std::string&, const std::type_identity_t<T>&, const Range&) const; \
  template T ConfigNode::require<T>(const std::string&, const Range&) const;                             \
  template std::optional<T> ConfigNode::find<T>(const std::string&, const Range&) const;
#define HEDDLE_CONFIG_READABLE_AND_LIST(T) \
  HEDDLE_CONFIG_READABLE(T)                \
  HEDDLE_CONFIG_READABLE(std::vector<T>)
HEDDLE_CONFIG_READABLE_AND_LIST(int)
HEDDLE_CONFIG_READABLE_AND_LIST(std::int64_t)
HEDDLE_CONFIG_READABLE_AND_LIST(std::uint64_t)
HEDDLE_CONFIG_READABLE_AND_LIST(float)
HEDDLE_CONFIG_READABLE_AND_LIST(double)
HEDDLE_CONFIG_READABLE_AND_LIST(bool)
HEDDLE_CONFIG_READABLE_AND_LIST(std::string)
#undef HEDDLE_CONFIG_READABLE_AND_LIST
#undef HEDDLE_CONFIG_READABLE

std::string ConfigNode::check_name(const std::string& key, const ConfigValue& value,
                                   const std::vector<std::string>& names) const {
  if (value.kind == Kind::scalar && std::find(names.begin(), names.end(), value.scalar) != names.end()) {
    return value.scalar;
  }
  throw ConfigError(value.location, path_of(key) + ": found " + describe_found(value) + ", expected one of " +
                                        join_names(names) + did_you_mean(value.scalar, names));
}

std::string ConfigNode::get_name(const std::string& key, const std::string& otherwise,
                                 const std::vector<std::string>& names) const {
  if (const ConfigValue* value = ask(key)) return check_name(key, *value, names);
  record_default(key, make_value(otherwise));
  return otherwise;
}

std::string ConfigNode::require_name(const std::string& key, const std::vector<std::string>& names) const {
  const ConfigValue* value = ask(key);
  if (value == nullptr) fail_missing(key, "one of " + join_names(names));
  return check_name(key, *value, names);
}

ConfigNode ConfigNode::child(const std::string& key, const ConfigEntry& entry) const {
  return ConfigNode(entry.value, entry.location, path_of(key));
}

ConfigNode ConfigNode::section(const std::string& key) const {
  if (ask(key) == nullptr && value_->find(key) == nullptr) {
    auto empty = std::make_shared<ConfigValue>();
    empty->kind = Kind::map;
    record_default(key, std::move(empty));
  }
  return child(key, *value_->find(key));
}

ConfigNode ConfigNode::require_section(const std::string& key) const {
  if (ask(key) == nullptr) fail_missing(key, "a map of keys and values");
  return child(key, *value_->find(key));
}

std::optional<ConfigNode> ConfigNode::find_section(const std::string& key) const {
  if (!has(key)) return std::nullopt;
  return child(key, *value_->find(key));
}

std::vector<ConfigNode> ConfigNode::list(const std::string& key) const {
  std::vector<ConfigNode> nodes;
  const ConfigValue* value = ask(key);
  if (value == nullptr) return nodes;
  if (value->kind != Kind::sequence) {
    throw ConfigError(value->location,
                      path_of(key) + ": found " + describe_found(*value) + ", expected a list of maps");
  }
  for (std::size_t i = 0; i < value->items.size(); ++i) {
    nodes.push_back(ConfigNode(value->items[i], value->items[i]->location, path_of(key) + "." + std::to_string(i)));
  }
  return nodes;
}

ConfigNode ConfigNode::with_scalars(const std::function<std::string(const std::string&)>& replace) const {
  const std::shared_ptr<ConfigValue> copy = value_->clone();
  replace_scalars(*copy, replace);
  return ConfigNode(copy, location_, path_);
}

void ConfigNode::finish() const {
  const std::vector<std::string>& known = value_->known;
  for (const ConfigEntry& entry : value_->entries) {
    if (std::find(known.begin(), known.end(), entry.name) != known.end()) {
      continue;
    }
    std::string hint = did_you_mean(entry.name, known);
    if (hint.empty() && !known.empty()) hint = ", expected one of " + join_names(known);
    throw ConfigError(entry.location,
                      "unknown key '" + entry.name + "'" + (path_.empty() ? "" : " in " + path_) + hint);
  }
}

void ConfigNode::fail(const std::string& message) const {
  throw ConfigError(location_, path_.empty() ? message : path_ + ": " + message);
}

void ConfigNode::fail(std::string_view key, const std::string& message) const {
  throw ConfigError(location_of(key), path_of(key) + ": " + message);
}

std::string ConfigNode::dump() const { return to_yaml(*value_); }

}  // namespace heddle
