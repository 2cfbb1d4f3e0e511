#include "tools/share_folders.h"

#include <fmt/format.h>

#include <string>
#include <system_error>

#include "core/runtime/error.h"

namespace heddle {

namespace fs = std::filesystem;

const char* share_folder_of_libraries();  // of cmake/share_folder.cc; "" in our own program

std::vector<fs::path> share_folders() {
  std::vector<fs::path> folders = {""};
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (!error) {
    for (const char* share : {HEDDLE_SHARE_FROM_PROGRAM, "share/heddle"}) {
      folders.push_back((program.parent_path() / share).lexically_normal());
    }
  }
  const fs::path of_libraries = share_folder_of_libraries();
  if (!of_libraries.empty()) folders.push_back(of_libraries);
  return folders;
}

fs::path shared_file(const fs::path& name) {
  std::string looked;
  for (const fs::path& folder : share_folders()) {
    if (folder.empty()) continue;
    if (fs::is_regular_file(folder / name)) return folder / name;
    looked += fmt::format("{}{}", looked.empty() ? "" : " and ", folder.string());
  }
  fail("{} is missing, which comes with heddle: looked in {}", name.string(), looked);
}

fs::path own_or_shared(const fs::path& path) {
  std::error_code unreadable;
  for (const fs::path& folder : share_folders()) {  // the first is the current one
    const fs::path found = folder / path;
    if (folder.empty() ? fs::exists(found, unreadable) : fs::is_regular_file(found, unreadable)) return found;
  }
  return path;
}

}  // namespace heddle
