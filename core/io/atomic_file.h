// Files that are either there whole or not there at all, whatever happens while they are written. What is no regular
// file (a pipe, a terminal, a device) cannot be replaced and is written through.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <istream>
#include <string>
#include <string_view>

namespace heddle {

// What tells a file from a damaged copy of it.
struct FileDigest {
  uint64_t bytes = 0;
  uint32_t crc32 = 0;  // of zlib and PNG
  bool operator==(const FileDigest&) const = default;
};

// Extends the digest as if `bytes` bytes at `data` followed those it already covers.
void extend(FileDigest& digest, const void* data, size_t bytes);

// Writes a file aside, as ".NAME.heddle-partial" in the same folder; commit() syncs it, renames it to its name and
// syncs the folder. Without a commit() nothing is left, and a file that was there before stays as it was. A symbolic
// link is followed: what it points to is replaced, the link stays. An existing file keeps its permissions. A second
// writer of a path that is still being written gets an Error; what a killed writer left aside is written anew. (File
// systems that know no locks do not tell a second writer.)
//
// Anything else that is at `path` is written through, byte by byte as write() is called: pipes, terminals, devices, and
// descriptors by name (/dev/stdout, /dev/fd/3). The constructor throws when the file cannot be created, so a long
// computation may find this out first. Throws Error naming the file.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t bytes);
  // Replaces bytes that were written, from byte `offset` on; commit() then reads the file again for its digest. What is
  // written through cannot be replaced, and is an Error.
  void overwrite(uint64_t offset, const void* data, size_t bytes);
  // Puts what was written on the disk, still aside, so that of several files that belong together each is known to have
  // room before the first gets its name.
  void sync();
  FileDigest commit();

 private:
  std::filesystem::path path_;     // of the file itself, behind all links
  std::filesystem::path partial_;  // empty: written through
  int descriptor_ = -1;
  FileDigest digest_;
  bool is_overwritten_ = false;
  bool is_synced_ = false;
};

// A file that grows. What was appended before the process ends, however it ends, is there; only the last append() may
// then be there in part. Of an append() that throws nothing is there, so it may be tried again. Throws Error naming the
// file; NoSpace (disk_space.h) where its disk is full, as all functions of this header do.
class AppendFile {
 public:
  // Creates the file when it is not there.
  explicit AppendFile(std::filesystem::path path);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  // Returns when `text` is on the disk.
  void append(std::string_view text);

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

// What a chain of symbolic links leads to, whether it is there or not. Names of descriptors (/dev/stdout) are links to
// nothing that could be opened by its name, and stay as they are. Throws Error for a chain that does not end.
std::filesystem::path follow_links(std::filesystem::path path);

// Whether AtomicFile writes through to what is at `path`, which then cannot be replaced: a pipe, a device, or the name
// of a descriptor, whatever that leads to.
bool is_written_through(const std::filesystem::path& path);

// A name beside `path` for what is not whole yet or no more: ".NAME" and the suffix. Of a NAME that would make it
// longer than a name may be, the beginning and a checksum of all of it.
std::filesystem::path aside_path(const std::filesystem::path& path, std::string_view suffix);

// Whether AtomicFile writes to what this process has as stdout: /dev/stdout, /dev/fd/1, and links to them.
bool is_stdout(const std::filesystem::path& path);

// The name under which AtomicFile writes `path` before it is whole.
inline constexpr std::string_view kPartialSuffix = ".heddle-partial";
std::filesystem::path partial_path(const std::filesystem::path& path);

// Throws UsageError for a path with a NUL byte: the system would cut it there, and open another file.
void check_no_nul(const std::filesystem::path& path);

FileDigest write_file(const std::filesystem::path& path, std::string_view contents);
// Read a file, a pipe or a terminal to its end. Throw Error for a folder and for a device that never ends (/dev/zero);
// read_file() also for a pipe that gives more than `most_of_pipe` bytes (0: a quarter of the machine's memory), since
// it may never end.
std::string read_file(const std::filesystem::path& path, uint64_t most_of_pipe = 0);
FileDigest digest_file(const std::filesystem::path& path);
// What a stream still gives, as read_file() reads a pipe; `name` appears in errors.
std::string read_stream(std::istream& stream, const std::string& name, uint64_t most_bytes = 0);
// Throws Error for what is there and no regular file: "metrics.csv is a pipe, expected a file". Whoever opened a pipe
// would wait until somebody writes into it. What is not there is left to whoever opens it.
void check_regular_file(const std::filesystem::path& path);
// The same, then read_file().
std::string read_regular_file(const std::filesystem::path& path);
// Gives a file or folder its name; what had the name before is gone. It lasts when the folder is synced.
void rename_file(const std::filesystem::path& from, const std::filesystem::path& to);
// Makes renames and removals inside the folder last.
void sync_directory(const std::filesystem::path& path);

}  // namespace heddle
