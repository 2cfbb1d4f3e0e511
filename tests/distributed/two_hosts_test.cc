// Processes on two hosts, which are two network namespaces of this one, and a cable between them that is cut.
#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/distributed/control_channel.h"
#include "core/distributed/rendezvous.h"
#include "core/distributed/socket.h"
#include "tests/distributed/own_processes.h"

namespace heddle {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

bool run(const std::string& command) { return std::system((command + " > /dev/null 2>&1").c_str()) == 0; }

// Two namespaces with the addresses 10.123.7.1 and 10.123.7.2.
class TwoHosts {
 public:
  TwoHosts() {
    is_there_ = ::geteuid() == 0 && run("ip netns add " + name(0)) && run("ip netns add " + name(1)) &&
                run(fmt::format("ip link add eth7 netns {} type veth peer name eth7 netns {}", name(0), name(1)));
    for (const int host : {0, 1}) {
      is_there_ = is_there_ && run(fmt::format("ip -n {} link set lo up", name(host))) &&
                  run(fmt::format("ip -n {} addr add 10.123.7.{}/24 dev eth7", name(host), host + 1)) &&
                  run(fmt::format("ip -n {} link set eth7 up", name(host)));
    }
  }
  ~TwoHosts() {
    for (const int host : {0, 1}) run("ip netns del " + name(host));
  }
  TwoHosts(const TwoHosts&) = delete;
  TwoHosts& operator=(const TwoHosts&) = delete;

  bool is_there() const { return is_there_; }
  std::string name(int host) const { return fmt::format("heddle{}_{}", pid_, host); }
  // Nothing arrives any more, and nobody is told.
  bool cut() const { return run(fmt::format("ip -n {} link set eth7 down", name(1))); }
  // Moves the calling process to a host.
  void enter(int host) const {
    const Descriptor space(::open(("/var/run/netns/" + name(host)).c_str(), O_RDONLY | O_CLOEXEC));
    if (!space || ::setns(space.get(), CLONE_NEWNET) != 0) throw std::runtime_error("cannot enter the namespace");
  }

 private:
  const pid_t pid_ = ::getpid();  // of the test, also in the processes that it starts
  bool is_there_ = false;
};

TEST(TwoHosts, ACutCableEndsAllWithin30Seconds) {
  const TwoHosts hosts;
  if (!hosts.is_there()) GTEST_SKIP() << "needs root and network namespaces";
  std::vector<std::unique_ptr<testing::OwnProcess>> processes;
  for (int rank = 0; rank < 4; ++rank) {
    processes.push_back(std::make_unique<testing::OwnProcess>([&hosts, rank] {
      hosts.enter(rank / 2);
      Launch launch;
      launch.kind = Launch::Kind::nccl;
      launch.rank = rank;
      launch.world_size = 4;
      launch.local_rank = rank % 2;
      launch.local_size = 2;
      launch.master_addr = "10.123.7.1";
      launch.master_port = 29507;
      launch.token = "token";
      ControlChannel channel(meet(launch));
      channel.all_gather("");
      std::fprintf(stderr, "met\n");
      std::fflush(stderr);
      while (true) {
        channel.all_gather("step");
        std::this_thread::sleep_for(milliseconds(20));
      }
    }));
  }
  for (const auto& process : processes) {
    for (int i = 0; i < 2000 && process->err().empty(); ++i) std::this_thread::sleep_for(milliseconds(5));
    ASSERT_EQ(process->err(), "met\n");
  }
  ASSERT_TRUE(hosts.cut());
  const auto begin = Clock::now();
  for (const auto& process : processes) {
    ASSERT_TRUE(process->wait_for(seconds(40)));
    EXPECT_EQ(process->code(), 1);
  }
  EXPECT_LT(Clock::now() - begin, seconds(30));
  for (int rank = 0; rank < 4; ++rank) {
    const std::string err = processes[static_cast<size_t>(rank)]->err();
    EXPECT_THAT(err, HasSubstr("nothing was heard of it for 20 s: it is stopped, or the network to it is cut")) << rank;
    if (rank < 2) {
      EXPECT_THAT(err, ::testing::ContainsRegex("error: rank [23] on " + host_name())) << rank;
    } else {
      EXPECT_THAT(err, HasSubstr("error: rank 0 on 10.123.7.1")) << rank;
    }
  }
}

// The master of a run on several hosts cannot be known by an address that means another host on each of them.
TEST(TwoHosts, ANameOfTheLoopbackInterfaceIsRefused) {
  EXPECT_FALSE(is_hidden_loopback("127.0.0.1"));
  EXPECT_FALSE(is_hidden_loopback("localhost"));
  EXPECT_FALSE(is_hidden_loopback("::1"));
  EXPECT_FALSE(is_hidden_loopback("192.0.2.1"));
  EXPECT_FALSE(is_hidden_loopback("no.such.host.invalid"));
}

}  // namespace
}  // namespace heddle
