// Where the files lie that come with the program: configs, published figures, the Python file of exported models.
#pragma once

#include <filesystem>
#include <vector>

namespace heddle {

// Folders that hold `configs`, `bench` and `export`, if they are there at all: the current one, the share/heddle of the
// installation that the running program is a part of, that of its build folder, and in a program of somebody else's
// that of the heddle whose libraries it links. Earlier ones go first.
std::vector<std::filesystem::path> share_folders();

// The file of that name, relative to these folders but the current one; it came with the program. Throws Error that
// names the folders when none has it.
std::filesystem::path shared_file(const std::filesystem::path& name);

// The path itself where something is, or a path from the root; else the file of that name in these folders, if there is
// one. So `configs/toy_copy.yaml` is found wherever the program is started.
std::filesystem::path own_or_shared(const std::filesystem::path& path);

}  // namespace heddle
