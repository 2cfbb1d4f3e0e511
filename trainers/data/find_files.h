// The files that a path of a config names.
#pragma once

#include <string>
#include <vector>

namespace heddle {

// The file of this name, or the files that the pattern (glob: * ? [..]) matches, sorted by name. "~/" at the start is
// the home folder. Throws Error when there is none, saying where it looked.
std::vector<std::string> find_files(const std::string& path_or_pattern);

// The path of one file, with "~/" at the start as the home folder. Throws Error when it is not there or a folder.
std::string find_file(const std::string& path);

}  // namespace heddle
