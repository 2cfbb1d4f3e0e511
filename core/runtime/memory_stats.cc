#include "core/runtime/memory_stats.h"

#include <fmt/format.h>

#include <cstddef>
#include <iterator>
#include <string>
#include <string_view>

namespace heddle {

std::string format_bytes(size_t bytes) {
  if (bytes < 1024) return fmt::format("{} B", bytes);
  const char* const units[] = {"KiB", "MiB", "GiB", "TiB"};
  const char* const* unit = units;
  double size = static_cast<double>(bytes) / 1024;
  for (; size >= 1024 && unit != std::end(units) - 1; ++unit) size /= 1024;
  return fmt::format("{:.1f} {}", size, *unit);
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
