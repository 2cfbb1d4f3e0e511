// --gpus and --rendezvous-timeout, and what the environment says of several processes.              docs/distributed.md
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>

#include "cli/device.h"
#include "core/distributed/launch.h"
#include "core/distributed/rendezvous.h"
#include "trainers/train_config.h"

namespace heddle::cli {

struct LaunchOptions {
  int gpus = 0;  // 0: this process starts no others
  double rendezvous_seconds = 300;
};

// Returns the option --gpus. `options` must live as long as the command.
CLI::Option* add_launch_options(CLI::App& command, LaunchOptions& options);

// Whether this process is to start those of --gpus, instead of training itself. Throws UsageError when another launcher
// has already started several.
bool starts_processes(const LaunchOptions& options);
// Starts this program again once for each of the GPUs, which must be there, waits for all of them, and returns the exit
// code of the run. The caller has no other threads and no open device.
int start_processes(const LaunchOptions& options);

// For how many processes a command that trains nothing counts: `asked`, or where that is 0 what the config says.
int counted_processes(const TrainConfig& config, int64_t asked);

// How this process was started, on the kind of device that `device` means. The GPU of a process of several is then that
// of its local rank, where `device` names none.
Launch launch_on(DeviceOptions& device);

// How long processes wait for each other; what they wait for is told on stderr.
RendezvousOptions rendezvous_options(const LaunchOptions& options);

}  // namespace heddle::cli
