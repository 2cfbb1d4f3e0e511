// `heddle train` as one of several processes, as far as it goes without GPUs.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "core/runtime/backend.h"
#include "tests/cli/process.h"
#include "tests/trainers/test_config.h"

namespace heddle {
namespace {

using ::testing::AllOf;
using testing::Finished;
using ::testing::HasSubstr;
using testing::run_heddle;

// Variables of the environment, for the processes that are started while it lives.
class Environment {
 public:
  explicit Environment(const std::vector<std::pair<std::string, std::string>>& variables) {
    for (const auto& [name, value] : variables) {
      ::setenv(name.c_str(), value.c_str(), 1);
      names_.push_back(name);
    }
  }
  ~Environment() {
    for (const std::string& name : names_) ::unsetenv(name.c_str());
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  std::vector<std::string> names_;
};

class LaunchTest : public ::testing::Test {
 protected:
  LaunchTest() { std::ofstream(folder_ / "tiny.yaml") << testing::tiny_config(); }

  Finished train(const std::vector<std::string>& more) const {
    std::vector<std::string> arguments = {"train", (folder_ / "tiny.yaml").string(), "--out",
                                          (folder_ / "run").string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_heddle(arguments);
  }
  bool has_begun() const { return std::filesystem::exists(folder_ / "run"); }

  testing::TempFolder folder_;
};

TEST_F(LaunchTest, MoreGpusThanThereAreIsAnError) {
  const Finished result = train({"--gpus", "64"});
  EXPECT_EQ(result.code, 2);
#if defined(HEDDLE_CUDA)
  EXPECT_THAT(result.err, HasSubstr("error: --gpus needs 64 GPUs on this host, found "));
#else
  EXPECT_THAT(result.err, HasSubstr("error: --gpus: this heddle was built without CUDA"));
#endif
  EXPECT_FALSE(has_begun());
}

TEST_F(LaunchTest, GpusStartsAllByItself) {
  const Environment environment({{"RANK", "1"},
                                 {"WORLD_SIZE", "4"},
                                 {"LOCAL_RANK", "1"},
                                 {"MASTER_ADDR", "127.0.0.1"},
                                 {"MASTER_PORT", "29500"}});
  const Finished result = train({"--gpus", "2"});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, AllOf(HasSubstr("rank 1 of 4"), HasSubstr("leave --gpus out")));
  EXPECT_FALSE(has_begun());
}

TEST_F(LaunchTest, WhatExcludesGpusIsTold) {
  EXPECT_EQ(train({"--gpus", "2", "--device", "cpu"}).code, 2);
  EXPECT_EQ(train({"--gpus", "2", "--verify-resume"}).code, 2);
  EXPECT_THAT(train({"--gpus", "0"}).err, HasSubstr("--gpus: found '0', expected"));
  EXPECT_THAT(train({"--rendezvous-timeout", "0"}).err, HasSubstr("--rendezvous-timeout: found '0', expected"));
  EXPECT_FALSE(has_begun());
}

TEST_F(LaunchTest, IncompleteVariablesAreAnError) {
  const Environment environment(std::vector<std::pair<std::string, std::string>>{{"RANK", "0"}});
  const Finished result = train({"--device", "cpu"});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("error: WORLD_SIZE is not set: several processes need all of RANK"));
  EXPECT_FALSE(has_begun());
}

TEST_F(LaunchTest, SeveralProcessesOnCpusAreStartedByMpirun) {
  const Environment environment({{"RANK", "0"}, {"WORLD_SIZE", "2"}});
  const Finished result = train({"--device", "cpu"});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("mpirun -n 2"));
  EXPECT_FALSE(has_begun());
}

// Each of them would train the whole batch alone.
TEST_F(LaunchTest, VariablesOfMpirunWithoutItAreAnError) {
  const Environment environment({{"OMPI_COMM_WORLD_SIZE", "2"},
                                 {"OMPI_COMM_WORLD_RANK", "1"},
                                 {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                                 {"OMPI_ALLOW_RUN_AS_ROOT", "1"},
                                 {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"}});
  const Finished result = train({"--device", "cpu"});
  if (result.err.find("built without MPI") != std::string::npos) GTEST_SKIP() << result.err;
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.err, HasSubstr("the launcher's variables say process 1 of 2, MPI says 0 of 1"));
  EXPECT_FALSE(has_begun());
}

// What it would take is that of the processes that would train, and the first one says it.
TEST_F(LaunchTest, ADryRunIsThatOfAllProcesses) {
  for (const char* rank : {"0", "1"}) {
    const Environment environment(
        {{"OMPI_COMM_WORLD_SIZE", "2"}, {"OMPI_COMM_WORLD_RANK", rank}, {"OMPI_COMM_WORLD_LOCAL_RANK", rank}});
    const Finished result = train({"--device", "cpu", "--dry-run"});
    EXPECT_EQ(result.code, 0) << result.err;
    if (*rank == '1') {
      EXPECT_EQ(result.out + result.err, "");
    } else {
      EXPECT_THAT(result.out, HasSubstr("in each of 2 processes"));
    }
    const Finished odd = train({"--device", "cpu", "--dry-run", "--set", "trainer.batch_size=5"});
    EXPECT_EQ(odd.code, 2);
    EXPECT_THAT(odd.err, HasSubstr("found 5, expected a multiple of 2, the number of processes"));
    const Finished verified = run_heddle({"train", folder_ / "tiny.yaml", "--device", "cpu", "--verify-resume"});
    EXPECT_EQ(verified.code, 2);
    EXPECT_THAT(verified.err, HasSubstr(fmt::format("started as rank {} of 2", rank)));
  }
  EXPECT_FALSE(has_begun());
}

TEST_F(LaunchTest, OneProcessIsAlone) {
  const Environment environment({{"RANK", "0"}, {"WORLD_SIZE", "1"}});
  const Finished result = train({"--device", "cpu", "--set", "trainer.steps=2"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(has_begun());
}

}  // namespace
}  // namespace heddle
