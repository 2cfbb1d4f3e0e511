// The YAML tree of a configuration, with the place every key and value was
// written. ConfigNode (config_node.h) is what code reads; this is what it reads
// from. Parsing is strict where YAML is not: duplicate keys, keys that are not
// plain names, explicit tags, merge keys and several documents are errors.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/config/config_error.h"

namespace heddle {

struct ConfigValue;

struct ConfigEntry {
  std::string name;
  Location location;                   // of the key
  std::shared_ptr<ConfigValue> value;  // never null
  bool is_default = false;             // filled in by a reader, not written
};

struct ConfigValue {
  enum class Kind { null, scalar, sequence, map };

  Kind kind = Kind::null;
  Location location;
  std::string scalar;                               // Kind::scalar
  bool quoted = false;                              // Kind::scalar
  std::vector<std::shared_ptr<ConfigValue>> items;  // Kind::sequence
  std::vector<ConfigEntry> entries;                 // Kind::map, as written
  std::vector<std::string> known;                   // names that readers of this map asked for

  const ConfigEntry* find(std::string_view name) const;
  ConfigEntry* find(std::string_view name);
  std::shared_ptr<ConfigValue> clone() const;
};

// Parses one YAML document. Empty text gives Kind::null. When `fixed_location`
// is not null every location is that one (the values of --set overrides).
// Throws ConfigError.
std::shared_ptr<ConfigValue> parse_yaml(const std::string& text, const std::string& file,
                                        const Location* fixed_location = nullptr);

// YAML text of the tree; parsing it gives an equal tree (locations aside).
std::string to_yaml(const ConfigValue& value);

}  // namespace heddle
