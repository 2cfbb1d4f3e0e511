// Runs the real `heddle` in a process of its own.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "core/io/atomic_file.h"
#include "tests/interruptible.h"
#include "tests/temp_folder.h"

namespace heddle::testing {

// Where stdout and stderr of a process go instead of to files of its own: a path, or kClosed.
struct Streams {
  static constexpr const char* kClosed = "closed";
  std::string out = {}, err = {};
};

class Process {
 public:
  explicit Process(const std::vector<std::string>& arguments, const Streams& streams = {}) {
    std::vector<char*> argv = {const_cast<char*>("heddle")};
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    const auto redirect = [&](int descriptor, const std::string& to, const std::string& otherwise) {
      if (to == Streams::kClosed) {
        posix_spawn_file_actions_addclose(&actions, descriptor);
      } else {
        const std::string path = to.empty() ? otherwise : to;
        posix_spawn_file_actions_addopen(&actions, descriptor, path.c_str(), O_WRONLY | O_CREAT, 0666);
      }
    };
    redirect(1, streams.out, (folder_ / "out").string());
    redirect(2, streams.err, (folder_ / "err").string());
    const int code = posix_spawn(&pid_, HEDDLE_PROGRAM, &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (code != 0) throw std::system_error(code, std::generic_category(), HEDDLE_PROGRAM);
  }
  ~Process() {
    if (!running()) return;
    send(SIGKILL);
    wait();
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void send(int signal) { ::kill(pid_, signal); }

  bool running() {
    if (!ended_ && ::waitpid(pid_, &status_, WNOHANG) == pid_) ended_ = true;
    return !ended_;
  }
  // The exit code, or minus the signal that ended it.
  int wait() {
    while (!ended_ && ::waitpid(pid_, &status_, 0) != pid_) continue;
    ended_ = true;
    return WIFEXITED(status_) ? WEXITSTATUS(status_) : -WTERMSIG(status_);
  }
  // Waits until stderr holds `text`; false when the process ended without it.
  bool wait_for(const std::string& text) {
    while (running()) {
      if (err().find(text) != std::string::npos) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return err().find(text) != std::string::npos;
  }

  // "" where the stream went elsewhere.
  std::string out() const { return contents("out"); }
  std::string err() const { return contents("err"); }

 private:
  std::string contents(const char* name) const {
    return std::filesystem::exists(folder_ / name) ? read_file(folder_ / name) : "";
  }

  TempFolder folder_;
  pid_t pid_ = -1;
  int status_ = 0;
  bool ended_ = false;
};

struct Finished {
  int code = 0;
  std::string out, err;
};

inline Finished run_heddle(const std::vector<std::string>& arguments, const Streams& streams = {}) {
  Process process(arguments, streams);
  const int code = process.wait();
  return {code, process.out(), process.err()};
}

}  // namespace heddle::testing
