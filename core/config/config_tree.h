// The YAML tree of a configuration, with the place where every key and value was written. Code reads it through a
// ConfigNode (config_node.h). Parsing is strict where YAML is not: duplicate keys, keys that are not plain names,
// explicit tags, merge keys and several documents are errors.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/config/config_error.h"

namespace heddle {

struct ConfigValue;

// A value and all that is below it. It is constant from the moment it is shared, so trees may have parts in common
// (YAML aliases, files and their base) and any number of readers.
using ConfigTree = std::shared_ptr<const ConfigValue>;

struct ConfigEntry {
  std::string name;
  Location location;  // of the key
  ConfigTree value;   // never null
};

struct ConfigValue {
  enum class Kind { null, scalar, sequence, map };

  Kind kind = Kind::null;
  Location location;
  std::string scalar;                // Kind::scalar
  bool quoted = false;               // Kind::scalar
  std::vector<ConfigTree> items;     // Kind::sequence
  std::vector<ConfigEntry> entries;  // Kind::map, in the order in which they were written

  const ConfigEntry* find(std::string_view name) const;
  ConfigEntry* find(std::string_view name);
};

// Parses one YAML document. Empty text gives Kind::null. When `fixed_location` is not null every location is that one
// (the values of --set overrides). Throws ConfigError.
ConfigTree parse_yaml(const std::string& text, const std::string& file, const Location* fixed_location = nullptr);

// YAML text of the tree, which ends in a line break. Parsing it gives an equal tree, locations aside.
std::string to_yaml(const ConfigValue& value);

// The same on one line, without a line break: "{prompt: a, tokens: 20}", "[0.9, 0.95]", "3".
std::string to_line(const ConfigValue& value);

}  // namespace heddle
