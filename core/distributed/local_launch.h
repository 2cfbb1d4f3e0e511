// The processes that `heddle train --gpus N` starts on its own host. docs/launching.md#one-host
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/distributed/supervisor.h"

namespace heddle {

// What a process that was started so has in its environment.
inline constexpr const char* kStartedByHeddle = "HEDDLE_STARTED_BY_HEDDLE";

// The same program with the same arguments once for each process, with the variables of torchrun and HEDDLE_TOKEN in
// its environment, beside what `environment` ("NAME=VALUE") has that says nothing of processes. They meet on the
// loopback interface.
std::vector<SupervisedCommand> local_commands(const std::vector<std::string>& arguments,
                                              const std::vector<std::string>& environment, int processes, uint16_t port,
                                              const std::string& token);

// 128 random bits of the system, in hexadecimal digits.
std::string random_token();
// The path of the program that runs, and the arguments that it was given.
std::vector<std::string> own_arguments();
std::vector<std::string> own_environment();

}  // namespace heddle
