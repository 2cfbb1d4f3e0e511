// Whether all processes are about to train the same.                                       docs/distributed.md#errors
#pragma once

#include <string>

#include "trainers/parallel/processes.h"

namespace heddle {

// What has to be the same on all processes.
struct RunIdentity {
  std::string program;  // "heddle 0.1.0"
  std::string config;   // resolved, YAML
  std::string data;     // what tells the data and the vocabulary from others
  std::string device;   // "cpu", "cuda"
};

// Collective. Throws UsageError, on all processes, that names each difference from the first process: of configs key by
// key.
void check_same_run(Processes& processes, const RunIdentity& mine);

}  // namespace heddle
