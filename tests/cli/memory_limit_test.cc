// A process whose memory is limited ends with an error, wherever on its way the memory runs out.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "core/io/atomic_file.h"
#include "tests/cli/trained_test.h"
#include "trainers/run/checkpoint.h"

namespace heddle::memory_limit_test {
namespace {

namespace fs = std::filesystem;
using ::testing::AnyOf;
using ::testing::HasSubstr;

class MemoryLimitTest : public testing::TrainedTest {
 protected:
  void SetUp() override {
#if defined(HEDDLE_SANITIZED)
    GTEST_SKIP() << "a sanitizer takes address space as it likes";
#endif
  }
  // The exit code, or 128 and the signal that ended it, of a process that may map so many MiB.
  int run_limited(int mebibytes, const std::string& arguments) {
    const std::string command =
        fmt::format("ulimit -c 0; ulimit -v {}; exec '{}' {} > '{}' 2> '{}' < /dev/null", mebibytes * 1024,
                    HEDDLE_PROGRAM, arguments, (folder_ / "out").string(), error_.string());
    const int status = std::system(command.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  // Gives the process more and more memory, from where its libraries can be loaded and begin on to where it has enough.
  // A library that ends it before main() may do so with more memory, too, than once was enough.
  void expect_errors(const std::string& command, const fs::path& run_to_remove = {}) {
    const std::string arguments = command + " --device cpu --threads 1";
    const auto begins = [&](int mebibytes) { return run_limited(mebibytes, "--version") == 0; };
    int mebibytes = 32;
    while (!begins(mebibytes) && mebibytes < kMost) mebibytes += 4;
    int failures = 0, code = 1;
    for (; code != 0 && mebibytes < kMost; ++mebibytes) {
      if (!run_to_remove.empty()) fs::remove_all(run_to_remove);
      code = run_limited(mebibytes, arguments);
      if (code > kNotLoaded && !begins(mebibytes)) continue;
      ASSERT_THAT(code, AnyOf(0, 1, kNotLoaded)) << mebibytes << " MiB: " << read_file(error_);
      if (code == 1) {
        EXPECT_THAT(read_file(error_), HasSubstr("error: ")) << mebibytes << " MiB";
        ++failures;
      }
      for (const CheckpointFolder& checkpoint : list_checkpoints(run_to_remove / "checkpoints")) {
        EXPECT_NO_THROW(open_checkpoint(checkpoint.path)) << mebibytes << " MiB";
      }
    }
    EXPECT_EQ(code, 0) << read_file(error_);
    EXPECT_GT(failures, 0);
  }

  static constexpr int kNotLoaded = 127;
  static constexpr int kMost = 1024;
  fs::path error_ = folder_ / "err";
};

TEST_F(MemoryLimitTest, Training) {
  expect_errors(fmt::format("train '{}' --out '{}' --set trainer.steps=2 --set trainer.checkpoint_every=1",
                            (folder_ / "tiny.yaml").string(), (folder_ / "limited").string()),
                folder_ / "limited");
}

TEST_F(MemoryLimitTest, Sampling) { expect_errors(fmt::format("generate '{}' --tokens 20", run_)); }

TEST_F(MemoryLimitTest, Evaluation) { expect_errors(fmt::format("eval '{}'", run_)); }

}  // namespace
}  // namespace heddle::memory_limit_test
