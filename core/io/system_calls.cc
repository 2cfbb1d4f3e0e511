#include "core/io/system_calls.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>

namespace heddle {

SystemCalls& system_calls() {
  static SystemCalls calls = {
      .open = [](const char* path, int flags, mode_t mode) { return ::open(path, flags, mode); },
      .write = ::write,
      .fsync = ::fsync,
      .rename = ::rename,
      .statvfs = ::statvfs,
  };
  return calls;
}

}  // namespace heddle
