// Whether two paths name one file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <tuple>

namespace heddle {

// Equal for all paths of one file: through symbolic links, hard links, and folders by other names.
struct FileIdentity {
  uint64_t device = 0, inode = 0;  // where there is a file
  std::filesystem::path path;      // else the canonical path that it would have, behind all links

  bool operator==(const FileIdentity& other) const { return key() == other.key(); }
  bool operator<(const FileIdentity& other) const { return key() < other.key(); }

 private:
  std::tuple<uint64_t, uint64_t, const std::filesystem::path&> key() const { return {device, inode, path}; }
};

// A chain of symbolic links that does not end is a file of its own, which whoever opens it cannot open.
FileIdentity file_identity(const std::filesystem::path& path);

}  // namespace heddle
