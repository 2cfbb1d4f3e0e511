// Paths in the commands that messages tell a user to run.
#pragma once

#include <string>

namespace heddle {

// The path as one argument of a shell: it is quoted where it holds what a shell reads, and is no option.
std::string shell_argument(const std::string& path);

// `--set KEY=TEXT` with the text as YAML, as arguments of a shell.
std::string shell_set(const std::string& key, const std::string& text);

}  // namespace heddle
