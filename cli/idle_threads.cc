#include "cli/idle_threads.h"

#include <sys/auxv.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace heddle::cli {

void limit_spinning_of_idle_threads([[maybe_unused]] char** argv) {
#if defined(_OPENMP)
  constexpr const char* kSpinCount = "GOMP_SPINCOUNT";
  if (std::getenv(kSpinCount) != nullptr || std::getenv("OMP_WAIT_POLICY") != nullptr) return;
  if (::getauxval(AT_BASE) == 0) return;  // started by the dynamic loader as its argument, which would be started again
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error || ::setenv(kSpinCount, "10000", 1) != 0) return;
  ::execv(program.c_str(), argv);
  ::unsetenv(kSpinCount);  // it could not be started
#endif
}

}  // namespace heddle::cli
