#include "core/io/partial_lock.h"

#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "core/runtime/error.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;

// Whether the name still leads to what was opened under it.
bool is_named(int descriptor, const fs::path& name) {
  struct stat opened {};
  struct stat found {};
  return ::fstat(descriptor, &opened) == 0 && ::stat(name.c_str(), &found) == 0 && opened.st_dev == found.st_dev &&
         opened.st_ino == found.st_ino;
}

}  // namespace

int open_alone(const fs::path& partial, const fs::path& path, const std::function<int()>& open) {
  constexpr int kMostTries = 100;  // where a file system cannot tell one file from another
  for (int tries = 1;; ++tries) {
    const int descriptor = open();
    if (descriptor < 0) return descriptor;
    const bool is_locked = ::flock(descriptor, LOCK_EX | LOCK_NB) == 0;
    if (!is_locked && errno == EWOULDBLOCK) {
      ::close(descriptor);
      fail("cannot write {}: it is being written already", path.string());
    }
    // Its writer may have renamed or removed it before it was locked.
    if (!is_locked || is_named(descriptor, partial) || tries == kMostTries) return descriptor;
    ::close(descriptor);
  }
}

}  // namespace heddle
