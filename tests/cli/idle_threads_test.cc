// What libgomp says of itself in the program: it tells its settings when it is loaded.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <string>

namespace heddle::idle_threads_test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// stdout and stderr of `heddle --version`, where the environment has `variables` and nothing else about waiting.
std::string output_with(const std::string& variables) {
  const std::string command = "env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT OMP_DISPLAY_ENV=verbose " + variables +
                              " '" HEDDLE_PROGRAM "' --version 2>&1";
  std::string output;
  FILE* const pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) return output;
  char buffer[4096];
  while (std::fgets(buffer, sizeof buffer, pipe) != nullptr) output += buffer;
  EXPECT_EQ(::pclose(pipe), 0) << output;
  return output;
}

TEST(IdleThreadsTest, SleepSoonUnlessTheUserSaysOtherwise) {
#if !defined(_OPENMP) || defined(__clang__)
  GTEST_SKIP() << "heddle was built without libgomp";
#endif
  EXPECT_THAT(output_with(""), HasSubstr("GOMP_SPINCOUNT = '10000'"));
  EXPECT_THAT(output_with("GOMP_SPINCOUNT=77"), HasSubstr("GOMP_SPINCOUNT = '77'"));
  EXPECT_THAT(output_with("OMP_WAIT_POLICY=active"), Not(HasSubstr("GOMP_SPINCOUNT = '10000'")));
}

}  // namespace
}  // namespace heddle::idle_threads_test
