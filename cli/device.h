// --device and --threads, for every subcommand that computes.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "core/runtime/context.h"

namespace heddle::cli {

struct DeviceOptions {
  std::string device = "auto";
  int threads = 0;
};

// `options` must live as long as the command.
void add_device_options(CLI::App& command, DeviceOptions& options);
// auto: the first GPU where there is one that works, the CPU elsewhere. Throws Error when the device is not there.
std::unique_ptr<Context> open_device(const DeviceOptions& options);

}  // namespace heddle::cli
