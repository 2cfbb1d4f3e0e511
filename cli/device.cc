#include "cli/device.h"

#include "cli/option.h"
#include "core/runtime/error.h"

namespace heddle::cli {
namespace {

const char* devices_for(DeviceUse use) {
  return use == DeviceUse::compute ? "auto, cpu, cuda or cuda:INDEX" : "auto, cpu, cuda, cuda:INDEX or meta";
}

std::string check_device(const std::string& text, DeviceUse use) {
  if (text == "auto") return "";
  try {
    const bool is_meta = parse_device(text).type == DeviceType::meta;
    return is_meta && use == DeviceUse::compute ? fmt::format("meta holds no data: expected {}", devices_for(use)) : "";
  } catch (const Error&) {
    return fmt::format("unknown device '{}', expected {}", text, devices_for(use));
  }
}

}  // namespace

void add_device_options(CLI::App& command, DeviceOptions& options, DeviceUse use) {
  const char* const meaning = use == DeviceUse::compute ? "auto: a GPU where there is one"
                                                        : "meta counts without data; auto: meta where only memory is "
                                                          "asked for, else a GPU where there is one";
  command.add_option("--device", options.device, fmt::format("{}; {}", devices_for(use), meaning))
      ->check(CLI::Validator([use](const std::string& text) { return check_device(text, use); }, "DEVICE"))
      ->option_text("DEVICE [auto]");
  const std::string threads = fmt::format("CPU threads, at most {}; 0: all. Results do not depend on it", kMostThreads);
  add_number(command, "--threads", options.threads, threads, Range::between(0, kMostThreads))
      ->option_text(fmt::format("N [{}]", options.threads));
}

Device device_of(const DeviceOptions& options, DeviceUse use) {
  const bool counts = use == DeviceUse::count && options.device == "auto";
  return counts ? Device{DeviceType::meta} : resolve_device(options.device);
}

std::unique_ptr<Context> open_device(const DeviceOptions& options, DeviceUse use, const AllocatorOptions& allocator) {
  return std::make_unique<Context>(device_of(options, use),
                                   ContextOptions{.threads = options.threads, .allocator = allocator});
}

}  // namespace heddle::cli
