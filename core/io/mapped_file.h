// The bytes of a file, for reading only, without a copy of them in memory.
#pragma once

#include <filesystem>
#include <memory>
#include <string_view>

namespace heddle {

// A regular file is mapped: its pages are read when they are touched, and the system takes them back when memory is
// short, so a file may be larger than memory. What cannot be mapped (a pipe, a terminal) is read to its end, by
// read_file(). Copies share the bytes, which live as long as one of them.
//
// Appending to a mapped file, or replacing it by another under its name, changes nothing here. It must not be cut
// short: the system ends a process that touches a page which is gone (SIGBUS).
class MappedFile {
 public:
  // Throws Error naming the file.
  explicit MappedFile(std::filesystem::path path);

  const std::filesystem::path& path() const { return path_; }
  std::string_view bytes() const { return bytes_; }
  // Gives the memory of the pages of bytes() that hold `part` back to the system; they are read again when they are
  // touched. For who goes through a large file once.
  void release(std::string_view part) const;

 private:
  std::filesystem::path path_;
  bool is_mapped_ = false;
  std::shared_ptr<const void> owner_;  // the mapping, or what was read
  std::string_view bytes_;
};

}  // namespace heddle
