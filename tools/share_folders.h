// Where the files lie that come with the program: configs and published figures.
#pragma once

#include <filesystem>
#include <vector>

namespace heddle {

// Folders that hold `configs` and `bench`, if they are there at all: the current one, the share/heddle of the
// installation that the running program is a part of, and that of its build folder. Earlier ones go first.
std::vector<std::filesystem::path> share_folders();

}  // namespace heddle
