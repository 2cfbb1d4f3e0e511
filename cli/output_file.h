// Files that a command will write are looked at before it computes, which may take long.
#pragma once

#include <filesystem>

namespace heddle::cli {

// Whether there is something at `path` that cannot be replaced: /dev/stdout, a pipe.
bool is_written_once(const std::filesystem::path& path);

// Throw UsageError when the file, or a file in the folder, that `option` ("--json") names cannot be written. An empty
// path asks for nothing.
void check_output_file(const char* option, const std::filesystem::path& path);
void check_output_folder(const char* option, const std::filesystem::path& folder);

}  // namespace heddle::cli
