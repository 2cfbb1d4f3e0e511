// heddle run-layer SPEC.yaml --inputs IN.safetensors --outputs OUT.safetensors
#include <memory>
#include <optional>
#include <string>

#include "cli/command.h"
#include "cli/device.h"
#include "cli/dtype.h"
#include "tools/run_operator.h"

namespace heddle::cli {
namespace {

struct Options {
  std::string spec;
  std::string inputs;
  std::string outputs;
  std::optional<DType> dtype;
  DeviceOptions device;
};

int run(const Options& options, const Registry& registry) {
  const LayerSpec spec = load_layer_spec(options.spec, registry);
  const auto context = open_device(options.device);
  run_layer_files(*context, spec, options.inputs, options.outputs, options.dtype);
  return kDone;
}

}  // namespace

Run add_run_layer(CLI::App& command, const Registry& registry) {
  auto options = std::make_shared<Options>();
  command.add_option("spec", options->spec, "YAML file: layer: NAME, options: {...}")
      ->required()
      ->option_text("SPEC.yaml");
  command.add_option("--inputs", options->inputs, "Inputs and parameters by name; d_y and so on: run backward, too")
      ->required()
      ->option_text("IN.safetensors");
  command.add_option("--outputs", options->outputs, "Where the outputs and gradients go")
      ->required()
      ->option_text("OUT.safetensors");
  add_dtype_option(command, options->dtype, "Round the inputs to it and write the results in it");
  add_device_options(command, options->device);
  command.footer("The tensors of each layer, and how to compare with another framework: docs/run_layer.md.");
  return [options, &registry] { return run(*options, registry); };
}

}  // namespace heddle::cli
