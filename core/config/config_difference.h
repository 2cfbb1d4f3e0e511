// How two configurations differ, key by key.
#pragma once

#include <string>
#include <vector>

#include "core/config/config_tree.h"

namespace heddle {

// A key that two trees have different values for. A value is YAML on one line; "" where the tree does not have the key.
struct ConfigDifference {
  std::string path;  // "optimizer.lr"
  std::string first;
  std::string second;
};

// The differences of two trees that were written by the same description: maps are compared key by key, anything else
// as a whole. In the order of the first tree; keys that only the second one has come at the end of their section.
std::vector<ConfigDifference> config_differences(const ConfigValue& first, const ConfigValue& second);

}  // namespace heddle
