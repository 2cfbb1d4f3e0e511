#include "tools/share_folders.h"

#include <system_error>

namespace heddle {

namespace fs = std::filesystem;

std::vector<fs::path> share_folders() {
  std::vector<fs::path> folders = {""};
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (error) return folders;
  for (const char* share : {HEDDLE_SHARE_FROM_PROGRAM, "share/heddle"}) {
    folders.push_back((program.parent_path() / share).lexically_normal());
  }
  return folders;
}

}  // namespace heddle
