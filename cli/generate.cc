// heddle generate RUN_OR_CHECKPOINT --prompt TEXT --tokens N
#include "trainers/model/generate.h"

#include <fmt/format.h>

#include <cstdint>
#include <cstdio>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "cli/command.h"
#include "cli/device.h"
#include "cli/input_files.h"
#include "cli/manual.h"
#include "cli/option.h"
#include "cli/standard_streams.h"
#include "core/config/config_scalar.h"
#include "core/io/atomic_file.h"
#include "trainers/run/loaded_model.h"

namespace heddle::cli {
namespace {

struct GenerateArguments {
  std::string path;
  std::optional<std::string> prompt, prompt_file, prompt_tokens;  // at most one of them
  int64_t samples = 1;
  GenerateOptions generate;
  DeviceOptions device;
};

void show(const std::string& text) {
  fmt::print("{}", text);
  finish_stdout();  // nobody may be there to read on
}

// What the model goes on from, and the option that gave it.
struct Prompt {
  const char* option;
  std::string text;
};

std::string read_prompt_file(const std::string& path) {
  try {
    return path == "-" ? read_stream(std::cin, "stdin") : read_file(path);
  } catch (const Error& error) {
    throw UsageError(fmt::format("--prompt-file: {}", error.what()));
  }
}

// An empty prompt begins a document.
std::optional<Prompt> read_prompt(const GenerateArguments& options) {
  std::optional<Prompt> prompt;
  if (options.prompt) prompt = {"--prompt", *options.prompt};
  if (options.prompt_file) prompt = {"--prompt-file", read_prompt_file(*options.prompt_file)};
  if (options.prompt_tokens) prompt = {"--prompt-tokens", *options.prompt_tokens};
  if (prompt && prompt->text.empty() && !options.generate.end) {
    throw UsageError(fmt::format("{}: the prompt is empty", prompt->option));
  }
  return prompt;
}

// "1, 2 3" as ids. A comma has one on both sides.
std::vector<int32_t> parse_ids(const Prompt& prompt, int64_t vocab_size) {
  constexpr const char* kExample = ", as in 1,2,3";
  const auto parse_id = [&](const std::string& word) {
    const int64_t id = number_of<int64_t>(word).value_or(-1);
    if (id >= 0 && id < vocab_size) return static_cast<int32_t>(id);
    throw UsageError(fmt::format("{}: found '{}', expected token ids in [0, {}) without leading zeros{}", prompt.option,
                                 word, vocab_size, kExample));
  };
  std::vector<int32_t> ids;
  if (prompt.text.empty()) return ids;
  for (const std::string& part : split_at_commas(prompt.text)) {
    std::istringstream words(part);
    const size_t before = ids.size();
    for (std::string word; words >> word;) ids.push_back(parse_id(word));
    if (ids.size() == before) {
      throw UsageError(fmt::format("{}: found no token id, expected some{}", prompt.option, kExample));
    }
  }
  return ids;
}

// Writes one sample with these options.
using Sampler = std::function<void(const GenerateOptions&)>;

Sampler text_sampler(Context& context, const LanguageModel& model, const GenerateArguments& options,
                     std::shared_ptr<const Tokenizer> tokenizer) {
  if (options.prompt_tokens) {
    const char* const what = tokenizer->file() ? "text" : "bytes of text";
    throw UsageError(fmt::format("--prompt-tokens: this model reads {}, expected --prompt TEXT", what));
  }
  const std::optional<Prompt> given = read_prompt(options);
  const std::string prompt = given ? given->text : options.generate.end ? "" : "\n";
  return [&context, &model, tokenizer = std::move(tokenizer), prompt](const GenerateOptions& sample) {
    Utf8Printer printer;
    show(printer.add(prompt));
    generate(context, model, *tokenizer, prompt, sample, [&](uint8_t byte) { show(printer.add(byte)); });
    show(printer.finish() + "\n");
  };
}

Sampler id_sampler(Context& context, const LanguageModel& model, const GenerateArguments& options) {
  const std::optional<Prompt> given = read_prompt(options);
  if (!given && !options.generate.end)
    throw UsageError("the tokens of this model are no text: expected ids to go on from, --prompt-tokens 1,2,3");
  if (!options.generate.stop.empty()) throw UsageError("--stop: this model writes token ids, which are no text");
  const std::vector<int32_t> ids = given ? parse_ids(*given, model.vocab_size()) : std::vector<int32_t>{};
  return [&context, &model, ids](const GenerateOptions& sample) {
    show(fmt::format("{}", fmt::join(ids, " ")));
    const char* space = ids.empty() ? "" : " ";
    generate_tokens(context, model, ids, sample, model.vocab_size(), [&](int32_t token) {
      show(fmt::format("{}{}", std::exchange(space, " "), token));
      return true;
    });
    show("\n");
  };
}

int run(GenerateArguments options, const Registry& registry) {
  const auto context = open_device(options.device);
  check_is_no_export(options.path);
  const LoadedModel loaded = load_model(*context, options.path, {}, print_note, registry);
  if (const auto length = fixed_length(loaded.config.model)) {
    throw Error(
        fmt::format("{}: its mixer takes sequences of {} tokens alone (lrpe.shape), so that no text can be "
                    "continued",
                    options.path, *length));
  }
  options.generate.cuda_graph = loaded.config.trainer.cuda_graph;
  const DataConfig& data = loaded.config.data;
  if (data.pack) options.generate.end = static_cast<int32_t>(data.separator);
  std::shared_ptr<const Tokenizer> tokenizer = tokenizer_of(data, loaded.model.vocab_size());
  const Sampler write_sample = tokenizer ? text_sampler(*context, loaded.model, options, std::move(tokenizer))
                                         : id_sampler(*context, loaded.model, options);
  GenerateOptions sample = options.generate;
  for (int64_t i = 1; i <= options.samples; ++i, ++sample.seed) {
    if (options.samples > 1) show(fmt::format("=== sample {} of {}, seed {} ===\n", i, options.samples, sample.seed));
    write_sample(sample);
  }
  return kDone;
}

void add_prompt_options(CLI::App& command, GenerateArguments& options) {
  CLI::Option* const text =
      command.add_option("--prompt", options.prompt, "Text to go on from; without one a model of documents begins one")
          ->option_text("TEXT [newline]");
  CLI::Option* const file =
      add_path(command, "--prompt-file", options.prompt_file, "File with the text; -: stdin")->option_text("FILE");
  CLI::Option* const ids =
      command.add_option("--prompt-tokens", options.prompt_tokens, "Token ids, for a model whose data are no text")
          ->option_text("1,2,3");
  text->excludes(file)->excludes(ids);
  file->excludes(ids);
}

}  // namespace

Run add_generate(CLI::App& command, const Registry& registry) {
  auto options = std::make_shared<GenerateArguments>();
  GenerateOptions& generate = options->generate;
  command.add_option("run", options->path, "Run folder (its newest whole checkpoint) or checkpoint")
      ->required()
      ->option_text("RUN_OR_CHECKPOINT");
  add_prompt_options(command, *options);
  add_number(command, "--tokens", generate.tokens, "Tokens to write", Range::at_least(0))->option_text("N [200]");
  refuse_empty(command.add_option("--stop", generate.stop, "End where this text was written, and leave it out"),
               "a text")
      ->option_text("TEXT");
  add_number(command, "--samples", options->samples, "Samples to write, with the seeds S, S + 1, ..", Range::positive())
      ->option_text("N [1]");
  add_number(command, "--temperature", generate.temperature, "0: always the likeliest", Range::at_least(0))
      ->option_text("T [1]");
  add_number(command, "--top-k", generate.top_k, "Draw from the K likeliest only; 0: from all", Range::at_least(0))
      ->option_text("K [0]");
  add_number(command, "--top-p", generate.top_p, "Draw from the likeliest that have probability P together",
             Range::between(0, 1))
      ->option_text("P [1]");
  add_number(command, "--seed", generate.seed, "The same seed gives the same text")->option_text("S [1]");
  add_device_options(command, options->device);
  set_manual(
      command,
      {.description =
           "Goes on from a text, or from token ids where the data of the model are no text. A model with a recurrent "
           "state "
           "writes each token at the same cost, however long the text is. The same seed gives the same text.",
       .examples = {{"heddle generate runs/toy_kjv --prompt 'In the beginning '", "goes on with 200 bytes"},
                    {"heddle generate runs/toy_kjv --prompt-file - --tokens 500 --temperature 0.7", "reads stdin"},
                    {"heddle generate runs/toy_mqar --prompt-tokens 1,2,3 --temperature 0", "the likeliest ids"}},
       .exit_codes = {},
       .page = "docs/cli.md"});
  return [options, &registry] { return run(*options, registry); };
}

}  // namespace heddle::cli
