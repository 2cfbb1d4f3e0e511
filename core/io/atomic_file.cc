#include "core/io/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <system_error>
#include <vector>

#include "core/runtime/error.h"

namespace heddle {
namespace {

constexpr size_t kChunk = size_t{1} << 20;

[[noreturn]] void fail_errno(const char* action, const std::filesystem::path& path) {
  const int code = errno;
  fail("cannot {} {}: {}", action, path.string(), std::generic_category().message(code));
}

// Calls consume(data, bytes) for consecutive chunks of the file.
template <class Consume>
void read_chunks(const std::filesystem::path& path, const Consume& consume) {
  if (std::filesystem::is_directory(path)) fail("cannot read {}: it is a folder", path.string());
  std::ifstream file(path, std::ios::binary);
  if (!file) fail_errno("open", path);
  std::vector<char> buffer(kChunk);
  while (file) {
    file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    consume(buffer.data(), static_cast<size_t>(file.gcount()));
  }
  if (file.bad()) fail_errno("read", path);
}

}  // namespace

void extend(FileDigest& digest, const void* data, size_t bytes) {
  digest.crc32 = static_cast<uint32_t>(crc32_z(digest.crc32, static_cast<const Bytef*>(data), bytes));
  digest.bytes += bytes;
}

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  partial_ = path_.parent_path() / fmt::format(".{}.partial", path_.filename().string());
  descriptor_ = ::open(partial_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail_errno("create", partial_);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(partial_.c_str());
}

void AtomicFile::write(const void* data, size_t bytes) {
  extend(digest_, data, bytes);
  const char* position = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::write(descriptor_, position, bytes);
    if (written < 0) {
      if (errno == EINTR) continue;
      fail_errno("write", partial_);
    }
    position += written;
    bytes -= static_cast<size_t>(written);
  }
}

FileDigest AtomicFile::commit() {
  if (::fsync(descriptor_) != 0) fail_errno("sync", partial_);
  if (::rename(partial_.c_str(), path_.c_str()) != 0) fail_errno("rename into place", path_);
  ::close(descriptor_);
  descriptor_ = -1;
  sync_directory(path_.parent_path());
  return digest_;
}

FileDigest write_file(const std::filesystem::path& path, std::string_view contents) {
  AtomicFile file(path);
  file.write(contents.data(), contents.size());
  return file.commit();
}

std::string read_file(const std::filesystem::path& path) {
  std::string contents;
  read_chunks(path, [&](const char* data, size_t bytes) { contents.append(data, bytes); });
  return contents;
}

FileDigest digest_file(const std::filesystem::path& path) {
  FileDigest digest;
  read_chunks(path, [&](const char* data, size_t bytes) { extend(digest, data, bytes); });
  return digest;
}

void sync_directory(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.empty() ? std::filesystem::path(".") : path;
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail_errno("open", folder);
  const int result = ::fsync(descriptor);
  const int code = errno;
  ::close(descriptor);
  errno = code;
  // Some network file systems know no fsync of a folder; a rename is then as lasting as they make it.
  if (result != 0 && code != EINVAL && code != ENOTSUP) fail_errno("sync", folder);
}

}  // namespace heddle
