// Operators against PyTorch, where it is there: a part of what bench/parity.py compares.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace heddle {
namespace {

TEST(ParityTest, OperatorsAgreeWithPyTorch) {
  if (std::system("python3 -c 'import torch, safetensors.torch' > /dev/null 2>&1") != 0) {
    GTEST_SKIP() << "python3 has no torch and safetensors";
  }
  const std::string command = "python3 '" HEDDLE_SOURCE_DIR "/bench/parity.py' --heddle '" HEDDLE_PROGRAM "' --cases 3";
  EXPECT_EQ(std::system(command.c_str()), 0);
  EXPECT_NE(std::system((command + " rms_nrm 2> /dev/null").c_str()), 0);
}

}  // namespace
}  // namespace heddle
