#include "core/io/file_identity.h"

#include <sys/stat.h>

#include <cerrno>
#include <system_error>

#include "core/io/atomic_file.h"

namespace heddle {

FileIdentity file_identity(const std::filesystem::path& path) {
  struct stat found {};
  if (::stat(path.c_str(), &found) == 0) return {.device = found.st_dev, .inode = found.st_ino, .path = {}};
  if (errno == ELOOP) return {.path = std::filesystem::absolute(path).lexically_normal()};
  std::error_code ignored;
  return {.path = std::filesystem::weakly_canonical(std::filesystem::absolute(follow_links(path)), ignored)};
}

}  // namespace heddle
