#include "core/io/disk_space.h"

#include <fmt/format.h>

#include <cerrno>

#include "core/io/system_calls.h"

namespace heddle {

bool is_no_space(const std::error_code& code) {
  return code == std::errc::no_space_on_device || code == std::error_condition(EDQUOT, std::generic_category());
}

void check_room(const std::filesystem::path& folder, uint64_t bytes, std::string_view what) {
  struct statvfs found {};
  if (system_calls().statvfs(folder.c_str(), &found) != 0 || found.f_blocks == 0) return;
  const uint64_t available = static_cast<uint64_t>(found.f_bavail) * found.f_frsize;
  if (available >= bytes) return;
  throw NoSpace(fmt::format("no room for {} in {}: {} bytes are needed, {} are available", what, folder.string(), bytes,
                            available));
}

}  // namespace heddle
