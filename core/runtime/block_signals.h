// Which signals a program takes, and threads on which no signal handler runs.
#pragma once

#include <signal.h>

#include <initializer_list>

namespace heddle {

// All signals but those that a thread raises by what it does itself (SIGSEGV, SIGFPE, ...).
inline sigset_t asynchronous_signals() {
  sigset_t signals;
  sigfillset(&signals);
  for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS}) sigdelset(&signals, own);
  return signals;
}

// Those of the signals that have their default action. Others, with a handler or ignored, are left to whoever arranged
// it.
inline sigset_t with_default_action(std::initializer_list<int> signals) {
  sigset_t result;
  sigemptyset(&result);
  for (const int signal : signals) {
    struct sigaction action {};
    if (::sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_DFL) sigaddset(&result, signal);
  }
  return result;
}

// While it lives, asynchronous signals are not delivered to the thread that made it. They go to another thread of the
// process, or wait until this one takes them again.
class BlockSignals {
 public:
  BlockSignals() {
    const sigset_t signals = asynchronous_signals();
    ::pthread_sigmask(SIG_BLOCK, &signals, &outer_);
  }
  ~BlockSignals() { ::pthread_sigmask(SIG_SETMASK, &outer_, nullptr); }
  BlockSignals(const BlockSignals&) = delete;
  BlockSignals& operator=(const BlockSignals&) = delete;

 private:
  sigset_t outer_;
};

}  // namespace heddle
