#include "cli/device.h"

#include "core/runtime/error.h"

namespace heddle::cli {
namespace {

std::string check_device(const std::string& text) {
  if (text == "auto") return "";
  try {
    const Device device = parse_device(text);
    return device.type == DeviceType::meta ? "expected auto, cpu, cuda or cuda:INDEX" : "";
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace

void add_device_options(CLI::App& command, DeviceOptions& options) {
  command.add_option("--device", options.device, "auto, cpu, cuda or cuda:INDEX; auto: a GPU where there is one")
      ->check(CLI::Validator(check_device, "DEVICE"))
      ->option_text("DEVICE [auto]");
  command.add_option("--threads", options.threads, "CPU threads; 0: all. Results do not depend on it")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N [0]");
}

std::unique_ptr<Context> open_device(const DeviceOptions& options) {
  ContextOptions context;
  context.threads = options.threads;
  if (options.device != "auto") return std::make_unique<Context>(parse_device(options.device), context);
#if defined(HEDDLE_CUDA)
  try {
    return std::make_unique<Context>(Device{DeviceType::cuda, 0}, context);
  } catch (const Error&) {  // no GPU here, or no driver
  }
#endif
  return std::make_unique<Context>(Device{DeviceType::cpu}, context);
}

}  // namespace heddle::cli
