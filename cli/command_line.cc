#include "cli/command_line.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <functional>
#include <map>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "cli/build_info.h"
#include "cli/command.h"
#include "cli/standard_streams.h"
#include "core/config/config_error.h"
#include "core/config/nearest_name.h"
#include "core/runtime/error.h"
#include "core/runtime/message.h"

namespace heddle::cli {
namespace {

struct Command {
  const char* name;
  const char* description;
  Run (*add)(CLI::App& command, const Registry& registry);
};

constexpr const char* kHelp = "help";
constexpr std::array kCommands = {
    Command{"train", "Train a model from a config", add_train},
    Command{"tokenize", "Text to token files; trains a vocabulary first where asked", add_tokenize},
    Command{"eval", "Validation loss of a trained model", add_eval},
    Command{"generate", "Write text with a trained model", add_generate},
    Command{"export", "Write a trained model as a folder for PyTorch", add_export},
    Command{"compare", "Train models on the same tokens: loss, recall, speed and memory in one table", add_compare},
    Command{"gradcheck", "Compare gradients with finite differences", add_gradcheck},
    Command{"memory", "Where the bytes of a training step go, and what fits", add_memory},
    Command{"run-layer", "Run one operator on tensors from a file", add_run_layer},
    Command{"bench", "Measure operators: speed and memory, by suite", add_bench},
    Command{"plot", "Draw how the losses of runs went", add_plot},
    Command{"info", "Version, build options, devices, libraries", add_info},
};

// Takes no memory, of which there may be none.
int report_out_of_memory() {
  print_message(stderr, "error: out of memory on the host\n");
  return kFailed;
}

int report(const char* message, int code) {
  try {
    print_message(stderr, fmt::format("error: {}\n", with_visible_controls(message)));
    return code;
  } catch (const std::bad_alloc&) {
    return report_out_of_memory();
  }
}

// Throws UsageError for a first word that is neither a command nor an option before one. CLI11 would say no more than
// that a subcommand is required.
void check_first_word(const std::string& word) {
  const bool is_option = word.starts_with('-');
  std::vector<std::string> known;
  if (is_option) {
    known = {"-h", "--help", "--version"};
  } else {
    for (const Command& command : kCommands) known.emplace_back(command.name);
    known.emplace_back(kHelp);
  }
  if (std::find(known.begin(), known.end(), word) != known.end()) return;
  const std::string hint = did_you_mean(word, known);
  throw UsageError(fmt::format("unknown {} '{}'{}", is_option ? "option" : "command", word,
                               hint.empty() ? ", expected one of " + join_names(known) : hint));
}

// `help` and `help COMMAND` are other ways to write `--help` and `COMMAND --help`.
std::vector<std::string> arguments_of(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + std::max(argc, 1));
  if (arguments.empty() || arguments.front() != kHelp) return arguments;
  if (arguments.size() > 2) {
    throw UsageError(fmt::format("help: found '{}' after '{}', expected one command", arguments[2], arguments[1]));
  }
  arguments.erase(arguments.begin());
  if (arguments != std::vector<std::string>{"--help"}) arguments.emplace_back("--help");
  return arguments;
}

// An argument that is not expected is told before what may be missing for it. CLI11 would do the reverse, and name such
// arguments from the last to the first.
std::string message_of(const CLI::ParseError& error, const CLI::App& command) {
  const std::vector<std::string> extras = command.remaining(true);
  if (extras.empty()) return error.what();
  const std::string first = extras.front().substr(0, extras.front().find('='));
  std::vector<std::string> options;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) options.push_back("--" + name);
  }
  return fmt::format("the following argument{} not expected: {}{}", extras.size() == 1 ? " was" : "s were",
                     fmt::join(extras, " "), first.starts_with("--") ? did_you_mean(first, options) : "");
}

int run(int argc, char** argv, const Registry& registry) {
  std::vector<std::string> arguments = arguments_of(argc, argv);
  if (!arguments.empty()) check_first_word(arguments.front());
  CLI::App app("heddle " HEDDLE_VERSION ": a minimal training framework for linear-attention language models",
               "heddle");
  app.set_version_flag("--version", version_text(), "Print the version and how the program was built");
  app.require_subcommand(1);
  app.footer(
      "`heddle COMMAND --help`, or `heddle help COMMAND`, is the manual of a command.\n"
      "Exit codes: 0 done, 1 failure at run time, 2 wrong usage or configuration, 3 gradcheck: a gradient is "
      "undecided,\n"
      "130 interrupted (training: after writing a checkpoint).");
  std::map<CLI::App*, Run> runs;
  for (const Command& command : kCommands) {
    CLI::App* subcommand = app.add_subcommand(command.name, command.description);
    runs[subcommand] = command.add(*subcommand, registry);
  }
  try {
    std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants them
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    const auto chosen = app.get_subcommands();
    report(message_of(error, chosen.empty() ? app : *chosen.front()).c_str(), kUsage);
    print_message(stderr, fmt::format("see heddle {}--help\n", chosen.empty() ? "" : chosen.front()->get_name() + " "));
    return kUsage;
  }
  return runs.at(app.get_subcommands().front())();
}

}  // namespace

int report_errors(const Run& command) {
  try {
    return command();
  } catch (const ConfigError& error) {
    return report(error.what(), kUsage);
  } catch (const UsageError& error) {
    return report(error.what(), kUsage);
  } catch (const std::bad_alloc&) {
    return report_out_of_memory();
  } catch (const std::length_error&) {  // a container was asked for more than any memory holds
    return report_out_of_memory();
  } catch (const std::filesystem::filesystem_error& error) {
    const std::string path = error.path1().string();  // what() names the function of the library, too
    return report(fmt::format("{}{}{}", path, path.empty() ? "" : ": ", error.code().message()).c_str(), kFailed);
  } catch (const std::system_error& error) {
    if (std::ferror(stdout) != 0) {  // fmt does not say which file it was
      return report(fmt::format("cannot write to stdout: {}", error.code().message()).c_str(), kFailed);
    }
    if (error.code() != std::errc::resource_unavailable_try_again) return report(error.what(), kFailed);
    return report("cannot start a thread: the memory or the number of threads of this process is at its limit",
                  kFailed);
  } catch (const std::exception& error) {
    return report(error.what(), kFailed);
  }
}

int run_command_line(int argc, char** argv, const Registry& registry) {
  return report_errors([&] {
    prepare_standard_streams();
    const int code = run(argc, argv, registry);
    finish_stdout();  // results that it could not write are a failure, too
    return code;
  });
}

// A row of the built-in registry that is wrong is reported like any other error.
int run_command_line(int argc, char** argv) {
  return report_errors([&] { return run_command_line(argc, argv, built_in_registry()); });
}

void print_note(const std::string& line) {
  print_message(stderr, fmt::format("note: {}\n", with_visible_controls(line)));
}

}  // namespace heddle::cli
