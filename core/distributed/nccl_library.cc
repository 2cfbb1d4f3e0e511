#include "core/distributed/nccl_library.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>
#include <string>

#include "core/runtime/error.h"

namespace heddle {
namespace {

void* open_library() {
  const char* chosen = std::getenv("HEDDLE_NCCL_LIBRARY");
  const std::string path = chosen != nullptr && *chosen != '\0' ? chosen : "libnccl.so.2";
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    fail(
        "several GPUs need NCCL, which cannot be opened: {}. Install it (package libnccl2 of NVIDIA, or "
        "nvidia-nccl-cu13 of "
        "Python), and name its folder in LD_LIBRARY_PATH or the file in HEDDLE_NCCL_LIBRARY",
        ::dlerror());
  }
  return library;
}

template <class Function>
void find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  heddle::check(function != nullptr, "this NCCL has no {}", name);
}

}  // namespace

NcclLibrary::NcclLibrary() {
  void* library = open_library();
  find(library, "ncclGetVersion", get_version);
  find(library, "ncclGetErrorString", get_error_string);
  find(library, "ncclGetLastError", get_last_error);
  find(library, "ncclGetUniqueId", get_unique_id);
  find(library, "ncclCommInitRank", comm_init_rank);
  find(library, "ncclCommDestroy", comm_destroy);
  find(library, "ncclCommAbort", comm_abort);
  find(library, "ncclCommGetAsyncError", comm_get_async_error);
  find(library, "ncclGroupStart", group_start);
  find(library, "ncclGroupEnd", group_end);
  find(library, "ncclAllReduce", all_reduce);
  find(library, "ncclReduceScatter", reduce_scatter);
  find(library, "ncclReduce", reduce);
  find(library, "ncclAllGather", all_gather);
  find(library, "ncclBroadcast", broadcast);
}

std::string NcclLibrary::version() const {
  int code = 0;
  check(get_version(&code), "ncclGetVersion");
  return fmt::format("{}.{}.{}", code / 10000, code / 100 % 100, code % 100);
}

void NcclLibrary::check(ncclResult_t result, const char* call) const {
  if (result == ncclSuccess) return;
  const char* last = get_last_error(nullptr);
  fail("{}: {}{}{} (NCCL_DEBUG=WARN in the environment says more)", call, get_error_string(result),
       last != nullptr && *last != '\0' ? ": " : "", last != nullptr ? last : "");
}

}  // namespace heddle
