// For tests that interrupt processes.
#pragma once

#include <csignal>

namespace heddle::testing {

// A shell starts what runs in the background with Ctrl-C ignored, nohup with SIGHUP, and heddle leaves it so.
inline const auto kInheritedInterrupt = std::signal(SIGINT, SIG_DFL);
inline const auto kInheritedHangUp = std::signal(SIGHUP, SIG_DFL);

}  // namespace heddle::testing
