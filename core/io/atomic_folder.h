// Folders that are there whole or not at all, whatever happens while their files are written.
#pragma once

#include <filesystem>
#include <functional>
#include <string_view>

namespace heddle {

// Calls `fill` with a new hidden folder beside `path`, then gives that the name `path` and syncs the parent; a folder
// that had the name is removed. `fill` syncs what it writes, as AtomicFile does. When it throws, all that it wrote is
// removed and `path` stays as it was. The parent is made when it is missing. A second writer of a path that is still
// being written gets an Error; what a killed writer left aside is removed. Throws Error naming the folder, and
// std::filesystem::filesystem_error.
void write_folder(const std::filesystem::path& path, const std::function<void(const std::filesystem::path&)>& fill);

// Removes a folder with all it holds. It is renamed first, so that one of its name is never there in part.
void remove_folder(const std::filesystem::path& path);

// What remove_folder() renames a folder to: ".NAME" and the suffix.
inline constexpr std::string_view kRemovedSuffix = ".heddle-removed";

}  // namespace heddle
