// A terminal that no person sits at.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <string>
#include <string_view>
#include <system_error>

namespace heddle::testing {

class Terminal {
 public:
  Terminal() : descriptor_(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)) {
    if (descriptor_ < 0 || ::grantpt(descriptor_) != 0 || ::unlockpt(descriptor_) != 0) {
      throw std::system_error(errno, std::generic_category(), "posix_openpt");
    }
    path_ = ::ptsname(descriptor_);
    other_ = ::open(path_.c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC);  // so that it lasts while nobody else has it open
  }
  // The leader of a session owns the first terminal that it opens, and is told by SIGHUP that it is gone.
  ~Terminal() {
    const auto before = std::signal(SIGHUP, SIG_IGN);
    ::close(other_);
    ::close(descriptor_);
    std::signal(SIGHUP, before);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  // Of the terminal, for who shall read and write there.
  const std::string& path() const { return path_; }
  void type(std::string_view text) const {
    if (::write(descriptor_, text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
      throw std::system_error(errno, std::generic_category(), path_);
    }
  }
  // What was shown since the last call.
  std::string shown() const {
    std::string text;
    pollfd ready{descriptor_, POLLIN, 0};
    char buffer[4096];
    while (::poll(&ready, 1, 0) == 1) {
      const ssize_t count = ::read(descriptor_, buffer, sizeof(buffer));
      if (count <= 0) break;
      text.append(buffer, static_cast<size_t>(count));
    }
    return text;
  }

 private:
  int descriptor_, other_ = -1;
  std::string path_;
};

}  // namespace heddle::testing
