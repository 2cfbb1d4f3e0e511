// How one of several processes with GPUs was started, for tests that start them by hand.
#pragma once

#include <cstdint>
#include <string>

#include "core/distributed/launch.h"

namespace heddle::testing {

inline Launch launch_of(int rank, int world_size, uint16_t port, const std::string& token = "token") {
  Launch launch;
  launch.kind = Launch::Kind::nccl;
  launch.rank = launch.local_rank = rank;
  launch.world_size = launch.local_size = world_size;
  launch.master_addr = "127.0.0.1";
  launch.master_port = port;
  launch.token = token;
  return launch;
}

}  // namespace heddle::testing
