#include "cli/build_info.h"

#include <fmt/format.h>

namespace heddle::cli {

BuildInfo build_info() {
  BuildInfo build;
#if defined(__clang__)
  build.compiler = "clang " __clang_version__;
#else
  build.compiler = "g++ " __VERSION__;
#endif
#if defined(HEDDLE_STD_THREADS)
  build.threads = "std::thread";
#else
  build.threads = "OpenMP";
#endif
  build.instruction_sets = "baseline";
#if defined(__AVX2__)
  build.instruction_sets += ", AVX2";
#endif
#if defined(__AVX512F__)
  build.instruction_sets += ", AVX-512";
#endif
#if defined(HEDDLE_CUDA)
  build.cuda = true;
#endif
  build.libraries = HEDDLE_LIBRARY_VERSIONS;
  return build;
}

std::string version_text() {
  const BuildInfo build = build_info();
  return fmt::format("heddle {}\nbuilt by {}, {}, {} CUDA, instructions: {}", HEDDLE_VERSION, build.compiler,
                     build.threads, build.cuda ? "with" : "without", build.instruction_sets);
}

}  // namespace heddle::cli
