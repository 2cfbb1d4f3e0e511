// The steps of adding an operator (docs/design.md#adding-an-operator), as far as they can be read off the sources.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

// Files that have to be edited, whatever the operator.
inline const std::string kRows = "layers/operators/operators.h";
inline const std::string kRegistry = "layers/registry.cc";
inline const std::string kDocs = "docs/layers.md";

// The text of each file by its path from the root of the repository.
using SourceTree = std::map<std::string, std::string>;

// The C++ and CUDA sources of kernels, layers and trainers, and docs/layers.md.
SourceTree read_source_tree(const std::filesystem::path& root);

// What was forgotten: one message "FILE: what to do there" for each file that has to be edited, in the order of the
// files. These are forgotten steps:
//   a kernel that a header of a family declares and no file of that family's cpu or cuda folder defines
//   a kernel header that no operator and no trainer includes
//   an operator of layers/ops (a function on the tape whose header cites docs/layers.md) that is not defined, or that
//     no file of layers/operators includes, directly or through a module
//   a row (a function `Operator NAME()` of layers/operators) that is not defined, not declared or not added
//   an operator without a section in docs/layers.md, and an anchor of that page that is cited and does not exist
//   a file that is included and does not exist
std::vector<std::string> forgotten_steps(const SourceTree& tree);
