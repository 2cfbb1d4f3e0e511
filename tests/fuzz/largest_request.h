// The most memory that was asked for at once by `new`, in bytes. Set it to 0 to begin anew.
#pragma once

#include <atomic>
#include <cstddef>

namespace heddle::fuzz {

extern std::atomic<std::size_t> largest_request;

}  // namespace heddle::fuzz
