#include "core/io/atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdio>
#include <fstream>
#include <ios>
#include <istream>
#include <limits>
#include <system_error>
#include <utility>
#include <vector>

#include "core/io/disk_space.h"
#include "core/io/partial_lock.h"
#include "core/io/system_calls.h"
#include "core/runtime/error.h"
#include "core/runtime/host_memory.h"
#include "core/runtime/memory_stats.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;

constexpr size_t kChunk = size_t{1} << 20;

[[noreturn]] void fail_errno(const char* action, const fs::path& path) {
  const std::error_code code(errno, std::generic_category());
  const std::string text = fmt::format("cannot {} {}: {}", action, path.string(), code.message());
  if (is_no_space(code)) throw NoSpace(text);
  throw Error(text);
}

void write_all(int descriptor, const void* data, size_t bytes, const fs::path& path) {
  const char* position = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = system_calls().write(descriptor, position, bytes);
    if (written < 0) {
      if (errno == EINTR) continue;
      fail_errno("write", path);
    }
    position += written;
    bytes -= static_cast<size_t>(written);
  }
}

// The descriptor that a path such as /dev/fd/3 or /proc/self/fd/3 names, else -1.
int descriptor_of(const fs::path& path) {
  const std::string folder = path.parent_path().string(), name = path.filename().string();
  if (folder != "/dev/fd" && folder != "/proc/self/fd" && folder != fmt::format("/proc/{}/fd", ::getpid())) return -1;
  int descriptor = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), descriptor);
  return error == std::errc() && end == name.data() + name.size() ? descriptor : -1;
}

// Throws Error for a device of which no memory holds all, such as /dev/zero and /dev/random. A terminal ends, and
// /dev/null is empty.
void check_has_end(const fs::path& path) {
  struct stat found {
  }, null{};
  if (::stat(path.c_str(), &found) != 0 || !S_ISCHR(found.st_mode)) return;
  if (::stat("/dev/null", &null) == 0 && null.st_rdev == found.st_rdev) return;
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_NOCTTY | O_CLOEXEC);
  if (descriptor < 0) return;  // whoever reads it says so
  const bool is_terminal = ::isatty(descriptor) != 0;
  ::close(descriptor);
  check(is_terminal, "cannot read {}: it is a device that never ends, expected a file", path.string());
}

std::ifstream open_to_read(const fs::path& path) {
  check_no_nul(path);
  std::error_code unreadable;  // what cannot be looked at cannot be opened
  if (fs::is_directory(path, unreadable)) fail("cannot read {}: it is a folder", path.string());
  check_has_end(path);
  std::ifstream file(path, std::ios::binary);
  if (!file) fail_errno("open", path);
  return file;
}

// Calls consume(data, bytes) for consecutive chunks of what a stream still gives.
template <class Consume>
void read_chunks(std::istream& stream, const fs::path& name, const Consume& consume) {
  std::vector<char> buffer(kChunk);
  while (stream) {
    stream.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    consume(buffer.data(), static_cast<size_t>(stream.gcount()));
  }
  if (stream.bad()) fail_errno("read", name);
}

// Opens an empty file that no other writer has open.
int open_partial(const fs::path& partial, const fs::path& path) {
  const int descriptor = open_alone(partial, path, [&] {
    return system_calls().open(partial.c_str(), O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
  });
  if (descriptor < 0) fail_errno("create", partial);
  if (::ftruncate(descriptor, 0) == 0) return descriptor;
  const int code = errno;
  ::close(descriptor);
  errno = code;
  fail_errno("empty", partial);
}

}  // namespace

void extend(FileDigest& digest, const void* data, size_t bytes) {
  digest.crc32 = static_cast<uint32_t>(crc32_z(digest.crc32, static_cast<const Bytef*>(data), bytes));
  digest.bytes += bytes;
}

void check_no_nul(const fs::path& path) {
  const std::string& name = path.native();
  const size_t at = name.find('\0');
  if (at == std::string::npos) return;
  throw UsageError(fmt::format("found a NUL byte in a path, behind '{}': no file has such a name", name.substr(0, at)));
}

fs::path follow_links(fs::path path) {
  check_no_nul(path);
  constexpr int kMostLinks = 40;
  for (int links = 0; fs::is_symlink(path) && descriptor_of(path) < 0; ++links) {
    check(links < kMostLinks, "cannot write {}: too many symbolic links", path.string());
    path = path.parent_path() / fs::read_symlink(path);  // an absolute target replaces all of it
  }
  return path;
}

bool is_written_through(const fs::path& path) {
  if (descriptor_of(follow_links(path)) >= 0) return true;
  return fs::exists(path) && !fs::is_regular_file(path) && !fs::is_directory(path);
}

bool is_stdout(const fs::path& path) { return descriptor_of(follow_links(path)) == STDOUT_FILENO; }

fs::path aside_path(const fs::path& path, std::string_view suffix) {
  constexpr size_t kLongestName = 255;  // bytes; of Linux and macOS
  constexpr size_t kMark = 1 + 8;
  std::string name = path.filename().string();
  if (1 + name.size() + suffix.size() > kLongestName && name.size() <= kLongestName) {
    FileDigest whole;
    extend(whole, name.data(), name.size());
    size_t kept = kLongestName - 1 - kMark - suffix.size();
    while (kept > 0 && (static_cast<unsigned char>(name[kept]) & 0xC0u) == 0x80u) --kept;  // not within a character
    name = fmt::format("{}~{:08x}", name.substr(0, kept), whole.crc32);
  }
  return path.parent_path() / fmt::format(".{}{}", name, suffix);
}

fs::path partial_path(const fs::path& path) { return aside_path(path, kPartialSuffix); }

AtomicFile::AtomicFile(fs::path path) : path_(follow_links(std::move(path))) {
  if (const int descriptor = descriptor_of(path_); descriptor >= 0) {
    std::fflush(descriptor == STDERR_FILENO ? stderr : stdout);  // what was said before comes first
    descriptor_ = ::fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
    if (descriptor_ < 0) fail_errno("write to", path_);
    return;
  }
  struct stat found {};
  const bool exists = ::stat(path_.c_str(), &found) == 0;
  if (exists && S_ISDIR(found.st_mode)) fail("cannot write {}: it is a folder", path_.string());
  if (exists && !S_ISREG(found.st_mode)) {
    descriptor_ = system_calls().open(path_.c_str(), O_WRONLY | O_CLOEXEC, 0);
    if (descriptor_ < 0) fail_errno("open", path_);
    return;
  }
  partial_ = partial_path(path_);
  descriptor_ = open_partial(partial_, path_);
  if (exists) ::fchmod(descriptor_, found.st_mode & 07777);  // where it cannot be done, the file is a new one's
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  if (!partial_.empty()) ::unlink(partial_.c_str());  // first, while it is locked: it cannot be another writer's
  ::close(descriptor_);
}

void AtomicFile::write(const void* data, size_t bytes) {
  extend(digest_, data, bytes);
  is_synced_ = false;
  write_all(descriptor_, data, bytes, partial_.empty() ? path_ : partial_);
}

void AtomicFile::overwrite(uint64_t offset, const void* data, size_t bytes) {
  check(!partial_.empty(), "cannot go back in {}: expected a regular file", path_.string());
  check(offset + bytes <= digest_.bytes, "cannot replace bytes {} to {} of {}, which has {}", offset, offset + bytes,
        path_.string(), digest_.bytes);
  if (::lseek(descriptor_, static_cast<off_t>(offset), SEEK_SET) < 0) fail_errno("seek in", partial_);
  write_all(descriptor_, data, bytes, partial_);
  if (::lseek(descriptor_, 0, SEEK_END) < 0) fail_errno("seek in", partial_);
  is_overwritten_ = true;
  is_synced_ = false;
}

void AtomicFile::sync() {
  if (partial_.empty() || is_synced_) return;
  if (system_calls().fsync(descriptor_) != 0) fail_errno("sync", partial_);
  is_synced_ = true;
}

FileDigest AtomicFile::commit() {
  if (is_overwritten_) digest_ = digest_file(partial_);
  sync();
  if (!partial_.empty()) rename_file(partial_, path_);
  ::close(std::exchange(descriptor_, -1));
  if (!partial_.empty()) sync_directory(path_.parent_path());
  return digest_;
}

AppendFile::AppendFile(fs::path path) : path_(std::move(path)) {
  check_no_nul(path_);
  descriptor_ = system_calls().open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail_errno("open", path_);
  try {
    sync_directory(path_.parent_path());
  } catch (...) {
    ::close(descriptor_);  // no destructor runs
    throw;
  }
}

AppendFile::~AppendFile() { ::close(descriptor_); }

void AppendFile::append(std::string_view text) {
  if (text.empty()) return;
  struct stat before {};
  const bool is_file = ::fstat(descriptor_, &before) == 0 && S_ISREG(before.st_mode);
  try {
    write_all(descriptor_, text.data(), text.size(), path_);
    if (system_calls().fsync(descriptor_) != 0 && errno != EINVAL) fail_errno("sync", path_);
  } catch (...) {  // where it cannot be cut off, a part stays
    [[maybe_unused]] const int ignored = is_file ? ::ftruncate(descriptor_, before.st_size) : 0;
    throw;
  }
}

FileDigest write_file(const fs::path& path, std::string_view contents) {
  AtomicFile file(path);
  file.write(contents.data(), contents.size());
  return file.commit();
}

std::string read_file(const fs::path& path, uint64_t most_of_pipe) {
  std::ifstream file = open_to_read(path);
  std::error_code unknown;
  const bool is_file = fs::is_regular_file(path, unknown);
  return read_stream(file, path.string(), is_file ? std::numeric_limits<uint64_t>::max() : most_of_pipe);
}

FileDigest digest_file(const fs::path& path) {
  std::ifstream file = open_to_read(path);
  FileDigest digest;
  read_chunks(file, path, [&](const char* data, size_t bytes) { extend(digest, data, bytes); });
  return digest;
}

// Of the memory only a quarter: a string that grows is copied into one of twice its size, beside the old one.
std::string read_stream(std::istream& stream, const std::string& name, uint64_t most_bytes) {
  const uint64_t most = most_bytes > 0 ? most_bytes : host_memory_bytes() / 4;
  std::string contents;
  read_chunks(stream, name, [&](const char* data, size_t bytes) {
    check(contents.size() + bytes <= most, "cannot read {}: it gives more than {} and may never end, expected a file",
          name, format_bytes(most));
    contents.append(data, bytes);
  });
  return contents;
}

void check_regular_file(const fs::path& path) {
  std::error_code unknown;
  const fs::file_status found = fs::status(path, unknown);
  if (!fs::exists(found) || fs::is_regular_file(found)) return;
  const char* kind = fs::is_directory(found) ? "folder" : fs::is_fifo(found) ? "pipe" : "device or a socket";
  fail("{} is a {}, expected a file", path.string(), kind);
}

std::string read_regular_file(const fs::path& path) {
  check_regular_file(path);
  return read_file(path);
}

void rename_file(const fs::path& from, const fs::path& to) {
  if (system_calls().rename(from.c_str(), to.c_str()) != 0) fail_errno("rename into place", to);
}

void sync_directory(const fs::path& path) {
  const fs::path folder = path.empty() ? fs::path(".") : path;
  const int descriptor = system_calls().open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  if (descriptor < 0) fail_errno("open", folder);
  const int result = system_calls().fsync(descriptor);
  const int code = errno;
  ::close(descriptor);
  errno = code;
  // Some network file systems know no fsync of a folder; a rename is then as lasting as they make it.
  if (result != 0 && code != EINVAL && code != ENOTSUP) fail_errno("sync", folder);
}

}  // namespace heddle
