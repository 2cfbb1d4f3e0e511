// From files and overrides to one tree: `base:` inclusion and `--set`.
//   base: other.yaml   (at the top level, relative to the file that says it)
//     Maps merge key by key, and the keys of this file win; scalars and lists replace. A map whose `type` differs from
//     that of the base replaces it whole, because the keys of one type mean nothing to another. A base that writes no
//     type has the one of DefaultTypes, if any.
//   --set a.b=VALUE    (VALUE is YAML)
//     Overrides are applied last, in the order given, by the same rules. A number in the path is an index into a list
//     (betas.0).
#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/config/config_node.h"

namespace heddle {

// Names of top-level sections whose `type` may be left out, and the type that they have then.
using DefaultTypes = std::map<std::string, std::string>;

// Reads `path`, its chain of bases and the overrides ("a.b=c"). Throws ConfigError.
ConfigNode load_config(const std::string& path, std::span<const std::string> overrides = {},
                       const DefaultTypes& default_types = {});

// The files that load_config() reads, by their canonical paths: `path`, then its chain of bases up to one that cannot
// be read.
std::vector<std::filesystem::path> config_files(const std::string& path);

// Does the same with text. `name` stands for the file in messages, and `base` is looked up relative to its folder.
ConfigNode parse_config(const std::string& text, const std::string& name = "config",
                        std::span<const std::string> overrides = {}, const DefaultTypes& default_types = {});

}  // namespace heddle
