#include "core/io/atomic_folder.h"

#include <fmt/format.h>

#include <system_error>

#include "core/io/atomic_file.h"

namespace heddle {

namespace fs = std::filesystem;

void write_folder(const fs::path& path, const std::function<void(const fs::path&)>& fill) {
  const fs::path parent = path.parent_path(), partial = partial_path(path);
  if (!parent.empty() && fs::create_directories(parent)) sync_directory(parent.parent_path());
  fs::remove_all(partial);
  try {
    fs::create_directory(partial);
    fill(partial);
    if (fs::exists(path)) remove_folder(path);
    rename_file(partial, path);
  } catch (...) {  // a full disk, most likely: its space is freed
    std::error_code ignored;
    fs::remove_all(partial, ignored);
    throw;
  }
  sync_directory(parent);
}

void remove_folder(const fs::path& path) {
  const fs::path aside = path.parent_path() / fmt::format(".{}{}", path.filename().string(), kRemovedSuffix);
  fs::remove_all(aside);
  rename_file(path, aside);
  fs::remove_all(aside);
}

}  // namespace heddle
