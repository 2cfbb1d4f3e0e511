// heddle: trains, evaluates and samples linear-attention language models.                              docs/cli.md
#include "cli/command_line.h"

int main(int argc, char** argv) { return heddle::cli::run_command_line(argc, argv); }
