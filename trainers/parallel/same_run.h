// Whether all processes are about to train the same.                                       docs/distributed.md#errors
#pragma once

#include <cstdint>
#include <string>

#include "core/autograd/parameter.h"
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

// Collective. Throws UsageError, on all processes, when one of them would start at another step or from other weights
// than the first process: with files of the same name that are not the same on all hosts. Weights are compared by a
// CRC-32 of their bytes.
void check_same_start(Processes& processes, Context& context, int64_t step, const ParameterSet& parameters);

}  // namespace heddle
