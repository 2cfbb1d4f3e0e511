// What a run leaves behind when its device has no room left.                                        docs/memory.md
#pragma once

#include <filesystem>

#include "core/runtime/context.h"

namespace heddle {

// Writes a snapshot of the allocator and its last events to `folder`/out_of_memory.pickle (core/io/memory_snapshot.h)
// and throws the error with the name of the file, or with the reason why there is none.
[[noreturn]] void fail_with_snapshot(const Context& context, const std::filesystem::path& folder,
                                     const OutOfMemory& error);

}  // namespace heddle
