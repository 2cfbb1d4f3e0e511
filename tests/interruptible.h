// For tests that interrupt processes.
#pragma once

#include <csignal>

namespace heddle::testing {

// A shell starts what runs in the background with Ctrl-C ignored, and heddle leaves it so.
inline const auto kInheritedInterrupt = std::signal(SIGINT, SIG_DFL);

}  // namespace heddle::testing
