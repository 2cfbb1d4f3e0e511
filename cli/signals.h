// Signals to a command that has something to save.                                         docs/training.md#signals
#pragma once

#include <signal.h>

#include <atomic>
#include <string>

namespace heddle::cli {

// One thread waits for the signals, and no other is interrupted: they are blocked in the thread that calls install()
// and in all threads that are started later, so it is to be called before the first of those that compute. (A handler
// that ran on a thread inside a library's generated code would find no stack that it may write to.)
//
//   SIGINT, SIGTERM, SIGHUP  The first one asks to stop. The second one ends the process at once.
//   SIGUSR1                  Asks for a checkpoint.
//   SIGALRM                  Is taken and has no effect.
//
// A signal that the caller had ignored (nohup, a job in the background) stays ignored, and one that main() gave a
// handler keeps it, which then runs on the waiting thread. Handlers of the first three that libraries installed before
// main() are taken away.
class Signals {
 public:
  // From the first call on, until the process ends. `stopping` is the line that the first request to stop prints: what
  // is still done, and what a second signal does.
  static Signals& install(const char* stopping);

  bool stop_requested() const { return stop_requested_; }
  // Whether a checkpoint was asked for since the last call.
  bool take_checkpoint_request() { return checkpoint_requested_.exchange(false); }

 private:
  explicit Signals(const char* stopping);
  [[noreturn]] void wait_for_signals();
  void request_stop(int signal);

  std::string stopping_;  // as it is printed, which then takes no memory
  sigset_t awaited_;
  std::atomic<bool> stop_requested_ = false, checkpoint_requested_ = false;
};

}  // namespace heddle::cli
