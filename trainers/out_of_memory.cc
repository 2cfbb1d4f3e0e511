#include "trainers/out_of_memory.h"

#include <fmt/format.h>

#include <exception>
#include <filesystem>
#include <string>

#include "core/io/atomic_file.h"
#include "core/io/memory_snapshot.h"

namespace heddle {

void fail_with_snapshot(const Context& context, const std::filesystem::path& folder, const OutOfMemory& error) {
  const std::filesystem::path path = folder / "out_of_memory.pickle";
  std::string written;
  try {
    std::filesystem::create_directories(folder);
    write_file(path, memory_snapshot(*context.shared_allocator()));
    written = fmt::format("snapshot written to {}", path.string());
  } catch (const std::exception& failure) {
    written = fmt::format("no snapshot: {}", failure.what());
  }
  throw OutOfMemory(fmt::format("{}; {}", error.what(), written));
}

}  // namespace heddle
