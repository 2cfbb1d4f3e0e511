#include "core/runtime/memory_stats.h"

#include <fmt/format.h>

#include <cstddef>
#include <string>
#include <string_view>

namespace heddle {

std::string format_bytes(size_t bytes) {
  constexpr size_t kMiB = size_t{1} << 20;
  if (bytes >= kMiB * 1024) return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / (1024.0 * kMiB));
  if (bytes >= kMiB) return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / kMiB);
  return fmt::format("{:.1f} KiB", static_cast<double>(bytes) / 1024.0);
}

std::string_view name(MemoryCategory category) {
  constexpr std::string_view names[] = {"parameter", "gradient", "optimizer", "activation",
                                        "workspace", "cache",    "data",      "other"};
  return names[static_cast<int>(category)];
}

std::string_view name(MemoryAction action) {
  constexpr std::string_view names[] = {
      "allocate", "free", "free_requested", "free_completed", "device_allocate", "device_free", "out_of_memory",
      "scope",    "mark"};
  return names[static_cast<int>(action)];
}

}  // namespace heddle
