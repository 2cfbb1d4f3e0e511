// The algorithms of matrix products that trainer.search_gemm found on this machine, in a file for all runs to come.
#pragma once

#include <cstddef>
#include <filesystem>

#include "core/runtime/context.h"
#include "trainers/logging/note.h"

namespace heddle {

// heddle/gemm_algorithms.txt in $XDG_CACHE_HOME or else ~/.cache; empty when the environment names neither.
std::filesystem::path gemm_cache_file();

// Lines `PROBLEM ALGORITHM`, as kernels/dense/gemm_algorithms.h says them; others are left out. Several processes may
// use one file at a time. A file that cannot be read or written costs a note, never the run.
class GemmCache {
 public:
  // From now on the context searches, and knows what the file does. An empty path: nothing is kept.
  GemmCache(Context& context, std::filesystem::path file, const Note& note);
  // Adds to the file what was found since. What another process has written meanwhile stays.
  void save();

 private:
  Context& context_;
  std::filesystem::path file_;
  Note note_;
  size_t saved_ = 0;  // entries that are in the file
};

}  // namespace heddle
