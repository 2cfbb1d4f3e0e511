#include "core/distributed/supervisor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <deque>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "core/distributed/socket.h"
#include "core/runtime/block_signals.h"
#include "core/runtime/error.h"
#include "core/runtime/message.h"

namespace heddle {
namespace {

constexpr size_t kLongestLine = 4096, kKeptLines = 20;
constexpr auto kImpatience = std::chrono::seconds(2);  // after a second request to end

sigset_t taken_signals() {
  sigset_t signals = with_default_action({SIGINT, SIGTERM, SIGHUP, SIGUSR1});
  sigaddset(&signals, SIGCHLD);
  return signals;
}

// While it lives, the signals come through descriptor() and in no other way.
class SignalQueue {
 public:
  explicit SignalQueue(const sigset_t& signals) {
    ::pthread_sigmask(SIG_BLOCK, &signals, &outer_);
    queue_ = Descriptor(::signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC));
    check(static_cast<bool>(queue_), "signalfd: {}", std::generic_category().message(errno));
  }
  ~SignalQueue() { ::pthread_sigmask(SIG_SETMASK, &outer_, nullptr); }
  SignalQueue(const SignalQueue&) = delete;
  SignalQueue& operator=(const SignalQueue&) = delete;

  int descriptor() const { return queue_.get(); }
  const sigset_t& outer() const { return outer_; }
  // The next signal; 0 when there is none.
  int take() {
    signalfd_siginfo found;
    return ::read(queue_.get(), &found, sizeof(found)) == sizeof(found) ? static_cast<int>(found.ssi_signo) : 0;
  }

 private:
  sigset_t outer_;
  Descriptor queue_;
};

std::vector<char*> pointers_to(const std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (const std::string& text : texts) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// What the new process does until it becomes the program. Only async-signal-safe calls. `output`: where stdout and
// stderr go, or -1.
[[noreturn]] void become(char* const* arguments, char* const* environment, int output, const sigset_t& signals,
                         pid_t parent, int failed) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::_exit(1);  // it died before
  // A process that is not in the foreground may be stopped for writing to the terminal.
  ::signal(SIGTTOU, SIG_IGN);
  const int nothing = ::open("/dev/null", O_RDONLY);
  if (nothing >= 0) ::dup2(nothing, STDIN_FILENO);
  if (output >= 0) {
    ::dup2(output, STDOUT_FILENO);
    ::dup2(output, STDERR_FILENO);
  }
  ::pthread_sigmask(SIG_SETMASK, &signals, nullptr);
  ::execve(arguments[0], arguments, environment);
  const int code = errno;
  [[maybe_unused]] const ssize_t written = ::write(failed, &code, sizeof(code));
  ::_exit(127);
}

// The lines of a process of which only errors are shown.
class Lines {
 public:
  Lines(int rank, std::FILE* log) : rank_(rank), log_(log) {}

  void add(std::string_view bytes) {
    for (const char c : bytes) {
      if (c == '\n' || c == '\r' || line_.size() == kLongestLine) finish_line();
      if (c != '\n' && c != '\r') line_ += c;
    }
  }
  void finish_line() {
    if (line_.empty()) return;
    if (tells_of_error(line_)) {
      show(line_);
    } else {
      if (kept_.size() == kKeptLines) kept_.pop_front();
      kept_.push_back(line_);
    }
    line_.clear();
  }
  int rank() const { return rank_; }
  // The last lines that were not shown.
  void show_kept() {
    for (const std::string& line : kept_) show(line);
    kept_.clear();
  }

 private:
  void show(const std::string& line) const { print_message(log_, fmt::format("rank {}: {}\n", rank_, line)); }

  int rank_;
  std::FILE* log_;
  std::string line_;
  std::deque<std::string> kept_;
};

struct Child {
  pid_t pid = -1;
  Descriptor output;
  Lines lines;
  std::optional<int> status = {};  // of waitpid(), once it has ended
};

// 0, an exit code, or 1 for a signal.
int code_of(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 1; }

std::string end_of(int status) {
  if (WIFEXITED(status)) return fmt::format("ended with exit code {}", WEXITSTATUS(status));
  const int signal = WTERMSIG(status);
  return fmt::format("was ended by signal {} ({})", signal, ::strsignal(signal));
}

class Supervisor {
 public:
  explicit Supervisor(const SupervisorOptions& options) : options_(options) {}
  ~Supervisor() {
    for (const Child& child : children_) {
      if (child.status) continue;
      ::kill(-child.pid, SIGKILL);
      ::waitpid(child.pid, nullptr, 0);
    }
  }

  void start(const SupervisedCommand& command) {
    const int rank = static_cast<int>(children_.size());
    const std::vector<char*> arguments = pointers_to(command.arguments), environment = pointers_to(command.environment);
    auto [output, into_output] = make_pipe();
    auto [failed, into_failed] = make_pipe();
    const pid_t parent = ::getpid(), pid = ::fork();
    check(pid >= 0, "cannot start a process: {}", std::generic_category().message(errno));
    if (pid == 0) {
      become(arguments.data(), environment.data(), rank == 0 ? -1 : into_output.get(), signals_.outer(), parent,
             into_failed.get());
    }
    ::setpgid(pid, pid);  // whichever of the two comes first
    into_output.close();
    into_failed.close();
    ::fcntl(output.get(), F_SETFL, O_NONBLOCK);
    children_.push_back({pid, std::move(output), Lines(rank, options_.log)});
    int code = 0;
    if (::read(failed.get(), &code, sizeof(code)) == sizeof(code)) {
      fail("cannot start {}: {}", command.arguments[0], std::generic_category().message(code));
    }
  }

  int run() {
    while (!all_ended()) {
      wait();
      while (const int signal = signals_.take()) {
        if (signal != SIGCHLD) pass_on(signal);
      }
      for (Child& child : children_) read(child);
      reap();
      end_the_rest();
    }
    return result();
  }

 private:
  using Pipe = std::pair<Descriptor, Descriptor>;
  static Pipe make_pipe() {
    int ends[2];
    check(::pipe2(ends, O_CLOEXEC) == 0, "pipe2: {}", std::generic_category().message(errno));
    return {Descriptor(ends[0]), Descriptor(ends[1])};
  }

  bool all_ended() const {
    return std::all_of(children_.begin(), children_.end(), [](const Child& child) { return child.status.has_value(); });
  }

  void wait() {
    std::vector<pollfd> waited = {{signals_.descriptor(), POLLIN, 0}};
    for (const Child& child : children_) {
      if (child.output) waited.push_back({child.output.get(), POLLIN, 0});
    }
    ::poll(waited.data(), waited.size(), 500);
  }

  void pass_on(int signal) {
    if (signal != SIGUSR1) ++stop_requests_;
    for (size_t rank = 0; rank < children_.size(); ++rank) {
      const bool is_meant = rank == 0 || (signal != SIGUSR1 && stop_requests_ > 1);
      if (is_meant && !children_[rank].status) ::kill(children_[rank].pid, signal);
    }
    if (stop_requests_ > 1 && !term_at_) term_at_ = Clock::now();
  }

  void read(Child& child) {
    char buffer[4096];
    while (child.output) {
      const ssize_t count = ::read(child.output.get(), buffer, sizeof(buffer));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0 && errno == EAGAIN) return;
      if (count <= 0) {
        child.output.close();
        child.lines.finish_line();
      } else {
        child.lines.add({buffer, static_cast<size_t>(count)});
      }
    }
  }

  void reap() {
    for (Child& child : children_) {
      int status = 0;
      if (child.status || ::waitpid(child.pid, &status, WNOHANG) != child.pid) continue;
      child.status = status;
      read(child);
      child.output.close();
      child.lines.finish_line();
      const bool is_well = code_of(status) == 0 || code_of(status) == options_.interrupted;
      if (is_well && child.lines.rank() == 0 && !term_at_) term_at_ = Clock::now() + options_.patience;
      if (is_well || failed_) continue;
      failed_ = &child - children_.data();
      if (!term_at_) term_at_ = Clock::now() + options_.patience;
      if (stop_requests_ > 1) continue;  // as it was asked to
      child.lines.show_kept();
      print_message(options_.log, fmt::format("error: rank {} (pid {}) {}\n", *failed_, child.pid, end_of(status)));
    }
  }

  void end_the_rest() {
    if (!term_at_ || Clock::now() < *term_at_) return;
    if (!kill_at_) {
      send_to_the_rest(SIGTERM);
      kill_at_ = Clock::now() + (stop_requests_ > 1 ? Clock::duration(kImpatience) : options_.last_patience);
    } else if (Clock::now() >= *kill_at_) {
      send_to_the_rest(SIGKILL);
    }
  }
  void send_to_the_rest(int signal) {
    for (const Child& child : children_) {
      if (!child.status) ::kill(-child.pid, signal);
    }
  }

  int result() const {
    if (stop_requests_ > 1) return options_.interrupted;
    if (failed_) return code_of(*children_[static_cast<size_t>(*failed_)].status);
    const bool is_interrupted = std::any_of(children_.begin(), children_.end(), [&](const Child& child) {
      return code_of(*child.status) == options_.interrupted;
    });
    return is_interrupted ? options_.interrupted : 0;
  }

  const SupervisorOptions& options_;
  SignalQueue signals_{taken_signals()};
  std::vector<Child> children_;
  std::optional<std::ptrdiff_t> failed_;  // the first that failed
  int stop_requests_ = 0;
  std::optional<Clock::time_point> term_at_, kill_at_;  // when those that are left get SIGTERM and SIGKILL
};

}  // namespace

int supervise(const std::vector<SupervisedCommand>& commands, const SupervisorOptions& options) {
  Supervisor supervisor(options);
  for (const SupervisedCommand& command : commands) supervisor.start(command);
  return supervisor.run();
}

bool tells_of_error(const std::string& line) {
  constexpr std::array<std::string_view, 8> kSigns = {
      "error: ",         "terminate called", "  what():", "AddressSanitizer",
      "ThreadSanitizer", "runtime error:",   "NCCL WARN", "Assertion"};
  return std::any_of(kSigns.begin(), kSigns.end(),
                     [&](std::string_view sign) { return line.find(sign) != std::string::npos; });
}

}  // namespace heddle
