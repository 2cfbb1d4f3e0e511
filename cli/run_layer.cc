// heddle run-layer SPEC.yaml... --inputs IN.safetensors... --outputs OUT.safetensors...
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cli/command.h"
#include "cli/device.h"
#include "cli/dtype.h"
#include "cli/input_files.h"
#include "cli/manual.h"
#include "cli/option.h"
#include "core/runtime/error.h"
#include "tools/run_operator.h"

namespace heddle::cli {
namespace {

struct RunLayerArguments {
  std::vector<std::string> specs, inputs, outputs;  // one each a case
  std::optional<DType> dtype;
  DeviceOptions device;
};

// The cases one after another. One that fails is reported, and the others run all the same.
int run(const RunLayerArguments& options, const Registry& registry) {
  const size_t cases = options.specs.size();
  for (const auto& [name, files] : {std::pair{"--inputs", &options.inputs}, std::pair{"--outputs", &options.outputs}}) {
    if (files->size() == cases) continue;
    throw UsageError(fmt::format("{}: found {} file{} for {} spec{}, expected one each", name, files->size(),
                                 files->size() == 1 ? "" : "s", cases, cases == 1 ? "" : "s"));
  }
  NamedFiles inputs, outputs;
  for (const std::string& spec : options.specs) add_config_files(inputs, "a spec", spec);
  for (const std::string& file : options.inputs) inputs.push_back({"one of --inputs", file});
  for (const std::string& file : options.outputs) outputs.push_back({"--outputs", file});
  check_output_files(outputs, inputs);
  const auto context = open_device(options.device);
  int worst = kDone;
  for (size_t i = 0; i < cases; ++i) {
    const int code = report_errors([&] {
      const LayerSpec spec = load_layer_spec(options.specs[i], registry);
      run_layer_files(*context, spec, options.inputs[i], options.outputs[i], options.dtype);
      return kDone;
    });
    worst = std::max(worst, code);
  }
  return worst;
}

}  // namespace

Run add_run_layer(CLI::App& command, const Registry& registry) {
  auto options = std::make_shared<RunLayerArguments>();
  command.add_option("spec", options->specs, "YAML files: layer: NAME, options: {...}")
      ->required()
      ->option_text("SPEC.yaml...");
  add_path(command, "--inputs", options->inputs, "Inputs and parameters by name; d_y and so on: run backward, too")
      ->required()
      ->option_text("IN.safetensors...");
  add_path(command, "--outputs", options->outputs, "Where the outputs and gradients go; one file each a spec")
      ->required()
      ->option_text("OUT.safetensors...");
  add_dtype_option(command, options->dtype, "Round the inputs to it and write the results in it");
  add_device_options(command, options->device);
  set_manual(
      command,
      {.description = "Runs one operator on given tensors, forward and, where there are upstream gradients, backward. "
                      "Several specs run "
                      "one after another; one that fails is reported, and the others run all the same.",
       .examples = {{"heddle run-layer spec.yaml --inputs in.safetensors --outputs out.safetensors",
                     "as spec.yaml says"},
                    {"heddle run-layer spec.yaml --inputs in.safetensors --outputs out.safetensors --dtype bfloat16",
                     "rounded"}},
       .exit_codes = {},
       .page = "docs/run_layer.md, docs/layers.md"});
  return [options, &registry] { return run(*options, registry); };
}

}  // namespace heddle::cli
