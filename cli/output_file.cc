#include "cli/output_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>

#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "core/runtime/message.h"
#include "trainers/run/checkpoint.h"
#include "trainers/run/run_folder.h"

namespace heddle::cli {
namespace {

namespace fs = std::filesystem;

void check_output_file(const NamedFile& output) {
  const auto& [name, path] = output;
  if (path.empty()) return;
  if (fs::is_directory(path)) throw UsageError(fmt::format("{}: {} is a folder", name, path.string()));
  if (is_written_through(path)) return;
  const fs::path file = follow_links(path);
  check_output_folder(name.c_str(), file.has_parent_path() ? file.parent_path() : fs::path("."));
}

}  // namespace

void check_output_folder(const char* option, const fs::path& folder) {
  if (!fs::is_directory(folder)) throw UsageError(fmt::format("{}: {} is no folder", option, folder.string()));
  if (::access(folder.c_str(), W_OK) == 0) return;
  throw UsageError(fmt::format("{}: {} cannot be written: {}", option, folder.string(), std::strerror(errno)));
}

void check_is_apart_from_checkpoints(const char* option, const fs::path& folder) {
  const auto refuse = [&](const std::string& found) {
    throw UsageError(fmt::format("{}: {} {}", option, folder.string(), found));
  };
  std::error_code unreadable;
  if (fs::is_directory(folder, unreadable) && !list_checkpoints(folder).empty()) {
    refuse("holds checkpoints itself; expected a folder of its own");
  }
  fs::path path = fs::weakly_canonical(folder, unreadable);
  if (unreadable) path = fs::absolute(folder).lexically_normal();
  for (; path.has_relative_path(); path = path.parent_path()) {
    const fs::path parent = path.parent_path();
    if (path.filename() == "checkpoints" && run_folder_of(parent / "config.yaml")) {
      refuse(
          fmt::format("is in {}, which is for the checkpoints of a run; expected a folder of its own", path.string()));
    }
    if (parent.filename() != "checkpoints" || !step_of_checkpoint(path.filename().string())) continue;
    if (!fs::exists(parent.parent_path() / "config.yaml", unreadable)) continue;  // no run writes there
    refuse(fmt::format("is in the checkpoint {}, and would be removed with it; expected a folder in no checkpoint",
                       path.string()));
  }
}

TableStream::TableStream(std::initializer_list<fs::path> outputs) {
  for (const fs::path& path : outputs) is_stdout_ = is_stdout_ && (path.empty() || !is_stdout(path));
}

void TableStream::print(const std::string& text) const {
  if (is_stdout_) {
    fmt::print("{}", text);
  } else {
    print_message(stderr, text);
  }
}

FileTable::FileTable(const NamedFiles& inputs) {
  for (const auto& [name, path] : inputs) {
    if (!path.empty()) files_.try_emplace(file_identity(path), name + ", which is read");
  }
}

void FileTable::check(const NamedFile& output) const {
  const auto& [name, path] = output;
  if (path.empty()) return;
  if (is_stdout(path) && !on_stdout_.empty()) {
    throw UsageError(fmt::format("{}: stdout is written by {}, too; expected a file", name, on_stdout_));
  }
  if (is_written_through(path)) return;
  const auto found = files_.find(file_identity(path));
  if (found == files_.end()) return;
  throw UsageError(fmt::format("{}: {} is {}; expected another file", name, path.string(), found->second));
}

void FileTable::take(const NamedFile& output) {
  check(output);
  const auto& [name, path] = output;
  if (path.empty()) return;
  if (is_stdout(path)) on_stdout_ = name;
  if (is_written_through(path)) return;
  files_.try_emplace(file_identity(path), "written by " + name + ", too");
}

void check_distinct_files(const NamedFiles& outputs, const NamedFiles& inputs) {
  FileTable table(inputs);
  for (const NamedFile& output : outputs) table.take(output);
}

void check_writable_files(const NamedFiles& outputs) {
  for (const NamedFile& output : outputs) check_output_file(output);
}

void check_output_files(const NamedFiles& outputs, const NamedFiles& inputs) {
  check_distinct_files(outputs, inputs);
  check_writable_files(outputs);
}

}  // namespace heddle::cli
