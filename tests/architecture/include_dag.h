// Which folder of the repository may include which, and what a source file does against it.
#pragma once

#include <istream>
#include <map>
#include <set>
#include <string>
#include <vector>

class IncludeDag {
 public:
  // Reads lines `NAME FOLDER NAMES...`: a library or program, its folder, and what it depends on directly.
  // Throws std::runtime_error for a name that no line defines.
  explicit IncludeDag(std::istream& lines);

  // Every folder with the folders it may include from: those it depends on, directly or not.
  const std::map<std::string, std::set<std::string>>& folders() const { return below_; }

  // One message for each #include in `text` that the file at `path` (from the root of the repository) must not have:
  // one of ours that is not written from the root (in examples: behind heddle/, as users write it), that runs up the
  // DAG or that is private to another folder, and a CUDA header outside kernels/FAMILY/cuda and
  // core/runtime/cuda_device.cc.
  std::vector<std::string> violations(const std::string& path, const std::string& text) const;

  // The innermost folder that holds the file; empty when it is in none.
  std::string folder_of(const std::string& path) const;

 private:
  std::string violation(const std::string& path, const std::string& include, bool quoted) const;  // empty when fine

  std::map<std::string, std::set<std::string>> below_;
};
