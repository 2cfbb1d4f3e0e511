// What the processes of --gpus are started with.
#include "core/distributed/local_launch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/distributed/launch_variables.h"

namespace heddle {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::MatchesRegex;

Launch launch_in(const std::vector<std::string>& environment) {
  std::map<std::string, std::string> values;
  for (const std::string& variable : environment) {
    const size_t end = variable.find('=');
    EXPECT_TRUE(values.emplace(variable.substr(0, end), variable.substr(end + 1)).second) << variable << " twice";
  }
  return read_launch(DeviceType::cuda, [&](const std::string& name) -> std::optional<std::string> {
    const auto found = values.find(name);
    if (found == values.end()) return {};
    return found->second;
  });
}

TEST(LocalLaunch, EachProcessIsToldWhichItIs) {
  const std::vector<std::string> environment = {"PATH=/bin",
                                                "RANK=0",
                                                "WORLD_SIZE=1",
                                                "LOCAL_RANK=0",
                                                "MASTER_ADDR=elsewhere",
                                                "HEDDLE_TOKEN=old",
                                                "TORCHELASTIC_RUN_ID=none",
                                                "OMPI_COMM_WORLD_SIZE=1",
                                                "OMPI_COMM_WORLD_RANK=0",
                                                "SLURM_STEP_ID=1",
                                                "NCCL_DEBUG=WARN"};
  const auto commands = local_commands({"/bin/heddle", "train", "a.yaml"}, environment, 3, 1234, "token");
  ASSERT_EQ(commands.size(), 3u);
  for (int rank = 0; rank < 3; ++rank) {
    const SupervisedCommand& command = commands[static_cast<size_t>(rank)];
    EXPECT_THAT(command.arguments, ElementsAre("/bin/heddle", "train", "a.yaml"));
    EXPECT_THAT(command.environment, Contains("NCCL_DEBUG=WARN"));
    EXPECT_THAT(command.environment, Contains("HEDDLE_STARTED_BY_HEDDLE=1"));
    const Launch launch = launch_in(command.environment);
    EXPECT_EQ(launch.kind, Launch::Kind::nccl);
    EXPECT_EQ(launch.rank, rank);
    EXPECT_EQ(launch.world_size, 3);
    EXPECT_EQ(launch.local_rank, rank);
    EXPECT_EQ(launch.local_size, 3);
    EXPECT_EQ(launch.master_addr, "127.0.0.1");
    EXPECT_EQ(launch.master_port, 1234);
    EXPECT_EQ(launch.token, "token");
  }
}

TEST(LocalLaunch, TokensDiffer) {
  EXPECT_THAT(random_token(), MatchesRegex("[0-9a-f]{32}"));
  EXPECT_NE(random_token(), random_token());
}

TEST(LocalLaunch, TheProgramIsThisOne) {
  const std::vector<std::string> arguments = own_arguments();
  EXPECT_EQ(std::filesystem::path(arguments.at(0)).filename(), "test_distributed");
  EXPECT_THAT(own_environment(), Contains(MatchesRegex("PATH=.*")));
}

}  // namespace
}  // namespace heddle
