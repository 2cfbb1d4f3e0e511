#include "include_dag.h"

#include <functional>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

bool is_cuda_header(const std::string& include) {
  static const std::regex cuda(R"((cuda|cublas|curand|nccl|nvtx|cooperative_groups|mma\.h|cub/|thrust/).*)");
  return std::regex_match(include, cuda);
}

// "cuda" for a file in kernels/FAMILY/cuda, "cpu" likewise; empty elsewhere.
std::string device_folder(const std::string& path) {
  static const std::regex pattern("kernels/[a-z_]+/(cpu|cuda)/.*");
  std::smatch match;
  return std::regex_match(path, match, pattern) ? match[1].str() : "";
}

// A folder below examples is a project of its own.
bool is_own_project(const std::string& path) {
  return path.starts_with("examples/") && path.find('/', std::string("examples/").size()) != std::string::npos;
}

bool may_include_cuda(const std::string& path) {
  if (is_own_project(path)) return true;
  if (path.starts_with("core/distributed/nccl_")) return true;
  return device_folder(path) == "cuda" || path == "core/runtime/cuda_device.cc" || path == "core/runtime/cuda_check.h";
}

// The code of one device belongs to its family; kernels/common/cpu and cuda serve the same device of every family.
bool is_private(const std::string& path, const std::string& include) {
  const std::string device = device_folder(include);
  if (device.empty()) return false;
  return !(include.starts_with("kernels/common/") && device_folder(path) == device);
}

std::string join(const std::set<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text.empty() ? "nothing" : text;
}

}  // namespace

IncludeDag::IncludeDag(std::istream& lines) {
  std::map<std::string, std::string> folder_by_name;
  std::map<std::string, std::vector<std::string>> depends_by_name;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string name;
    if (!(words >> name)) continue;
    words >> folder_by_name[name];
    for (std::string depends; words >> depends;) depends_by_name[name].push_back(depends);
  }
  for (const auto& [root, folder] : folder_by_name) {
    std::set<std::string>& below = below_[folder];
    const std::function<void(const std::string&)> visit = [&](const std::string& name) {
      for (const std::string& depends : depends_by_name[name]) {
        if (!folder_by_name.contains(depends)) throw std::runtime_error(name + " depends on unknown " + depends);
        if (below.insert(folder_by_name[depends]).second) visit(depends);
      }
    };
    visit(root);
  }
}

std::string IncludeDag::folder_of(const std::string& path) const {
  std::string found;  // the innermost: layers/ops/norm.h belongs to layers/ops, not to layers
  for (const auto& [folder, below] : below_) {
    if (path.starts_with(folder + "/") && folder.size() > found.size()) found = folder;
  }
  return found;
}

std::string IncludeDag::violation(const std::string& path, const std::string& include, bool quoted) const {
  if (is_cuda_header(include) && !may_include_cuda(path)) {
    return "CUDA headers belong under kernels/FAMILY/cuda, in core/runtime/cuda_device.cc and core/distributed/nccl_*";
  }
  if (!quoted) return "";
  const std::string from = folder_of(path);
  if (is_own_project(path) && include.find('/') == std::string::npos) return "";  // a header of its own
  const std::string prefix = from == "examples" ? "heddle/" : "";
  if (!include.starts_with(prefix)) return "is not written as " + prefix + "..., as a program outside heddle includes";
  const std::string to = folder_of(include.substr(prefix.size()));
  if (to.empty()) return "is not a path from the root of the repository to a folder that may be included";
  if (from == to) return "";
  const std::set<std::string>& below = below_.at(from);
  if (!below.contains(to)) return "runs up the include DAG: " + from + " may include from " + join(below);
  if (is_private(path, include.substr(prefix.size()))) return "is private to " + to;
  return "";
}

std::vector<std::string> IncludeDag::violations(const std::string& path, const std::string& text) const {
  static const std::regex include_line(R"(^\s*#\s*include\s*(["<])([^">]+)[">].*)");
  std::vector<std::string> messages;
  std::istringstream lines(text);
  int number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    std::smatch match;
    if (!std::regex_match(line, match, include_line)) continue;
    const std::string reason = violation(path, match[2], match[1] == "\"");
    if (!reason.empty()) {
      messages.push_back(path + ":" + std::to_string(number) + ": " + match[2].str() + " " + reason);
    }
  }
  return messages;
}
