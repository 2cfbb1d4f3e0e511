#include "cli/signals.h"

#include <fmt/format.h>

#include <cstdio>
#include <initializer_list>
#include <thread>

#include "core/runtime/block_signals.h"
#include "core/runtime/message.h"

namespace heddle::cli {
namespace {

// Signals with a handler or ignored are left to whoever arranged it.
bool has_default_action(int signal) {
  struct sigaction action {};
  return ::sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_DFL;
}

}  // namespace

// It is never destroyed, since its thread uses it until the end.
Signals& Signals::install(const char* stopping) {
  static Signals& signals = *new Signals(stopping);
  return signals;
}

Signals::Signals(const char* stopping) : stopping_(stopping) {
  sigemptyset(&awaited_);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGALRM}) {
    if (has_default_action(signal)) sigaddset(&awaited_, signal);
  }
  const sigset_t all = asynchronous_signals();
  ::pthread_sigmask(SIG_BLOCK, &all, nullptr);
  std::thread([this] { wait_for_signals(); }).detach();
}

// All other signals may be handled on this thread.
void Signals::wait_for_signals() {
  ::pthread_sigmask(SIG_SETMASK, &awaited_, nullptr);
  while (true) {
    int signal = 0;
    if (::sigwait(&awaited_, &signal) != 0) continue;
    if (signal == SIGUSR1) {
      checkpoint_requested_ = true;
    } else if (signal != SIGALRM) {
      request_stop(signal);
    }
  }
}

void Signals::request_stop(int signal) {
  if (!stop_requested_.exchange(true)) {
    print_message(stderr, fmt::format("\n{}\n", stopping_));
    return;
  }
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, signal);
  ::pthread_sigmask(SIG_UNBLOCK, &one, nullptr);
  ::raise(signal);  // its default action ends the process
}

}  // namespace heddle::cli
