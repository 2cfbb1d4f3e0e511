#include "core/io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <string>
#include <system_error>
#include <utility>

#include "core/runtime/error.h"

namespace heddle {
namespace {

[[noreturn]] void fail_errno(const char* action, const std::filesystem::path& path) {
  const int code = errno;
  fail("cannot {} {}: {}", action, path.string(), std::generic_category().message(code));
}

// A file that is open for reading.
class Descriptor {
 public:
  explicit Descriptor(const std::filesystem::path& path) : value_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (value_ < 0) fail_errno("open", path);
  }
  ~Descriptor() { ::close(value_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int value() const { return value_; }

 private:
  int value_;
};

std::string read_to_end(int descriptor, const std::filesystem::path& path) {
  constexpr size_t kChunk = size_t{1} << 20;
  std::string contents;
  for (size_t size = 0;;) {
    contents.resize(size + kChunk);
    const ssize_t count = ::read(descriptor, contents.data() + size, kChunk);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_errno("read", path);
    size += static_cast<size_t>(count);
    contents.resize(size);
    if (count == 0) return contents;
  }
}

}  // namespace

MappedFile::MappedFile(std::filesystem::path path) : path_(std::move(path)) {
  const Descriptor file(path_);
  struct stat status {};
  if (::fstat(file.value(), &status) != 0) fail_errno("read", path_);
  if (S_ISDIR(status.st_mode)) fail("cannot read {}: it is a folder", path_.string());
  const auto size = static_cast<size_t>(status.st_size);
  if (S_ISREG(status.st_mode) && size > 0) {
    void* const start = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.value(), 0);
    if (start != MAP_FAILED) {
      owner_ = std::shared_ptr<const void>(start, [start, size](const void*) { ::munmap(start, size); });
      bytes_ = {static_cast<const char*>(start), size};
      is_mapped_ = true;
      return;
    }
  }
  const auto contents = std::make_shared<const std::string>(read_to_end(file.value(), path_));
  bytes_ = *contents;
  owner_ = contents;
}

void MappedFile::release(std::string_view part) const {
  if (!is_mapped_ || part.empty()) return;
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = static_cast<size_t>(part.data() - bytes_.data()) / page * page;
  const size_t end = static_cast<size_t>(part.data() - bytes_.data()) + part.size();
  ::madvise(const_cast<char*>(bytes_.data()) + begin, end - begin, MADV_DONTNEED);
}

}  // namespace heddle
