#include "core/io/atomic_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "core/io/atomic_file.h"
#include "core/io/partial_lock.h"

namespace heddle {

namespace fs = std::filesystem;

namespace {

// The folder at `partial`, made where it is missing, which no other writer of `path` has as long as this lives.
class PartialFolder {
 public:
  PartialFolder(const fs::path& partial, const fs::path& path) {
    descriptor_ = open_alone(partial, path, [&] { return open_folder(partial); });
    if (descriptor_ < 0)
      throw fs::filesystem_error("cannot open", partial, std::error_code(errno, std::generic_category()));
  }
  ~PartialFolder() { ::close(descriptor_); }
  PartialFolder(const PartialFolder&) = delete;
  PartialFolder& operator=(const PartialFolder&) = delete;

 private:
  static int open_folder(const fs::path& partial) {
    constexpr int kMostTries = 100;  // another writer may rename its own between the two calls
    for (int tries = 1;; ++tries) {
      if (fs::exists(fs::symlink_status(partial)) && !fs::is_directory(partial)) {
        ::unlink(partial.c_str());  // a file or link, never the folder of another writer
      }
      fs::create_directory(partial);
      const int descriptor = ::open(partial.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
      if (descriptor >= 0 || errno != ENOENT || tries == kMostTries) return descriptor;
    }
  }

  int descriptor_ = -1;
};

}  // namespace

void write_folder(const fs::path& path, const std::function<void(const fs::path&)>& fill) {
  check_no_nul(path);
  const fs::path parent = path.parent_path(), partial = partial_path(path);
  if (!parent.empty() && fs::create_directories(parent)) sync_directory(parent.parent_path());
  const PartialFolder alone(partial, path);
  try {
    for (const fs::directory_entry& left : fs::directory_iterator(partial)) fs::remove_all(left.path());
    fill(partial);
    if (fs::exists(path)) remove_folder(path);
    rename_file(partial, path);
  } catch (...) {  // a full disk, most likely: its space is freed
    std::error_code ignored;
    fs::remove_all(partial, ignored);
    throw;
  }
  sync_directory(parent);
}

void remove_folder(const fs::path& path) {
  const fs::path aside = aside_path(path, kRemovedSuffix);
  fs::remove_all(aside);
  rename_file(path, aside);
  fs::remove_all(aside);
}

}  // namespace heddle
