// The functions of libnccl.so.2, which is opened when a run needs it, so that heddle runs on machines without it.
#pragma once

#include <nccl.h>

#include <string>

namespace heddle {

struct NcclLibrary {
  // Opens it. Throws Error that says how to get it when it is not there.
  NcclLibrary();

  // "2.28.9".
  std::string version() const;
  // Throws Error unless `result` is success.
  void check(ncclResult_t result, const char* call) const;

  decltype(&ncclGetVersion) get_version;
  decltype(&ncclGetErrorString) get_error_string;
  decltype(&ncclGetLastError) get_last_error;
  decltype(&ncclGetUniqueId) get_unique_id;
  decltype(&ncclCommInitRank) comm_init_rank;
  decltype(&ncclCommDestroy) comm_destroy;
  decltype(&ncclCommAbort) comm_abort;
  decltype(&ncclCommGetAsyncError) comm_get_async_error;
  decltype(&ncclGroupStart) group_start;
  decltype(&ncclGroupEnd) group_end;
  decltype(&ncclAllReduce) all_reduce;
  decltype(&ncclReduceScatter) reduce_scatter;
  decltype(&ncclReduce) reduce;
  decltype(&ncclAllGather) all_gather;
  decltype(&ncclBroadcast) broadcast;
};

}  // namespace heddle
