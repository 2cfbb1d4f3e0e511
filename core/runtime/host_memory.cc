#include "core/runtime/host_memory.h"

#include <sys/sysinfo.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "core/runtime/allocator.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;

constexpr size_t kUnlimited = std::numeric_limits<size_t>::max();

size_t machine_bytes() {
  struct sysinfo info {};
  if (sysinfo(&info) != 0) return kUnlimited;
  return (size_t{info.totalram} + info.totalswap) * info.mem_unit;
}

// The lowest number in a file of this name in the group's folder and in those above it, up to `root`. A group whose
// folder cannot be seen from inside a container has the limit of the root.
size_t lowest_limit(const fs::path& root, const std::string& group, const char* file) {
  size_t lowest = kUnlimited;
  for (fs::path path = fs::path(group).relative_path();; path = path.parent_path()) {
    std::ifstream stream(root / path / file);
    size_t limit = 0;
    if (stream >> limit) lowest = std::min(lowest, limit);  // "max" is no number
    if (path.empty()) return lowest;
  }
}

// Lines of /proc/self/cgroup are "0::/GROUP" of version 2, and "N:memory:/GROUP" of version 1.
size_t control_group_bytes() {
  size_t lowest = kUnlimited;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t controllers = line.find(':'), group = line.find(':', controllers + 1);
    if (group == std::string::npos) continue;
    const std::string name = line.substr(controllers + 1, group - controllers - 1);
    const std::string path = line.substr(group + 1);
    if (name.empty()) lowest = std::min(lowest, lowest_limit("/sys/fs/cgroup", path, "memory.max"));
    if (name == "memory") {
      lowest = std::min(lowest, lowest_limit("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes"));
    }
  }
  return lowest;
}

}  // namespace

size_t host_memory_bytes() {
  static const size_t bytes = std::min(machine_bytes(), control_group_bytes());
  return bytes;
}

void check_host_memory(std::string_view what, std::int64_t count, size_t size) {
  const size_t there = host_memory_bytes(), wanted = static_cast<size_t>(count);
  if (wanted <= there / size) return;
  const size_t bytes = wanted > kUnlimited / size ? kUnlimited : wanted * size;
  throw OutOfMemory(fmt::format("out of memory on the host: {} would take {}, the machine has {}", what,
                                format_bytes(bytes), format_bytes(there)));
}

}  // namespace heddle
