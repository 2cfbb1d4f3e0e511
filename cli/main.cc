// heddle: trains, evaluates and samples linear-attention language models.                              docs/cli.md
#include "cli/command_line.h"
#include "cli/idle_threads.h"

int main(int argc, char** argv) {
  heddle::cli::limit_spinning_of_idle_threads(argv);
  return heddle::cli::run_command_line(argc, argv);
}
