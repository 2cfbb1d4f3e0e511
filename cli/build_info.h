// How the program was built.
#pragma once

#include <string>

namespace heddle::cli {

struct BuildInfo {
  std::string compiler;          // "g++ 12.2.0"
  std::string threads;           // "OpenMP" or "std::thread"
  std::string instruction_sets;  // "baseline, AVX2, AVX-512": what the compiler was allowed to use
  bool cuda = false;
  std::string libraries;  // "Eigen 3.4.0, fmt 9.1.0, ..."
};

BuildInfo build_info();

// What `heddle --version` prints, two lines: the version, and the above without the libraries.
std::string version_text();

}  // namespace heddle::cli
