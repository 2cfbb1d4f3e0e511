#include "trainers/data/find_files.h"

#include <fmt/format.h>
#include <glob.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "core/runtime/error.h"

namespace heddle {
namespace {

std::string expand_home(const std::string& path) {
  const char* home = std::getenv("HOME");
  const bool is_in_home = path == "~" || path.starts_with("~/");
  return is_in_home && home != nullptr ? home + path.substr(1) : path;
}

std::vector<std::string> matches_of(const std::string& pattern) {
  std::vector<std::string> files;
  glob_t matches{};
  if (glob(pattern.c_str(), 0, nullptr, &matches) == 0) {
    files.assign(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
  }
  globfree(&matches);
  std::sort(files.begin(), files.end());
  return files;
}

namespace fs = std::filesystem;

// Where a relative name was looked for.
std::string current_folder() {
  std::error_code is_gone;
  const fs::path folder = fs::current_path(is_gone);
  return is_gone ? "the current folder, which is gone" : folder.string();
}

[[noreturn]] void fail_missing(const std::string& name) {
  const bool is_pattern = name.find_first_of("*?[") != std::string::npos;
  const std::string place = fs::path(name).is_absolute() ? "" : fmt::format(" (looked in {})", current_folder());
  const bool is_bible = fs::path(name).lexically_normal() == fs::path("data/kjv.txt");
  throw UsageError(fmt::format("found no file {}'{}'{}{}", is_pattern ? "that matches " : "", name, place,
                               is_bible ? "; `./dev setup` in the repository of heddle writes this text, and "
                                          "--set data.path=FILE takes any other"
                                        : ""));
}

}  // namespace

std::string find_file(const std::string& path) {
  const std::string name = expand_home(path);
  std::error_code ignored;
  if (!fs::exists(name, ignored)) fail_missing(name);
  check(!fs::is_directory(name, ignored), "{} is a folder, expected a file", name);
  return name;
}

std::vector<std::string> find_files(const std::string& path_or_pattern) {
  const std::string name = expand_home(path_or_pattern);
  std::error_code ignored;
  if (fs::exists(name, ignored)) return {name};
  std::vector<std::string> files = matches_of(name);
  if (files.empty()) fail_missing(name);
  return files;
}

}  // namespace heddle
