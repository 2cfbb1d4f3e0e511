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
      return record("fsync " + paths_[descriptor]) ? real_.fsync(descriptor) : -1;
    };
    calls.rename = [this](const char* from, const char* to) {
      return record("rename " + name(from) + " to " + name(to)) ? real_.rename(from, to) : -1;
    };
  }
  ~RecordedCalls() { system_calls() = real_; }
  RecordedCalls(const RecordedCalls&) = delete;
  RecordedCalls& operator=(const RecordedCalls&) = delete;

  size_t fails_at = SIZE_MAX;    // the number of the call that fails, from 0
  int error = ENOSPC;            // its errno
  size_t most_bytes = SIZE_MAX;  // of one write
  bool interrupts = false;       // every other write, before it has written anything

  size_t made = 0;                 // calls
  std::vector<std::string> calls;  // of several writes to one file in a row the first

 private:
  std::string name(const std::filesystem::path& path) const {
    return std::filesystem::absolute(path).lexically_normal().lexically_relative(root_).string();
  }
  bool record(const std::string& call) {
    if (calls.empty() || calls.back() != call || !call.starts_with("write ")) calls.push_back(call);
    if (made++ != fails_at) return true;
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
