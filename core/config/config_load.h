// From files and overrides to one tree: `base:` inclusion and `--set`.
//   base: other.yaml   (top level, relative to the file that says it)
//     maps merge key by key, this file's keys win; scalars and lists replace;
//     a map whose `type` differs from the base's `type` replaces it whole,
//     because the keys of one type mean nothing to another.
//   --set a.b=VALUE    VALUE is YAML; applied last, in the order given, with the
//     same merge rules. A number in the path indexes a list (betas.0).
#pragma once

#include <span>
#include <string>

#include "core/config/config_node.h"

namespace heddle {

// Reads `path`, its chain of bases and the overrides ("a.b=c").
// Throws ConfigError.
ConfigNode load_config(const std::string& path, std::span<const std::string> overrides = {});

// The same from text; `name` stands for the file in messages, and `base` is
// looked up relative to its folder.
ConfigNode parse_config(const std::string& text, const std::string& name = "config",
                        std::span<const std::string> overrides = {});

}  // namespace heddle
