// Starts the processes of a run on this host and sees that they end together. docs/launching.md#one-host
//
// The first process has the streams of this one, so that its progress and its result are as those of a process that is
// alone. Of the others only lines that tell of an error are shown, each behind "rank 2: "; when a process fails, the
// last lines that it wrote are shown, too. All read nothing.
//
// SIGINT, SIGTERM, SIGHUP and SIGUSR1 to this process go on to the first process alone: processes that train together
// agree on what a signal to one of them means. A second request to end goes to all. The processes are in groups of
// their own, so that a Ctrl-C on the terminal does not reach them a second time. They get SIGTERM should this process
// die.
//
// When one fails, or the first has ended, the others have `patience` to notice it and end, then they are ended.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

namespace heddle {

struct SupervisedCommand {
  std::vector<std::string> arguments;    // the first is the path of the program
  std::vector<std::string> environment;  // "NAME=VALUE": all of it
};

struct SupervisorOptions {
  std::chrono::milliseconds patience = std::chrono::seconds(12);      // until SIGTERM
  std::chrono::milliseconds last_patience = std::chrono::seconds(8);  // from SIGTERM to SIGKILL
  int interrupted = 130;    // the exit code of a process that was asked to end and did
  std::FILE* log = stderr;  // for the lines of all but the first process, and for what failed
};

// Returns when all have ended: 0 when all did with 0; `interrupted` when processes ended with that, and none failed;
// else the exit code of the one that failed first, and 1 where a signal ended it, after a line that names it: "error:
// rank 2 (pid 77) was ended by signal 9 (Killed)". To be called while the process has no other threads that take
// signals. Throws Error when a program cannot be started.
int supervise(const std::vector<SupervisedCommand>& commands, const SupervisorOptions& options = {});

// Whether a line of a process tells of an error.
bool tells_of_error(const std::string& line);

}  // namespace heddle
