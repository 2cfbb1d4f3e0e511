// The system calls of core/io, written down, made to fail or cut short while an object of this class lives.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/io/system_calls.h"

namespace heddle::testing {

class RecordedCalls {
 public:
  // Names are written down as they are seen from `root`.
  explicit RecordedCalls(std::filesystem::path root) : root_(std::move(root)) {
    SystemCalls& calls = system_calls();
    calls.open = [this](const char* path, int flags, mode_t mode) {
      if (!record("open " + name(path))) return -1;
      const int descriptor = real_.open(path, flags, mode);
      if (descriptor >= 0) paths_[descriptor] = name(path);
      return descriptor;
    };
    calls.write = [this](int descriptor, const void* data, size_t bytes) -> ssize_t {
      if (!record("write " + paths_[descriptor])) return -1;
      if (is_interrupted_ = interrupts && !is_interrupted_; is_interrupted_) {
        errno = EINTR;
        return -1;
      }
      return real_.write(descriptor, data, bytes < most_bytes ? bytes : most_bytes);
    };
    calls.fsync = [this](int descriptor) {
      if (!record("fsync " + paths_[descriptor])) return -1;
      return really_syncs ? real_.fsync(descriptor) : 0;
    };
    calls.rename = [this](const char* from, const char* to) {
      return record("rename " + name(from) + " to " + name(to)) ? real_.rename(from, to) : -1;
    };
    calls.statvfs = [this](const char* path, struct statvfs* found) {
      const int result = real_.statvfs(path, found);
      if (available != UINT64_MAX) {
        found->f_blocks = found->f_frsize = 1;
        found->f_bavail = available;
      }
      return result;
    };
  }
  ~RecordedCalls() { system_calls() = real_; }
  RecordedCalls(const RecordedCalls&) = delete;
  RecordedCalls& operator=(const RecordedCalls&) = delete;

  size_t fails_at = SIZE_MAX;       // the number of the call that fails, from 0
  bool fails_on = false;            // all calls after it fail, too
  int error = ENOSPC;               // its errno
  size_t most_bytes = SIZE_MAX;     // of one write
  bool interrupts = false;          // every other write, before it has written anything
  bool really_syncs = true;         // false: tests that save often need not wait for the disk
  uint64_t available = UINT64_MAX;  // bytes that the disk says it has room for; the largest number: what it really has

  size_t made = 0;                 // calls
  std::vector<std::string> calls;  // of several writes to one file in a row the first

 private:
  std::string name(const std::filesystem::path& path) const {
    return std::filesystem::absolute(path).lexically_normal().lexically_relative(root_).string();
  }
  bool record(const std::string& call) {
    if (calls.empty() || calls.back() != call || !call.starts_with("write ")) calls.push_back(call);
    const size_t number = made++;
    if (number != fails_at && !(fails_on && number > fails_at)) return true;
    errno = error;
    return false;
  }

  const SystemCalls real_ = system_calls();
  std::filesystem::path root_;
  std::map<int, std::string> paths_;
  bool is_interrupted_ = false;
};

// How many files this process has open.
inline size_t open_descriptors() {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

}  // namespace heddle::testing
