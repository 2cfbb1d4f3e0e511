#include "cli/launch.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <string>

#include "cli/command.h"
#include "cli/option.h"
#include "core/distributed/launch_variables.h"
#include "core/distributed/local_launch.h"
#include "core/distributed/socket.h"
#include "core/distributed/supervisor.h"
#include "core/runtime/backend.h"
#include "core/runtime/error.h"

namespace heddle::cli {
namespace {

constexpr int kMostGpus = 64;  // of one host

int gpus_here() {
#if defined(HEDDLE_CUDA)
  return cuda_device_count();
#else
  throw UsageError("--gpus: this heddle was built without CUDA");
#endif
}

// Throws UsageError when this host has fewer GPUs than are needed, by whatever says so.
void check_gpus(int needed, const std::string& by) {
  const int found = gpus_here();
  if (found >= needed) return;
  const bool is_hidden = std::getenv("CUDA_VISIBLE_DEVICES") != nullptr;
  throw UsageError(fmt::format("{} needs {} GPU{} on this host, found {}{}", by, needed, needed == 1 ? "" : "s", found,
                               is_hidden ? " (CUDA_VISIBLE_DEVICES is set)" : ""));
}

}  // namespace

CLI::Option* add_launch_options(CLI::App& command, LaunchOptions& options) {
  CLI::Option* const gpus = add_number(command, "--gpus", options.gpus,
                                       "Train on N GPUs of this host, with a process each, which this one starts",
                                       Range::between(1, kMostGpus))
                                ->option_text("N");
  add_number(command, "--rendezvous-timeout", options.rendezvous_seconds,
             "Seconds that processes with GPUs wait at the start until all are there", Range::between(1, 86400))
      ->option_text("SECONDS [300]");
  return gpus;
}

bool starts_processes(const LaunchOptions& options) {
  if (options.gpus == 0 || std::getenv(kStartedByHeddle) != nullptr) return false;
  const Launch launch = read_launch(DeviceType::cuda);
  if (launch.kind != Launch::Kind::alone) {
    throw UsageError(fmt::format(
        "--gpus starts all processes of this host by itself, and the environment says that this process was "
        "started as rank {} of {}: leave --gpus out",
        launch.rank, launch.world_size));
  }
  check_gpus(options.gpus, "--gpus");
  return options.gpus > 1;
}

int start_processes(const LaunchOptions& options) {
  const uint16_t port = port_of(listen_on("127.0.0.1", 0));
  return supervise(local_commands(own_arguments(), own_environment(), options.gpus, port, random_token()),
                   {.interrupted = kInterrupted});
}

int counted_processes(const TrainConfig& config, int64_t asked) {
  if (asked > 0) return static_cast<int>(asked);
  const auto& parallel = config.trainer.parallel;
  return parallel ? static_cast<int>(parallel->data.value_or(1)) : 1;
}

Launch launch_on(DeviceOptions& device) {
  const Launch launch = read_launch(device_of(device).type);
  if (launch.kind != Launch::Kind::nccl || (device.device != "auto" && device.device != "cuda")) return launch;
  check_gpus(launch.local_rank + 1,
             fmt::format("rank {}, which has the local rank {},", launch.rank, launch.local_rank));
  device.device = fmt::format("cuda:{}", launch.local_rank);
  return launch;
}

RendezvousOptions rendezvous_options(const LaunchOptions& options) {
  RendezvousOptions rendezvous;
  rendezvous.limit = std::chrono::milliseconds(static_cast<int64_t>(options.rendezvous_seconds * 1000));
  rendezvous.note = print_note;
  return rendezvous;
}

}  // namespace heddle::cli
