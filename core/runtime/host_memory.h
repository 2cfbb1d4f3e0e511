// How much memory this process may use on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace heddle {

// Bytes of the machine's memory and swap, or the limit of the process's control group where that is lower. The system
// grants more than that when it is asked, and ends the process when the memory is touched.
size_t host_memory_bytes();

// Throws OutOfMemory when `count` (at least 0) elements of `size` bytes are more than host_memory_bytes(): "out of
// memory on the host: WHAT would take 4096.0 GiB, the machine has 23.4 GiB". For host buffers whose sizes users choose.
// Memory of tensors needs no such check: the allocator makes it.
void check_host_memory(std::string_view what, std::int64_t count, size_t size);

}  // namespace heddle
