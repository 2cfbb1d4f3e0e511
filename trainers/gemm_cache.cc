#include "trainers/gemm_cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdlib>
#include <exception>
#include <map>
#include <sstream>
#include <string>
#include <utility>

#include "core/io/atomic_file.h"
#include "kernels/dense/gemm_algorithms.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using Entries = std::map<std::string, std::string>;

Entries read_entries(const fs::path& file) {
  Entries entries;
  if (!fs::exists(file)) return entries;
  std::istringstream lines(read_regular_file(file));
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string problem, algorithm, rest;
    if (words >> problem >> algorithm && !(words >> rest)) entries[problem] = algorithm;
  }
  return entries;
}

// Only one process at a time holds the folder; file systems that know no locks give none.
class FolderLock {
 public:
  explicit FolderLock(const fs::path& folder)
      : descriptor_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    if (descriptor_ >= 0) ::flock(descriptor_, LOCK_EX);
  }
  ~FolderLock() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int descriptor_;
};

Entries& known(Context& context) { return context.resource<kernels::GemmAlgorithms>().known; }

}  // namespace

fs::path gemm_cache_file() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  fs::path folder;
  if (cache != nullptr && fs::path(cache).is_absolute()) {
    folder = cache;
  } else if (home != nullptr && *home != '\0') {
    folder = fs::path(home) / ".cache";
  }
  return folder.empty() ? folder : folder / "heddle" / "gemm_algorithms.txt";
}

GemmCache::GemmCache(Context& context, fs::path file, const Note& note)
    : context_(context), file_(std::move(file)), note_(note) {
  context.resource<kernels::GemmAlgorithms>().search = true;
  if (file_.empty()) return;
  try {
    known(context) = read_entries(file_);
  } catch (const std::exception& error) {
    note_(fmt::format("the algorithms of matrix products are found anew: {}", error.what()));
  }
  saved_ = known(context).size();
}

void GemmCache::save() {
  if (file_.empty() || known(context_).size() == saved_) return;
  saved_ = known(context_).size();
  try {
    fs::create_directories(file_.parent_path());
    const FolderLock lock(file_.parent_path());
    Entries entries = read_entries(file_);
    entries.insert(known(context_).begin(), known(context_).end());
    std::string text;
    for (const auto& [problem, algorithm] : entries) text += fmt::format("{} {}\n", problem, algorithm);
    write_file(file_, text);
  } catch (const std::exception& error) {
    note_(fmt::format("the algorithms of matrix products are not kept: {}", error.what()));
  }
}

}  // namespace heddle
