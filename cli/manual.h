// What `heddle COMMAND --help` says beside the options, in the order of a manual page.
#pragma once

#include <CLI/CLI.hpp>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace heddle::cli {

struct Manual {
  std::string description;                                    // paragraphs, each a line, wrapped when they are shown
  std::vector<std::pair<std::string, std::string>> examples;  // a command line, and what it does
  std::vector<std::pair<int, std::string>> exit_codes;        // beside 0, 1 and 2, or instead of these
  std::string page;                                           // "docs/training.md"
};

void set_manual(CLI::App& command, Manual manual);

// The text in lines of at most 100 characters, each after `indent` spaces and ended by a line break. A word that is
// longer has a line of its own.
std::string wrapped(const std::string& text, size_t indent);

}  // namespace heddle::cli
