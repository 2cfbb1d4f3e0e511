#if defined(HEDDLE_ONEDNN)
#include "kernels/dense/cpu/one_thread.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <cstddef>
#include <fstream>
#include <new>

namespace heddle::kernels::cpu {
namespace {

// More than all code that oneDNN generates at one time.
constexpr size_t kCodeBytes = size_t{16} << 20;

// Whether the system refuses memory to this process: for a limit of its own, or since it grants no more than it has.
bool may_be_refused() {
  for (const auto resource : {RLIMIT_AS, RLIMIT_DATA}) {
    rlimit limit{};
    if (::getrlimit(resource, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) return true;
  }
  constexpr int kStrict = 2;
  int overcommit = 0;
  return std::ifstream("/proc/sys/vm/overcommit_memory") >> overcommit && overcommit == kStrict;
}

}  // namespace

void check_room_for_code() {
  static const bool is_limited = may_be_refused();
  if (!is_limited) return;
  void* const room = ::mmap(nullptr, kCodeBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (room == MAP_FAILED) throw std::bad_alloc();
  ::munmap(room, kCodeBytes);
}

}  // namespace heddle::kernels::cpu
#endif
