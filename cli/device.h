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

// What a command does on its device. Counting is possible on meta, which has no data.
enum class DeviceUse { compute, count };

// `options` must live as long as the command, and hold its defaults.
void add_device_options(CLI::App& command, DeviceOptions& options, DeviceUse use = DeviceUse::compute);
// Which device the options mean; auto: meta for a command that only counts; else the first GPU where there is one, and
// the CPU elsewhere.
Device device_of(const DeviceOptions& options, DeviceUse use = DeviceUse::compute);
// Throws Error when the device is not there.
std::unique_ptr<Context> open_device(const DeviceOptions& options, DeviceUse use = DeviceUse::compute,
                                     const AllocatorOptions& allocator = {});

}  // namespace heddle::cli
