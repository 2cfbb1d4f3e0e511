// Room on the disk: how a full one is told from what else may fail, and whether there is enough before much is written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>
#include <system_error>

#include "core/runtime/error.h"

namespace heddle {

// The disk that a file is written to is full, or its user's quota is. It is the one failure of writing that passes by
// itself when somebody makes room.
class NoSpace : public Error {
 public:
  using Error::Error;
};

// Whether this error of the system says so.
bool is_no_space(const std::error_code& code);

// Throws NoSpace with both numbers unless the file system of `folder`, which must exist, has `bytes` bytes for an
// ordinary user. `what` is what needs them: "a checkpoint". A file system that does not say how large it is has room.
void check_room(const std::filesystem::path& folder, uint64_t bytes, std::string_view what);

}  // namespace heddle
