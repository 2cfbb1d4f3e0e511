// What the environment says of the processes of a run, and the lists of hosts in it.
#include "core/distributed/launch_variables.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/distributed/node_list.h"
#include "core/runtime/error.h"

namespace heddle {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

using Environment = std::map<std::string, std::string>;

Launch read(const Environment& environment, DeviceType device = DeviceType::cuda) {
  return read_launch(device, [&](const std::string& name) -> std::optional<std::string> {
    const auto found = environment.find(name);
    if (found == environment.end()) return {};
    return found->second;
  });
}

std::string error_of(const Environment& environment, DeviceType device = DeviceType::cuda) {
  try {
    const Launch launch = read(environment, device);
    return fmt::format("no error: rank {} of {}", launch.rank, launch.world_size);
  } catch (const UsageError& error) {
    return error.what();
  }
}

// The environment with some variables changed; an empty value removes one.
Environment with(Environment environment, const Environment& changes) {
  for (const auto& [name, value] : changes) {
    environment[name] = value;
    if (value.empty()) environment.erase(name);
  }
  return environment;
}

const Environment kTorchrun = {{"RANK", "5"},
                               {"WORLD_SIZE", "8"},
                               {"LOCAL_RANK", "1"},
                               {"LOCAL_WORLD_SIZE", "4"},
                               {"MASTER_ADDR", "10.0.0.1"},
                               {"MASTER_PORT", "29500"},
                               {"TORCHELASTIC_RUN_ID", "run"},
                               {"TORCHELASTIC_RESTART_COUNT", "2"}};
const Environment kSlurm = {{"SLURM_STEP_ID", "3"},   {"SLURM_PROCID", "9"},
                            {"SLURM_NTASKS", "16"},   {"SLURM_LOCALID", "1"},
                            {"SLURM_JOB_ID", "4711"}, {"SLURM_JOB_NODELIST", "gpu[07-08,11],other"}};
const Environment kOpenMpi = {{"OMPI_COMM_WORLD_RANK", "1"},
                              {"OMPI_COMM_WORLD_SIZE", "2"},
                              {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                              {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                              {"PMIX_NAMESPACE", "171.1"}};

TEST(LaunchVariables, NothingIsAlone) {
  for (const Environment& environment :
       {Environment{}, Environment{{"RANK", "0"}, {"WORLD_SIZE", "1"}}, Environment{{"WORLD_SIZE", "1"}},
        Environment{{"MASTER_ADDR", "a"}, {"MASTER_PORT", "1"}, {"LOCAL_RANK", "3"}},
        with(kSlurm, {{"SLURM_STEP_ID", ""}}),  // the script of a job, which runs once
        with(kSlurm, {{"SLURM_NTASKS", "1"}}), with(kSlurm, {{"SLURM_STEP_NUM_TASKS", "1"}}),
        with(kSlurm, {{"RANK", "0"}, {"WORLD_SIZE", "1"}}),
        Environment{{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "1"}}}) {
    for (const DeviceType device : {DeviceType::cpu, DeviceType::cuda}) {
      const Launch launch = read(environment, device);
      EXPECT_EQ(launch.kind, Launch::Kind::alone);
      EXPECT_EQ(launch.rank, 0);
      EXPECT_EQ(launch.world_size, 1);
      EXPECT_EQ(launch.local_rank, 0);
    }
  }
}

TEST(LaunchVariables, Torchrun) {
  const Launch launch = read(kTorchrun);
  EXPECT_EQ(launch.kind, Launch::Kind::nccl);
  EXPECT_EQ(launch.rank, 5);
  EXPECT_EQ(launch.world_size, 8);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.local_size, 4);
  EXPECT_EQ(launch.master_addr, "10.0.0.1");
  EXPECT_EQ(launch.master_port, 29500);
  EXPECT_EQ(launch.token, "torchrun run 2");
  EXPECT_EQ(read(with(kTorchrun, {{"LOCAL_WORLD_SIZE", ""}})).local_size, 2);  // at least
  EXPECT_EQ(read(with(kTorchrun, {{"TORCHELASTIC_RUN_ID", ""}})).token, "10.0.0.1:29500");
  EXPECT_EQ(read(with(kTorchrun, {{"HEDDLE_TOKEN", "secret"}})).token, "secret");
  EXPECT_EQ(read(with(kSlurm, kTorchrun)).rank, 5) << "srun may start torchrun";
  EXPECT_EQ(read(with(kOpenMpi, kTorchrun)).rank, 5) << "mpirun may start torchrun";
}

TEST(LaunchVariables, Slurm) {
  const Launch launch = read(kSlurm);
  EXPECT_EQ(launch.kind, Launch::Kind::nccl);
  EXPECT_EQ(launch.rank, 9);
  EXPECT_EQ(launch.world_size, 16);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.master_addr, "gpu07");
  EXPECT_EQ(launch.master_port, 15000 + 4711 + 21);
  EXPECT_EQ(launch.token, "slurm 4711.3");
  const Launch other = read(with(kSlurm, {{"MASTER_PORT", "1234"}, {"SLURM_STEP_NODELIST", "gpu11"}}));
  EXPECT_EQ(other.master_addr, "gpu11");
  EXPECT_EQ(other.local_size, 16);
  EXPECT_EQ(launch.local_size, 2);  // at least
  EXPECT_EQ(other.master_port, 1234);
  EXPECT_EQ(read(with(kSlurm, {{"MASTER_ADDR", "10.1.1.1"}})).master_addr, "10.1.1.1");
  EXPECT_EQ(read(kSlurm, DeviceType::cpu).kind, Launch::Kind::mpi);
}

TEST(LaunchVariables, OpenMpi) {
  EXPECT_EQ(read(kOpenMpi, DeviceType::cpu).kind, Launch::Kind::mpi);
  EXPECT_EQ(read(kOpenMpi, DeviceType::cpu).rank, 1);
  EXPECT_EQ(read(with(kOpenMpi, {{"RANK", "1"}, {"WORLD_SIZE", "2"}}), DeviceType::cpu).rank, 1);
  const Launch one_host = read(kOpenMpi);
  EXPECT_EQ(one_host.kind, Launch::Kind::nccl);
  EXPECT_EQ(one_host.master_addr, "127.0.0.1");
  EXPECT_EQ(one_host.token, "mpirun 171.1");
  EXPECT_EQ(read(with(kOpenMpi, {{"OMPI_COMM_WORLD_RANK", "0"}})).master_port, one_host.master_port);
  EXPECT_NE(read(with(kOpenMpi, {{"PMIX_NAMESPACE", "172.1"}})).master_port, one_host.master_port);
  const Environment several = with(kOpenMpi, {{"OMPI_COMM_WORLD_SIZE", "4"}});
  EXPECT_THAT(error_of(several), HasSubstr("MASTER_ADDR is not set"));
  EXPECT_EQ(read(with(several, {{"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "7"}})).master_port, 7);
}

struct Wrong {
  Environment environment;
  std::string message;
};

TEST(LaunchVariables, WhatIsWrongIsNamed) {
  const std::vector<Wrong> all = {
      {{{"RANK", "0"}}, "WORLD_SIZE is not set: several processes need all of RANK, WORLD_SIZE"},
      {{{"WORLD_SIZE", "2"}}, "RANK is not set"},
      {{{"RANK", "1"}, {"WORLD_SIZE", "1"}}, "RANK: found 1, expected a number below WORLD_SIZE, which is 1"},
      {with(kTorchrun, {{"RANK", "8"}}), "RANK: found 8, expected a number below WORLD_SIZE, which is 8"},
      {with(kTorchrun, {{"RANK", "-1"}}), "RANK: found '-1', expected an integer from 0"},
      {with(kTorchrun, {{"RANK", "1x"}}), "RANK: found '1x', expected an integer from 0"},
      {with(kTorchrun, {{"WORLD_SIZE", "0"}}), "WORLD_SIZE: found '0', expected an integer from 1"},
      {with(kTorchrun, {{"WORLD_SIZE", "99999999999999999999"}}), "WORLD_SIZE: found '99999999999999999999'"},
      {with(kTorchrun, {{"LOCAL_RANK", ""}}), "LOCAL_RANK is not set"},
      {with(kTorchrun, {{"LOCAL_RANK", "4"}}),
       "LOCAL_RANK: found 4, expected a number below LOCAL_WORLD_SIZE, which is 4"},
      {with(kTorchrun, {{"LOCAL_RANK", "8"}}), "LOCAL_RANK: found 8, expected a number below WORLD_SIZE"},
      {with(kTorchrun, {{"LOCAL_WORLD_SIZE", "9"}}),
       "LOCAL_WORLD_SIZE: 9 processes on this host, which is more than all, 8"},
      {with(kTorchrun, {{"MASTER_ADDR", ""}}), "MASTER_ADDR is not set"},
      {with(kTorchrun, {{"MASTER_PORT", ""}}), "MASTER_PORT is not set"},
      {with(kTorchrun, {{"MASTER_PORT", "70000"}}), "MASTER_PORT: found '70000', expected an integer from 1 to 65535"},
      {with(kTorchrun, {{"HEDDLE_TOKEN", std::string(257, 'x')}}),
       "HEDDLE_TOKEN: found 257 bytes, expected at most 256"},
      {with(kSlurm, {{"SLURM_LOCALID", ""}}), "SLURM_LOCALID is not set: SLURM_STEP_ID is there"},
      {with(kSlurm, {{"SLURM_PROCID", "16"}}),
       "SLURM_PROCID: found 16, expected a number below SLURM_NTASKS, which is 16"},
      {with(kSlurm, {{"SLURM_JOB_NODELIST", "gpu[1-"}}), "the list of hosts 'gpu[1-' has a bracket that is not closed"},
      {with(kSlurm, {{"SLURM_JOB_NODELIST", ""}}), "SLURM_JOB_NODELIST is not set"},
      {with(kSlurm, {{"SLURM_JOB_ID", "x"}}), "SLURM_JOB_ID: found 'x', expected an integer"},
      {with(kOpenMpi, {{"OMPI_COMM_WORLD_RANK", ""}}), "OMPI_COMM_WORLD_RANK is not set"},
      {with(kOpenMpi, {{"OMPI_COMM_WORLD_LOCAL_SIZE", "1"}}),
       "OMPI_COMM_WORLD_LOCAL_RANK: found 1, expected a number below OMPI_COMM_WORLD_LOCAL_SIZE, which is 1"},
      {with(kOpenMpi, {{"RANK", "0"}, {"WORLD_SIZE", "1"}}), "RANK=0 contradicts OMPI_COMM_WORLD_RANK=1"},
      {with(kOpenMpi, {{"RANK", "1"}, {"WORLD_SIZE", "1"}}), "WORLD_SIZE=1 contradicts OMPI_COMM_WORLD_SIZE=2"},
  };
  for (const Wrong& wrong : all) EXPECT_THAT(error_of(wrong.environment), HasSubstr(wrong.message));
  EXPECT_THAT(error_of(kTorchrun, DeviceType::cpu),
              AllOf(HasSubstr("RANK=5 and WORLD_SIZE=8"), HasSubstr("mpirun -n 8")));
}

TEST(NodeList, IsExpanded) {
  EXPECT_THAT(expand_node_list("node[01-03,7]"), ElementsAre("node01", "node02", "node03", "node7"));
  EXPECT_THAT(expand_node_list("a,b[9-11],c"), ElementsAre("a", "b9", "b10", "b11", "c"));
  EXPECT_THAT(expand_node_list("rack[1-2]node[1,3].x"),
              ElementsAre("rack1node1.x", "rack1node3.x", "rack2node1.x", "rack2node3.x"));
  EXPECT_THAT(expand_node_list("node7"), ElementsAre("node7"));
  EXPECT_THAT(expand_node_list("n[08-10]"), ElementsAre("n08", "n09", "n10"));
  EXPECT_EQ(expand_node_list("n[0-65535]").size(), 65536u);
}

TEST(NodeList, WhatIsWrongIsShown) {
  for (const char* list : {"", ",", "a,,b", "n[1-", "n1]", "n[]", "n[a-b]", "n[3-1]", "n[1-2-3]", "n[0-65536]",
                           "n[0-99999999999999999999]", "n[0-999]m[0-999]", "n[1],"}) {
    EXPECT_THROW(expand_node_list(list), UsageError) << list;
  }
  EXPECT_THAT([] { expand_node_list("n[3-1]"); },
              ThrowsMessage<UsageError>(HasSubstr("the list of hosts 'n[3-1]' has a range that runs backwards")));
}

}  // namespace
}  // namespace heddle
