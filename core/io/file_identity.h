// Whether two paths name one file.
#pragma once

#include <compare>
#include <cstdint>
#include <filesystem>

namespace heddle {

// Equal for all paths of one file: through symbolic links, hard links, and folders by other names.
struct FileIdentity {
  uint64_t device = 0, inode = 0;  // where there is a file
  std::filesystem::path path;      // else the canonical path that it would have, behind all links
  auto operator<=>(const FileIdentity&) const = default;
};

// Throws Error for a chain of symbolic links that does not end.
FileIdentity file_identity(const std::filesystem::path& path);

}  // namespace heddle
