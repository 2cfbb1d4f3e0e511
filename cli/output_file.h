// Files that a command will write are looked at before it computes, which may take long, and before it replaces one
// that it reads.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace heddle::cli {

// A file that a command reads or writes, and what its user knows it as: "--json", "the config". An empty path is none.
struct NamedFile {
  std::string name;
  std::filesystem::path path;
};
using NamedFiles = std::vector<NamedFile>;

// Throw UsageError when one of the files, or a file in the folder, that `option` ("--plot") names, cannot be written.
// Files are also refused when they are, by whatever path, one of `inputs` or two outputs in one: see
// check_distinct_files().
void check_output_files(const NamedFiles& outputs, const NamedFiles& inputs);
void check_output_folder(const char* option, const std::filesystem::path& folder);

// Throws UsageError when an output would replace one of `inputs` or another output. What is written through (/dev/null,
// a pipe) replaces nothing.
void check_distinct_files(const NamedFiles& outputs, const NamedFiles& inputs);

}  // namespace heddle::cli
