// How a process was started: alone, or as one of several that train together.                      docs/distributed.md
#pragma once

#include <cstdint>
#include <string>

namespace heddle {

struct Launch {
  enum class Kind { alone, mpi, nccl };
  Kind kind = Kind::alone;
  int rank = 0;  // of world_size processes
  int world_size = 1;
  int local_rank = 0;  // of the local_size processes on this host
  int local_size = 1;
  std::string master_addr;   // where process 0 listens: what NCCL needs to begin with
  uint16_t master_port = 0;  // 0: none
  std::string token;         // what the processes of this run show each other, and no others
};

}  // namespace heddle
