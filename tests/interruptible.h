// For tests that interrupt processes.
#pragma once

#include <gtest/gtest.h>

#include <csignal>
#include <initializer_list>

namespace heddle::testing {

// A shell starts what runs in the background with Ctrl-C ignored, nohup with SIGHUP, and heddle leaves it so.
class Interruptible : public ::testing::Environment {
 public:
  void SetUp() override {
    for (const int signal : {SIGINT, SIGHUP}) std::signal(signal, SIG_DFL);
  }
};
inline const ::testing::Environment* const kInterruptible = ::testing::AddGlobalTestEnvironment(new Interruptible);

}  // namespace heddle::testing
