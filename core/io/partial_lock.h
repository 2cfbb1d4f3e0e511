// What is written aside, and will be renamed, has one writer at a time.
#pragma once

#include <filesystem>
#include <functional>

namespace heddle {

// The descriptor that `open` gives for what lies at `partial`, where another writer of `path` may put its own aside,
// and locked against those. The lock ends with the process that holds it, so what is there without one was left by a
// process that was killed. -1, and errno, when `open` returns that. Throws Error while another writer holds it. (File
// systems that know no locks do not tell.)
int open_alone(const std::filesystem::path& partial, const std::filesystem::path& path,
               const std::function<int()>& open);

}  // namespace heddle
