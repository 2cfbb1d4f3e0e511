#include "cli/output_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "core/runtime/error.h"

namespace heddle::cli {

namespace fs = std::filesystem;

bool is_written_once(const fs::path& path) { return fs::exists(path) && !fs::is_regular_file(path); }

void check_output_folder(const char* option, const fs::path& folder) {
  if (!fs::is_directory(folder)) throw UsageError(fmt::format("{}: {} is no folder", option, folder.string()));
  if (::access(folder.c_str(), W_OK) == 0) return;
  throw UsageError(fmt::format("{}: {} cannot be written: {}", option, folder.string(), std::strerror(errno)));
}

void check_output_file(const char* option, const fs::path& path) {
  if (path.empty()) return;
  if (fs::is_directory(path)) throw UsageError(fmt::format("{}: {} is a folder", option, path.string()));
  if (is_written_once(path)) return;
  check_output_folder(option, path.has_parent_path() ? path.parent_path() : fs::path("."));
}

}  // namespace heddle::cli
