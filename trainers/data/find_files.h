// The files that a path of a config names.
#pragma once

#include <string>
#include <vector>

namespace heddle {

// The file of this name, or the files that the pattern (glob: * ? [..]) matches, sorted by name. "~/" at the start is
// the home folder. Throws Error when there is none, saying where it looked.
std::vector<std::string> find_files(const std::string& path_or_pattern);

}  // namespace heddle
