#include "core/config/config_node.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <functional>

#include "core/config/for_each_scalar.h"
#include "core/config/nearest_name.h"

namespace heddle {
namespace {

using Kind = ConfigValue::Kind;

template <ConfigReadable T>
std::string expected() {
  if constexpr (ConfigScalar<T>) {
    return expected_type<T>();
  } else {
    return "a list, each item " + expected_type<typename T::value_type>();
  }
}

ConfigTree replace_scalars(const ConfigValue& value, const std::function<std::string(const std::string&)>& replace) {
  auto copy = std::make_shared<ConfigValue>(value);
  if (copy->kind == Kind::scalar) copy->scalar = replace(copy->scalar);
  for (ConfigTree& item : copy->items) item = replace_scalars(*item, replace);
  for (ConfigEntry& entry : copy->entries) entry.value = replace_scalars(*entry.value, replace);
  return copy;
}

void visit_scalars(const ConfigValue& value, const std::string& path,
                   const std::function<void(const std::string& path, const ConfigValue& value)>& visit) {
  if (value.kind == Kind::scalar) visit(path, value);
  const std::string prefix = path.empty() ? "" : path + ".";
  for (std::size_t i = 0; i < value.items.size(); ++i) {
    visit_scalars(*value.items[i], prefix + std::to_string(i), visit);
  }
  for (const ConfigEntry& entry : value.entries) visit_scalars(*entry.value, prefix + entry.name, visit);
}

// "found a map, expected a list" where `expected` belongs. --set betas.1=0.99 makes a map where there is no list.
std::string found_no_list(const ConfigValue& value, const std::string& expected) {
  std::string message = "found " + describe_found(value) + ", expected " + expected;
  const bool is_override = value.location.line == 0, is_map = value.kind == Kind::map && !value.entries.empty();
  if (is_override && is_map && std::isdigit(static_cast<unsigned char>(value.entries[0].name[0])) != 0) {
    message += "; the files give no list there, so that it has no item to change: set it whole";
  }
  return message;
}

ConfigTree empty_map() {
  auto map = std::make_shared<ConfigValue>();
  map->kind = Kind::map;
  return map;
}

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

struct ConfigNode::Reading {
  struct Child {
    std::string key;
    std::size_t item;  // index into the list, or 0 for a section
    ConfigNode node;
  };

  std::vector<std::string> known;  // the keys that were asked for, in the order of asking
  std::vector<Child> children;     // the sections and list items that were asked for
  bool handed_on = false;          // read by way of a copy, whose reader finishes it
};

ConfigNode::ConfigNode() : ConfigNode(empty_map()) {}

ConfigNode::ConfigNode(const ConfigTree& root) : ConfigNode(root, root->location, "") {}

ConfigNode::ConfigNode(ConfigTree value, Location location, std::string path)
    : value_(std::move(value)),
      location_(std::move(location)),
      path_(std::move(path)),
      reading_(std::make_shared<Reading>()) {
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
  return entry == nullptr ? location_ : entry->value->location;
}

const ConfigValue* ConfigNode::ask(const std::string& key) const {
  if (!contains(reading_->known, key)) reading_->known.push_back(key);
  const ConfigEntry* entry = value_->find(key);
  return entry == nullptr ? nullptr : entry->value.get();
}

std::vector<std::string> ConfigNode::keys() const {
  std::vector<std::string> names;
  for (const ConfigEntry& entry : value_->entries) names.push_back(entry.name);
  return names;
}

bool ConfigNode::has(const std::string& key) const {
  const ConfigValue* value = ask(key);
  return value != nullptr && value->kind != Kind::null;
}

void ConfigNode::check_path(std::string_view key, const std::string& path, const std::string& expected) const {
  if (path.empty()) fail(key, "found an empty path, expected " + expected);
  if (path.find('\0') != std::string::npos) fail(key, "found '" + path + "', with a NUL byte, expected " + expected);
}

void ConfigNode::refuse(const std::string& key, const std::string& reason) const {
  if (value_->find(key) == nullptr || !has(key)) return;
  fail(key, "found " + describe_found(*ask(key)) + ", expected no such key: " + reason);
}

void ConfigNode::fail_missing(const std::string& key, const std::string& expected) const {
  std::string message = "missing key '" + key + "'" + (path_.empty() ? "" : " in " + path_) + ", expected " + expected;
  std::vector<std::string> unread;
  for (const ConfigEntry& entry : value_->entries) {
    if (!contains(reading_->known, entry.name)) unread.push_back(entry.name);
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
      throw ConfigError(value.location, path_of(key) + ": " + found_no_list(value, expected<T>()));
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
  const ConfigValue* value = ask(key);
  return value == nullptr ? otherwise : parse<T>(key, *value, range);
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

template <ConfigScalar T>
std::optional<T> ConfigNode::get_number_or_word(const std::string& key, const std::optional<T>& otherwise,
                                                const std::string& word, const Range& range) const {
  const ConfigValue* value = ask(key);
  if (value == nullptr) return otherwise;
  if (value->kind == Kind::scalar && value->scalar == word) return std::nullopt;
  try {
    return parse<T>(key, *value, range);
  } catch (const ConfigError& error) {
    throw ConfigError(error.location(), error.message() + ", or " + word);
  }
}

#define HEDDLE_CONFIG_READABLE(T)                                                                        \
  template T ConfigNode::get<T>(const std::string&, const std::type_identity_t<T>&, const Range&) const; \
  template T ConfigNode::require<T>(const std::string&, const Range&) const;                             \
  template std::optional<T> ConfigNode::find<T>(const std::string&, const Range&) const;
#define HEDDLE_CONFIG_SCALAR(T)                                                                            \
  HEDDLE_CONFIG_READABLE(T)                                                                                \
  HEDDLE_CONFIG_READABLE(std::vector<T>)                                                                   \
  template std::optional<T> ConfigNode::get_number_or_word<T>(const std::string&, const std::optional<T>&, \
                                                              const std::string&, const Range&) const;
HEDDLE_FOR_EACH_CONFIG_SCALAR(HEDDLE_CONFIG_SCALAR)
#undef HEDDLE_CONFIG_SCALAR
#undef HEDDLE_CONFIG_READABLE

std::optional<std::string> ConfigNode::find_name(const std::string& key, const std::vector<std::string>& names) const {
  const ConfigValue* value = ask(key);
  if (value == nullptr) return std::nullopt;
  if (value->kind == Kind::scalar && contains(names, value->scalar)) return value->scalar;
  throw ConfigError(value->location, path_of(key) + ": found " + describe_found(*value) + ", expected one of " +
                                         join_names(names) + did_you_mean(value->scalar, names));
}

std::string ConfigNode::get_name(const std::string& key, const std::string& otherwise,
                                 const std::vector<std::string>& names) const {
  return find_name(key, names).value_or(otherwise);
}

std::string ConfigNode::require_name(const std::string& key, const std::vector<std::string>& names) const {
  const std::optional<std::string> name = find_name(key, names);
  if (!name) fail_missing(key, "one of " + join_names(names));
  return *name;
}

ConfigNode ConfigNode::child(const std::string& key, std::size_t item, const ConfigTree& value,
                             const Location& location, const std::string& path) const {
  for (const Reading::Child& known : reading_->children) {
    if (known.key == key && known.item == item) return known.node;
  }
  ConfigNode node(value, location, path);
  reading_->children.push_back({key, item, node});
  return node;
}

ConfigNode ConfigNode::section(const std::string& key) const {
  if (ask(key) == nullptr) return child(key, 0, empty_map(), location_, path_of(key));
  return require_section(key);
}

ConfigNode ConfigNode::require_section(const std::string& key) const {
  if (ask(key) == nullptr) fail_missing(key, "a map of keys and values");
  const ConfigEntry& entry = *value_->find(key);
  return child(key, 0, entry.value, entry.location, path_of(key));
}

std::optional<ConfigNode> ConfigNode::find_section(const std::string& key) const {
  if (!has(key)) return std::nullopt;
  return require_section(key);
}

std::vector<ConfigNode> ConfigNode::list(const std::string& key) const {
  std::vector<ConfigNode> nodes;
  const ConfigValue* value = ask(key);
  if (value == nullptr) return nodes;
  if (value->kind != Kind::sequence) {
    throw ConfigError(value->location, path_of(key) + ": " + found_no_list(*value, "a list of maps"));
  }
  for (std::size_t i = 0; i < value->items.size(); ++i) {
    const ConfigTree& item = value->items[i];
    nodes.push_back(child(key, i, item, item->location, path_of(key) + "." + std::to_string(i)));
  }
  return nodes;
}

ConfigNode ConfigNode::with_scalars(const std::function<std::string(const std::string&)>& replace) const {
  reading_->handed_on = true;
  return ConfigNode(replace_scalars(*value_, replace), location_, path_);
}

void ConfigNode::for_each_scalar(
    const std::function<void(const std::string& path, const ConfigValue& value)>& visit) const {
  visit_scalars(*value_, path_, visit);
}

std::string ConfigNode::did_you_mean_below(const std::string& key) const {
  constexpr std::size_t kMost = 3;  // more tell a user nothing
  std::vector<std::string> paths;
  const std::function<void(const ConfigNode&)> visit = [&](const ConfigNode& node) {
    for (const Reading::Child& child : node.reading_->children) {
      const std::string path = child.node.path_of(key);
      if (contains(child.node.reading_->known, key) && !contains(paths, path)) paths.push_back(path);
      visit(child.node);
    }
  };
  visit(*this);
  if (paths.empty() || paths.size() > kMost) return "";
  std::string names;
  for (const std::string& path : paths) names += (names.empty() ? "'" : " or '") + path + "'";
  return "; did you mean " + names + "?";
}

void ConfigNode::finish() const {
  if (reading_->handed_on) return;
  const std::vector<std::string>& known = reading_->known;
  for (const ConfigEntry& entry : value_->entries) {
    if (contains(known, entry.name)) continue;
    std::vector<std::string> expected = known;
    if (entry.location.is_override() && path_.empty()) std::erase(expected, "base");  // which only a file may name
    std::string hint = did_you_mean(entry.name, expected);
    if (hint.empty()) hint = did_you_mean_below(entry.name);
    if (hint.empty()) hint = expected.empty() ? ", expected no keys" : ", expected one of " + join_names(expected);
    throw ConfigError(entry.location,
                      "unknown key '" + entry.name + "'" + (path_.empty() ? "" : " in " + path_) + hint);
  }
  for (const Reading::Child& child : reading_->children) child.node.finish();
}

void ConfigNode::fail(const std::string& message) const {
  throw ConfigError(location_, path_.empty() ? message : path_ + ": " + message);
}

void ConfigNode::fail(std::string_view key, const std::string& message) const {
  throw ConfigError(location_of(key), path_of(key) + ": " + message);
}

std::string ConfigNode::dump() const { return to_yaml(*value_); }

}  // namespace heddle
