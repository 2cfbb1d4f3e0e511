#include "core/io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstddef>
#include <string>
#include <system_error>
#include <utility>

#include "core/io/atomic_file.h"

namespace heddle {
namespace {

// The mapping of a regular file that is not empty, or nullptr when there is none to be had.
void* map_file(const std::filesystem::path& path, size_t& size) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return nullptr;
  struct stat status {};
  void* start = MAP_FAILED;
  if (::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode) && status.st_size > 0) {
    size = static_cast<size_t>(status.st_size);
    start = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  }
  ::close(descriptor);
  return start == MAP_FAILED ? nullptr : start;
}

}  // namespace

// A pipe is opened once: a second reader would not get what the first has taken.
MappedFile::MappedFile(std::filesystem::path path) : path_(std::move(path)) {
  check_no_nul(path_);
  size_t size = 0;
  std::error_code unreadable;  // read_file() says so
  if (void* const start = std::filesystem::is_regular_file(path_, unreadable) ? map_file(path_, size) : nullptr) {
    owner_ = std::shared_ptr<const void>(start, [start, size](const void*) { ::munmap(start, size); });
    bytes_ = {static_cast<const char*>(start), size};
    is_mapped_ = true;
    return;
  }
  const auto contents = std::make_shared<const std::string>(read_file(path_));
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
