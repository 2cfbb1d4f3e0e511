#include "cli/signals.h"

#include <fmt/format.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <initializer_list>
#include <iterator>
#include <thread>

#include "core/runtime/block_signals.h"
#include "core/runtime/message.h"

namespace heddle::cli {
namespace {

#if defined(__linux__)
// Libraries install handlers before main() begins, as UCX, which MPI brings along, does for SIGHUP (it then logs more).
// The program would take them for what its caller wants. So the actions are noted before the libraries' constructors
// run, and are what they were again after these, before main().
constexpr int kStops[] = {SIGINT, SIGTERM, SIGHUP};
bool ignored_at_start[std::size(kStops)];

// The system call itself, and no sanitizer: neither is set up yet. The handler is the first word of what it fills.
__attribute__((no_sanitize("address", "undefined", "thread"))) void note_actions(int, char**, char**) {
  for (size_t i = 0; i < std::size(kStops); ++i) {
    unsigned long action[16] = {};
    const long failed = ::syscall(SYS_rt_sigaction, kStops[i], nullptr, action, _NSIG / 8);
    ignored_at_start[i] = failed == 0 && action[0] == reinterpret_cast<unsigned long>(SIG_IGN);
  }
}
[[gnu::section(".preinit_array"), gnu::used]] void (*const note_before_libraries)(int, char**, char**) = note_actions;

const bool actions_are_restored = [] {
  for (size_t i = 0; i < std::size(kStops); ++i) {
    struct sigaction action {};
    if (::sigaction(kStops[i], nullptr, &action) != 0) return false;
    const auto at_start = ignored_at_start[i] ? SIG_IGN : SIG_DFL;
    if (action.sa_handler == at_start) continue;
    action = {};
    action.sa_handler = at_start;
    ::sigaction(kStops[i], &action, nullptr);
  }
  return true;
}();
#endif

}  // namespace

// It is never destroyed, since its thread uses it until the end.
Signals& Signals::install(const char* stopping) {
  static Signals& signals = *new Signals(stopping);
  return signals;
}

Signals::Signals(const char* stopping) : stopping_(fmt::format("\n{}\n", stopping)) {
  awaited_ = with_default_action({SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGALRM});
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
    print_message(stderr, stopping_);
    return;
  }
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, signal);
  ::pthread_sigmask(SIG_UNBLOCK, &one, nullptr);
  ::raise(signal);  // its default action ends the process
}

}  // namespace heddle::cli
