// The system calls on which it depends whether a file is there whole, whatever ends the process or the machine. Tests
// put others in their place, to see their order and to let them fail.
#pragma once

#include <sys/statvfs.h>
#include <sys/types.h>

#include <cstddef>
#include <functional>

namespace heddle {

// Each does and returns what POSIX says of its namesake.
struct SystemCalls {
  std::function<int(const char* path, int flags, mode_t mode)> open;
  std::function<ssize_t(int descriptor, const void* data, size_t bytes)> write;
  std::function<int(int descriptor)> fsync;
  std::function<int(const char* from, const char* to)> rename;
  std::function<int(const char* path, struct statvfs* found)> statvfs;
};

// Those that write files and checkpoints. May be changed while no other thread writes any.
SystemCalls& system_calls();

}  // namespace heddle
