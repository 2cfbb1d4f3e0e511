// A lock that gives a partial file or folder, which will be renamed, one writer at a time.
#pragma once

#include <filesystem>
#include <functional>

namespace heddle {

// Calls `open`, which opens the partial file or folder at `partial`, and locks the descriptor that it returns. Throws
// Error when another writer of `path` holds the lock. The lock ends with its process: what is there without a lock was
// left by a writer that was killed. Returns -1, with errno, when `open` does. On file systems without locks another
// writer is not noticed.
int open_alone(const std::filesystem::path& partial, const std::filesystem::path& path,
               const std::function<int()>& open);

}  // namespace heddle
