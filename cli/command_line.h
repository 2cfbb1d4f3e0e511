// The command line of `heddle` as a function, for programs that bring layers of their own.             docs/cli.md
//
//   int main(int argc, char** argv) {
//     heddle::Registry registry = heddle::built_in_registry();
//     registry.add_mixer("my_mixer", [] { return std::make_unique<MyMixerOptions>(); });
//     return heddle::cli::run_command_line(argc, argv, registry);
//   }
#pragma once

#include "layers/registry.h"

namespace heddle::cli {

// Runs the subcommand that the arguments name; all of them know the layers of `registry`. Reports on stderr what fails,
// throws nothing, and returns the exit code: 0 done, 1 failure at run time, 2 wrong usage or configuration, 130
// interrupted.
int run_command_line(int argc, char** argv, const Registry& registry);
// The same with the built-in registry.
int run_command_line(int argc, char** argv);

}  // namespace heddle::cli
