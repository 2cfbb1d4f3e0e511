// Processes of a test that run a function each, as the processes of a run do.
#pragma once

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <thread>

#include "tests/temp_folder.h"

namespace heddle::testing {

// A process that runs `body` and ends with exit code 0, or 1 after writing to stderr what it threw.
class OwnProcess {
 public:
  explicit OwnProcess(const std::function<void()>& body) {
    pid_ = ::fork();
    if (pid_ != 0) return;
    [[maybe_unused]] std::FILE* opened = std::freopen((folder_ / "err").c_str(), "w", stderr);
    int code = 0;
    try {
      body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "error: %s\n", error.what());
      code = 1;
    }
    std::fflush(nullptr);
    ::_exit(code);
  }
  ~OwnProcess() {
    send(SIGKILL);
    wait_for(std::chrono::seconds(10));
  }
  OwnProcess(const OwnProcess&) = delete;
  OwnProcess& operator=(const OwnProcess&) = delete;

  void send(int signal) {
    if (!ended_) ::kill(pid_, signal);
  }
  // Whether it ended within that time.
  bool wait_for(std::chrono::seconds limit) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (!ended_ && std::chrono::steady_clock::now() < deadline) {
      ended_ = ::waitpid(pid_, &status_, WNOHANG) == pid_;
      if (!ended_) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return ended_;
  }
  // The exit code, or minus the signal that ended it.
  int code() const { return WIFEXITED(status_) ? WEXITSTATUS(status_) : -WTERMSIG(status_); }
  std::string err() const {
    std::ifstream file(folder_ / "err");
    return {std::istreambuf_iterator<char>(file), {}};
  }

 private:
  TempFolder folder_;
  pid_t pid_ = -1;
  int status_ = 0;
  bool ended_ = false;
};

}  // namespace heddle::testing
