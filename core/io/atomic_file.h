// Files that are either there whole or not there at all, whatever happens while they are written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace heddle {

// What tells a file from a damaged copy of it.
struct FileDigest {
  uint64_t bytes = 0;
  uint32_t crc32 = 0;  // of zlib and PNG
  bool operator==(const FileDigest&) const = default;
};

// The digest of what it was of, with these bytes after it.
void extend(FileDigest& digest, const void* data, size_t bytes);

// Writes ".NAME.partial" beside `path`. commit() syncs it, renames it to `path` and syncs the folder; without a
// commit() nothing is left. Only one writer at a time may write one path. Throws Error naming the file.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t bytes);
  FileDigest commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path partial_;
  int descriptor_ = -1;
  FileDigest digest_;
};

FileDigest write_file(const std::filesystem::path& path, std::string_view contents);
std::string read_file(const std::filesystem::path& path);
FileDigest digest_file(const std::filesystem::path& path);
// Makes renames and removals inside the folder last.
void sync_directory(const std::filesystem::path& path);

}  // namespace heddle
