// heddle export RUN_OR_CHECKPOINT --out DIR
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/input_files.h"
#include "cli/manual.h"
#include "cli/option.h"
#include "cli/output_file.h"
#include "tools/export_model.h"
#include "trainers/run/checkpoint_config.h"
#include "trainers/shell_argument.h"

namespace heddle::cli {
namespace {

struct ExportArguments {
  std::string path;
  std::vector<std::string> overrides;
  size_t shard_bytes = ExportOptions{}.shard_bytes;
  ExportOptions exported;
};

int run(const ExportArguments& options, const Registry& registry) {
  ExportOptions exported = options.exported;
  exported.shard_bytes = options.shard_bytes;
  check_is_no_export(options.path);
  check_export_folder(exported.folder);
  check_is_apart_from_checkpoints("--out", exported.folder);
  const Checkpoint checkpoint = find_checkpoint(options.path, print_note);
  const TrainConfig config = read_checkpoint_config(checkpoint, options.overrides, registry);
  const std::vector<std::string> files = export_model(checkpoint, config, exported, registry);
  const std::string folder = exported.folder.string();
  fmt::print("{}: {}, of step {}\n", folder, fmt::join(files, ", "), checkpoint.state.step);
  if (exported.names == WeightNames::heddle) {
    fmt::print("python3 {} {} {}\n", shell_argument((exported.folder / kModelingFile).string()), shell_argument(folder),
               config.data.tokenizer ? "--prompt TEXT" : "--prompt-tokens 1,2,3");
  }
  return kDone;
}

}  // namespace

Run add_export(CLI::App& command, const Registry& registry) {
  auto options = std::make_shared<ExportArguments>();
  command.add_option("run", options->path, "Run folder (its newest whole checkpoint) or checkpoint")
      ->required()
      ->option_text("RUN_OR_CHECKPOINT");
  add_path(command, "--out", options->exported.folder, "Folder to write; an earlier export there is replaced")
      ->required()
      ->option_text("DIR");
  add_choice<WeightNames>(command, "--format", options->exported.names,
                          "hf: with modeling_heddle.py, which loads any model of heddle in PyTorch; fla: a retention "
                          "model for RetNetForCausalLM of flash-linear-attention",
                          {{"hf", WeightNames::heddle}, {"fla", WeightNames::retnet}})
      ->option_text("hf|fla [hf]");
  add_bytes(command, "--shard-size", options->shard_bytes, "Most bytes of weights in one file")
      ->option_text("SIZE [5GB]");
  add_number(command, "--logits", options->exported.logits,
             "Also write the logits of N random tokens, which `modeling_heddle.py DIR --check` compares with its own",
             Range::between(0, Range::count().high))
      ->option_text("N [0]");
  add_overrides(command, options->overrides, "model.mixer.eps=1.0e-6");
  set_manual(
      command,
      {.description =
           "Writes the weights of a trained model as safetensors with a config.json, as Hugging Face lays them out, "
           "and one "
           "Python file that loads the model in PyTorch and generates. The folder is there whole or not at all.",
       .examples = {{"heddle export runs/toy_kjv --out kjv --logits 200",
                     "then: python3 kjv/modeling_heddle.py kjv --check"},
                    {"heddle export runs/retnet --format fla --out retnet", "for RetNetForCausalLM.from_pretrained()"},
                    {"heddle train configs/toy_kjv.yaml --init-from kjv --out runs/again", "reads it back"}},
       .exit_codes = {},
       .page = "docs/export.md"});
  return [options, &registry] { return run(*options, registry); };
}

}  // namespace heddle::cli
