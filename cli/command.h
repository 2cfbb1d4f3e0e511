// The subcommands of `heddle`: each declares its options and hands back what to run when it is chosen.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

namespace heddle::cli {

// Exit codes, as `heddle --help` says.
inline constexpr int kDone = 0;
inline constexpr int kFailed = 1;
inline constexpr int kUsage = 2;
inline constexpr int kInterrupted = 130;

using Run = std::function<int()>;  // returns the exit code; throws what main reports

// Lines that a user should see, on stderr.
void print_note(const std::string& line);

Run add_train(CLI::App& command);
Run add_eval(CLI::App& command);
Run add_generate(CLI::App& command);
Run add_gradcheck(CLI::App& command);
Run add_run_layer(CLI::App& command);
Run add_bench(CLI::App& command);
Run add_info(CLI::App& command);

}  // namespace heddle::cli
