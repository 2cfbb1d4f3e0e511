// Processes find each other, whoever else knocks.
#include "core/distributed/rendezvous.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/distributed/frame.h"
#include "core/distributed/socket.h"
#include "core/runtime/error.h"
#include "tests/distributed/launch_of.h"

namespace heddle {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::launch_of;

// A port that was free a moment ago.
uint16_t free_port() { return port_of(listen_on("127.0.0.1", 0)); }

// One process of a run, on a thread.
class Member {
 public:
  explicit Member(const Launch& launch, RendezvousOptions options = {})
      : launch_(launch), options_(std::move(options)) {
    options_.stop_requested = [this] { return stop_.load(); };
    thread_ = std::thread([this] {
      try {
        meeting_ = meet(launch_, options_);
      } catch (const std::exception& error) {
        error_ = error.what();
      }
      is_done_ = true;
    });
  }
  ~Member() {
    stop_ = true;
    thread_.join();
  }
  Member(const Member&) = delete;
  Member& operator=(const Member&) = delete;

  bool is_done() const { return is_done_; }
  void stop() { stop_ = true; }
  // "" when it has met the others.
  std::string error() {
    while (!is_done_) std::this_thread::sleep_for(milliseconds(2));
    return error_;
  }
  const Meeting& meeting() {
    EXPECT_EQ(error(), "");
    return *meeting_;
  }

 private:
  Launch launch_;
  RendezvousOptions options_;
  std::atomic<bool> stop_ = false, is_done_ = false;
  std::optional<Meeting> meeting_;
  std::string error_;
  std::thread thread_;
};

// A connection of somebody else.
Descriptor knock(uint16_t port, const std::string& bytes) {
  std::string why;
  for (int i = 0; i < 500; ++i) {
    Descriptor socket = connect_to("127.0.0.1", port, seconds(1), why);
    if (socket) {
      send_all(socket, bytes, Clock::now() + seconds(1));
      return socket;
    }
    std::this_thread::sleep_for(milliseconds(10));
  }
  ADD_FAILURE() << why;
  return {};
}

// What arrives until the other end closes; nothing when it does not within some seconds.
std::optional<std::string> answer(const Descriptor& socket, seconds limit = seconds(10)) {
  std::string bytes;
  const auto deadline = Clock::now() + limit;
  while (Clock::now() < deadline) {
    pollfd waited{socket.get(), POLLIN, 0};
    if (::poll(&waited, 1, 20) <= 0) continue;
    char buffer[4096];
    const ssize_t count = ::recv(socket.get(), buffer, sizeof(buffer), 0);
    if (count <= 0) return bytes;
    bytes.append(buffer, static_cast<size_t>(count));
  }
  return {};
}

std::string hello(uint32_t version, uint32_t world_size, uint32_t rank, const std::string& token,
                  const std::string& host = "elsewhere") {
  PayloadWriter payload;
  payload.add(version).add(world_size).add(rank).add(77).add(token).add(host);
  return encode(FrameKind::hello, payload.bytes());
}

TEST(RendezvousThreaded, AllMeet) {
  for (const int world_size : {2, 3, 4}) {
    const uint16_t port = free_port();
    std::vector<std::unique_ptr<Member>> members;
    for (int rank = world_size - 1; rank >= 0; --rank) {
      members.push_back(std::make_unique<Member>(launch_of(rank, world_size, port)));
      std::this_thread::sleep_for(milliseconds(30));  // the master comes last
    }
    for (const auto& member : members) {
      const Meeting& meeting = member->meeting();
      EXPECT_EQ(meeting.world_size, world_size);
      EXPECT_EQ(meeting.peers.size(), meeting.rank == 0 ? static_cast<size_t>(world_size - 1) : 1u);
      for (const auto& [rank, peer] : meeting.peers) {
        EXPECT_TRUE(static_cast<bool>(peer.socket));
        EXPECT_EQ(meeting.rank == 0 ? peer.host : host_name(), host_name());
      }
    }
    std::string why;
    EXPECT_FALSE(static_cast<bool>(connect_to("127.0.0.1", port, seconds(1), why))) << "nobody listens any more";
  }
}

TEST(RendezvousThreaded, TheMasterListensAtItsAddressAlone) {
  const uint16_t port = free_port();
  Member master(launch_of(0, 2, port));
  knock(port, "");
  std::string why;
  EXPECT_FALSE(static_cast<bool>(connect_to("127.0.0.2", port, seconds(1), why)));
  EXPECT_FALSE(static_cast<bool>(connect_to("::1", port, seconds(1), why)));
}

TEST(RendezvousThreaded, StrangersAreDroppedWithoutAWord) {
  const uint16_t port = free_port();
  RendezvousOptions options;
  options.greeting = milliseconds(700);
  Member master(launch_of(0, 2, port), options);
  std::vector<Descriptor> silent;
  for (int i = 0; i < 200; ++i) silent.push_back(knock(port, ""));
  const std::string whole = hello(1, 2, 1, "token");
  std::string too_long = encode(FrameKind::hello, std::string(1025, 'x'));
  std::string huge = encode(FrameKind::hello, "");
  huge[11] = '\x7f';  // a payload of 2 GB
  std::string nested = whole;
  nested[28] = '\xff';  // a token that is longer than the frame
  const std::vector<std::string> strangers = {
      "GET / HTTP/1.1\r\n\r\n",
      std::string(100000, '\0'),
      std::string(100000, '\xff'),
      whole.substr(0, whole.size() - 1),  // never whole
      whole.substr(0, 5),
      too_long,
      huge,
      nested,
      encode(FrameKind::heartbeat),
      encode(FrameKind::complete),
      encode(FrameKind::gather, "x"),
      hello(1, 2, 1, "Token"),
      hello(1, 2, 1, "tokeN"),
      hello(1, 2, 1, "toke"),
      hello(1, 2, 1, "tokens"),
      hello(1, 2, 1, ""),
      hello(9, 9, 9, "wrong"),
      encode(FrameKind::hello, ""),
      whole.substr(0, 12) + "xxxx" + whole.substr(16) + "more",
  };
  for (size_t i = 0; i < strangers.size(); ++i) {
    const Descriptor socket = knock(port, strangers[i]);
    if (i < 5) ::shutdown(socket.get(), SHUT_WR);
    const auto answered = answer(socket);
    if (i + 1 == strangers.size()) continue;  // another version, refused with a reason
    ASSERT_TRUE(answered.has_value()) << i << ": still open";
    EXPECT_EQ(*answered, "") << i;
  }
  EXPECT_EQ(answer(silent.back()), "") << "half-open connections end, too";
  EXPECT_FALSE(master.is_done());
  Member other(launch_of(1, 2, port));
  EXPECT_EQ(other.meeting().peers.size(), 1u);
  EXPECT_EQ(master.meeting().peers.size(), 1u);
}

// Connections that say nothing, many more than are kept, keep nobody from coming.
TEST(RendezvousThreaded, ACrowdThatSaysNothingBlocksNobody) {
  const uint16_t port = free_port();
  Member master(launch_of(0, 3, port));
  std::atomic<bool> stop = false;
  std::thread crowd([&] {
    std::vector<Descriptor> sockets;
    std::string why;
    while (!stop) {
      sockets.push_back(connect_to("127.0.0.1", port, seconds(1), why));
      if (sockets.size() == 300) sockets.clear();
    }
  });
  const auto begin = Clock::now();
  {
    Member one(launch_of(1, 3, port)), two(launch_of(2, 3, port));
    EXPECT_EQ(one.error(), "");
    EXPECT_EQ(two.error(), "");
    EXPECT_EQ(master.error(), "");
  }
  EXPECT_LT(Clock::now() - begin, seconds(30));
  stop = true;
  crowd.join();
}

TEST(RendezvousThreaded, WhoCannotTakePartIsToldWhy) {
  const uint16_t port = free_port();
  Member master(launch_of(0, 3, port)), first(launch_of(1, 3, port));
  std::this_thread::sleep_for(milliseconds(200));
  const auto refusal = [&](uint32_t version, uint32_t world_size, uint32_t rank) {
    return answer(knock(port, hello(version, world_size, rank, "token"))).value_or("still open");
  };
  EXPECT_THAT(refusal(1, 3, 1), HasSubstr(fmt::format("{} (pid {}) is rank 1 already", host_name(), ::getpid())));
  EXPECT_THAT(refusal(1, 3, 0), HasSubstr("is rank 0 already"));
  EXPECT_THAT(refusal(1, 3, 3), HasSubstr("there is no rank 3 of 3"));
  EXPECT_THAT(refusal(1, 4, 2), HasSubstr("it was told of 4 processes, and process 0 of 3"));
  EXPECT_THAT(refusal(2, 3, 2), HasSubstr("another version of heddle"));
  Member twin(launch_of(1, 3, port));
  EXPECT_THAT(twin.error(),
              AllOf(HasSubstr("rank 1 on"), HasSubstr("cannot take part"), HasSubstr("is rank 1 already")));
  EXPECT_FALSE(master.is_done());
  Member last(launch_of(2, 3, port));
  EXPECT_EQ(last.error(), "");
  EXPECT_EQ(first.error(), "");
  EXPECT_EQ(master.error(), "");
}

// A process that died while others were still missing may come again under its rank.
TEST(RendezvousThreaded, WhoDiedMayComeAgain) {
  const uint16_t port = free_port();
  Member master(launch_of(0, 3, port));
  auto first = std::make_unique<Member>(launch_of(1, 3, port));
  std::this_thread::sleep_for(milliseconds(200));
  first->stop();
  EXPECT_THAT(first->error(), HasSubstr("stopped before"));
  std::this_thread::sleep_for(milliseconds(400));
  Member again(launch_of(1, 3, port)), last(launch_of(2, 3, port));
  EXPECT_EQ(again.error(), "");
  EXPECT_EQ(last.error(), "");
  EXPECT_EQ(master.meeting().peers.size(), 2u);
}

TEST(RendezvousThreaded, TheErrorNamesTheMissing) {
  const uint16_t port = free_port();
  RendezvousOptions options;
  options.limit = milliseconds(1500);
  Member master(launch_of(0, 6, port), options), one(launch_of(1, 6, port), options),
      four(launch_of(4, 6, port), options);
  knock(port, hello(1, 6, 2, "another"));
  EXPECT_THAT(master.error(),
              AllOf(HasSubstr("ranks 2, 3, 5 of 6 did not come to 127.0.0.1:"), HasSubstr("within 1.5 s"),
                    HasSubstr("1 connections without the token of this run were dropped")));
  EXPECT_THAT(one.error(), HasSubstr("ranks 2, 3, 5 of 6 did not come"));
  EXPECT_THAT(four.error(), HasSubstr("ranks 2, 3, 5 of 6 did not come"));
}

TEST(RendezvousThreaded, AMasterThatIsNotThereIsNamed) {
  const uint16_t port = free_port();
  RendezvousOptions options;
  options.limit = milliseconds(700);
  Member member(launch_of(1, 2, port), options);
  EXPECT_THAT(member.error(), AllOf(HasSubstr("rank 1 on"), HasSubstr(fmt::format("rank 0 at 127.0.0.1:{}", port)),
                                    HasSubstr("within 0.7 s"), HasSubstr("Connection refused")));
}

TEST(RendezvousThreaded, AWrongTokenIsToldOfWhenTheTimeIsOver) {
  const uint16_t port = free_port();
  RendezvousOptions options;
  options.limit = milliseconds(1000);
  Member master(launch_of(0, 2, port));
  Member member(launch_of(1, 2, port, "another"), options);
  EXPECT_THAT(member.error(), HasSubstr("is HEDDLE_TOKEN the same on all hosts?"));
  EXPECT_FALSE(master.is_done());
}

TEST(RendezvousThreaded, AnAddressOfAnotherHostIsNamed) {
  Launch launch = launch_of(0, 2, free_port());
  launch.master_addr = "192.0.2.1";  // of no host
  RendezvousOptions options;
  options.limit = milliseconds(1);
  Member master(launch, options);
  EXPECT_THAT(master.error(),
              AllOf(HasSubstr("cannot listen on 192.0.2.1:"), HasSubstr("it is no address of this host")));
  launch.master_addr = "no.such.host.invalid";
  Member other(launch, options);
  EXPECT_THAT(other.error(), HasSubstr("cannot listen on no.such.host.invalid:"));
}

TEST(RendezvousThreaded, APortInUseIsNamed) {
  const Descriptor taken = listen_on("127.0.0.1", 0);
  RendezvousOptions options;
  options.limit = milliseconds(300);
  Member master(launch_of(0, 2, port_of(taken)), options);
  EXPECT_THAT(master.error(), HasSubstr("another program listens there"));
}

TEST(Rendezvous, RanksAreListed) {
  EXPECT_EQ(list_ranks({}), "");
  EXPECT_EQ(list_ranks({3}), "3");
  EXPECT_EQ(list_ranks({3, 4}), "3, 4");
  EXPECT_EQ(list_ranks({0, 2, 3, 4, 7, 9, 10}), "0, 2-4, 7, 9, 10");
}

}  // namespace
}  // namespace heddle
