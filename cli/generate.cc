// heddle generate RUN_OR_CHECKPOINT --prompt TEXT --tokens N
#include "trainers/model/generate.h"

#include <fmt/format.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "cli/command.h"
#include "cli/device.h"
#include "trainers/run/loaded_model.h"

namespace heddle::cli {
namespace {

struct Options {
  std::string path;
  std::string prompt = "\n";
  GenerateOptions generate;
  DeviceOptions device;
};

int run(const Options& options, const Registry& registry) {
  const auto context = open_device(options.device);
  const LoadedModel loaded = load_model(*context, options.path, {}, print_note, registry);
  check(loaded.config.data.type == DataType::text, "{}: its tokens are not bytes of text (data.type is not text)",
        loaded.checkpoint.path.string());
  Utf8Printer printer;
  const auto show = [](const std::string& text) {
    fmt::print("{}", text);
    std::fflush(stdout);
  };
  show(options.prompt);
  generate(*context, loaded.model, options.prompt, options.generate, [&](uint8_t byte) { show(printer.add(byte)); });
  show(printer.finish() + "\n");
  return kDone;
}

}  // namespace

Run add_generate(CLI::App& command, const Registry& registry) {
  auto options = std::make_shared<Options>();
  GenerateOptions& generate = options->generate;
  const CLI::Validator not_empty([](const std::string& text) { return text.empty() ? "the prompt is empty" : ""; },
                                 "TEXT");
  command.add_option("run", options->path, "Run folder (its newest whole checkpoint) or checkpoint")
      ->required()
      ->option_text("RUN_OR_CHECKPOINT");
  command.add_option("--prompt", options->prompt, "Text to go on from")
      ->check(not_empty)
      ->option_text("TEXT [newline]");
  command.add_option("--tokens", generate.tokens, "Bytes to write")
      ->check(CLI::NonNegativeNumber)
      ->option_text("N [200]");
  command.add_option("--temperature", generate.temperature, "0: always the likeliest")
      ->check(CLI::NonNegativeNumber)
      ->option_text("T [1]");
  command.add_option("--top-k", generate.top_k, "Draw from the K likeliest only; 0: from all")
      ->check(CLI::NonNegativeNumber)
      ->option_text("K [0]");
  command.add_option("--top-p", generate.top_p, "Draw from the likeliest that have probability P together")
      ->check(CLI::Range(0.0, 1.0))
      ->option_text("P [1]");
  command.add_option("--seed", generate.seed, "The same seed gives the same text")->option_text("S [1]");
  add_device_options(command, options->device);
  return [options, &registry] { return run(*options, registry); };
}

}  // namespace heddle::cli
