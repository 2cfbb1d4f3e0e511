// The subcommands of `heddle`: each declares its options and returns what to run when it is chosen.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "layers/registry.h"

namespace heddle::cli {

// Exit codes, as `heddle --help` says.
inline constexpr int kDone = 0;
inline constexpr int kFailed = 1;
inline constexpr int kUsage = 2;
inline constexpr int kUndecided = 3;
inline constexpr int kInterrupted = 130;

using Run = std::function<int()>;  // returns the exit code; throws what report_errors() reports

// Runs the command and returns its exit code. What it throws becomes one line on stderr and the exit code for that.
int report_errors(const Run& command);

// A line that a user should see, on stderr.
void print_note(const std::string& line);

// `registry` must outlive what they return.
Run add_train(CLI::App& command, const Registry& registry);
Run add_tokenize(CLI::App& command, const Registry& registry);
Run add_eval(CLI::App& command, const Registry& registry);
Run add_generate(CLI::App& command, const Registry& registry);
Run add_export(CLI::App& command, const Registry& registry);
Run add_compare(CLI::App& command, const Registry& registry);
Run add_gradcheck(CLI::App& command, const Registry& registry);
Run add_memory(CLI::App& command, const Registry& registry);
Run add_run_layer(CLI::App& command, const Registry& registry);
Run add_bench(CLI::App& command, const Registry& registry);
Run add_plot(CLI::App& command, const Registry& registry);
Run add_info(CLI::App& command, const Registry& registry);

}  // namespace heddle::cli
