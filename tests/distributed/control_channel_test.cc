// What processes say to each other, and that they notice when one of them is gone.
#include "core/distributed/control_channel.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <future>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/distributed/rendezvous.h"
#include "core/distributed/socket.h"
#include "core/runtime/error.h"
#include "tests/distributed/launch_of.h"
#include "tests/distributed/own_processes.h"

namespace heddle {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::launch_of;

ControlChannelOptions quick() {
  ControlChannelOptions options;
  options.heartbeat = milliseconds(50);
  options.expire = [](const std::string&) {};
  return options;
}

// Runs `body` for each process, on a thread of its own; returns what each threw.
template <class Body>
std::vector<std::string> run_all(int world_size, const Body& body, const ControlChannelOptions& options = quick()) {
  const uint16_t port = port_of(listen_on("127.0.0.1", 0));
  std::vector<std::string> errors(static_cast<size_t>(world_size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        ControlChannel channel(meet(launch_of(rank, world_size, port)), options);
        body(channel);
      } catch (const std::exception& error) {
        errors[static_cast<size_t>(rank)] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

TEST(ControlChannelThreaded, GathersWhatAllSay) {
  for (const int world_size : {1, 2, 4}) {
    const auto errors = run_all(world_size, [&](ControlChannel& channel) {
      for (int i = 0; i < 200; ++i) {
        const auto said = [&](int rank) { return fmt::format("{} of {}", i, rank) + std::string(rank * 1000, 'x'); };
        const std::vector<std::string> all = channel.all_gather(said(channel.rank()));
        ASSERT_EQ(all.size(), static_cast<size_t>(world_size));
        for (int rank = 0; rank < world_size; ++rank) ASSERT_EQ(all[static_cast<size_t>(rank)], said(rank));
      }
      const std::string long_one(size_t{5} << 20, static_cast<char>('a' + channel.rank()));
      ASSERT_EQ(channel.all_gather(long_one)[static_cast<size_t>(channel.rank())], long_one);
      ASSERT_EQ(channel.all_gather("").size(), static_cast<size_t>(world_size));
      EXPECT_THROW(channel.all_gather(std::string(size_t{64} << 20, 'x')), Error);
    });
    for (const std::string& error : errors) EXPECT_EQ(error, "");
  }
}

// The result of a last call reaches everyone, although process 0 leaves at once.
TEST(ControlChannelThreaded, NothingIsLostAtTheEnd) {
  for (int i = 0; i < 30; ++i) {
    const auto errors = run_all(3, [](ControlChannel& channel) { channel.all_gather("last"); });
    for (const std::string& error : errors) ASSERT_EQ(error, "");
  }
}

TEST(ControlChannelThreaded, WhoEndsWithAnErrorIsNamed) {
  const auto errors = run_all(3, [](ControlChannel& channel) {
    channel.all_gather("");
    if (channel.rank() == 1) throw std::runtime_error("out of memory");
    channel.all_gather("");
  });
  EXPECT_EQ(errors[1], "out of memory");
  for (const int rank : {0, 2}) {
    EXPECT_THAT(errors[static_cast<size_t>(rank)],
                AllOf(HasSubstr("rank 1 on " + host_name()), HasSubstr("it ended with an error")));
  }
}

TEST(ControlChannelThreaded, AReasonReachesAll) {
  for (const int failing : {0, 2}) {
    const auto errors = run_all(3, [&](ControlChannel& channel) {
      if (channel.rank() == failing) channel.fail("the disk is full");
      channel.all_gather("");
    });
    for (const std::string& error : errors) {
      EXPECT_THAT(error, AllOf(HasSubstr(fmt::format("rank {} on", failing)), HasSubstr(": the disk is full")));
    }
  }
}

TEST(ControlChannelThreaded, WhoHasLeftIsNotWaitedFor) {
  for (const int leaving : {0, 1}) {
    const auto errors = run_all(2, [&](ControlChannel& channel) {
      if (channel.rank() == leaving) return;
      std::this_thread::sleep_for(milliseconds(300));
      EXPECT_EQ(channel.failure(), "") << "to leave is no failure";
      channel.all_gather("");
    });
    EXPECT_EQ(errors[static_cast<size_t>(leaving)], "");
    EXPECT_THAT(errors[static_cast<size_t>(1 - leaving)],
                AllOf(HasSubstr(fmt::format("rank {} on", leaving)), HasSubstr("it has ended, and others still wait")));
  }
}

TEST(ControlChannelThreaded, WhatTheWatchFindsIsAFailure) {
  std::atomic<int> aborted = 0;
  ControlChannelOptions options = quick();
  options.on_failure = [&] { ++aborted; };
  const uint16_t port = port_of(listen_on("127.0.0.1", 0));
  auto other = std::async(std::launch::async, [&] {
    ControlChannel channel(meet(launch_of(1, 2, port)), options);
    EXPECT_THROW(channel.all_gather(""), Error);
    return channel.failure();
  });
  ControlChannelOptions watched = options;
  watched.watch = [] { return std::string("a remote process exited or there was a network error"); };
  ControlChannel channel(meet(launch_of(0, 2, port)), watched);
  EXPECT_THAT(other.get(), AllOf(HasSubstr("rank 0 on"), HasSubstr("network error")));
  EXPECT_THROW(channel.check(), Error);
  EXPECT_EQ(aborted, 2);
}

// What fails without knowing why waits for the channel to know.
TEST(ControlChannelThreaded, ALossIsWaitedFor) {
  const auto errors = run_all(2, [](ControlChannel& channel) {
    channel.check(milliseconds(20));
    channel.all_gather("");
    if (channel.rank() == 0) return channel.check(seconds(20));
    std::this_thread::sleep_for(milliseconds(200));
    throw std::runtime_error("");
  });
  EXPECT_THAT(errors[0], HasSubstr("rank 1 on"));
}

// A process that does not notice a loss by itself is ended.
TEST(ControlChannelThreaded, TheGraceIsOverOnce) {
  ControlChannelOptions options = quick();
  options.grace = milliseconds(200);
  std::promise<std::string> expired;
  options.expire = [&](const std::string& failure) { expired.set_value(failure); };
  const uint16_t port = port_of(listen_on("127.0.0.1", 0));
  std::thread other([&] {
    try {
      ControlChannel channel(meet(launch_of(1, 2, port)), quick());
      throw std::runtime_error("");
    } catch (const std::runtime_error&) {
    }
  });
  ControlChannel channel(meet(launch_of(0, 2, port)), options);
  EXPECT_THAT(expired.get_future().get(), HasSubstr("rank 1 on"));
  other.join();
}

// ---- processes ----

// A process that takes part for as long as nothing happens.
void take_part(const Launch& launch, ControlChannelOptions options = {}) {
  ControlChannel channel(meet(launch), std::move(options));
  while (true) {
    channel.all_gather("");
    std::this_thread::sleep_for(milliseconds(20));
  }
}

void await_line(const testing::OwnProcess& process, const std::string& text) {
  for (int i = 0; i < 1000 && process.err().find(text) == std::string::npos; ++i) {
    std::this_thread::sleep_for(milliseconds(5));
  }
  ASSERT_THAT(process.err(), HasSubstr(text));
}

using Processes = std::vector<std::unique_ptr<testing::OwnProcess>>;

Processes start(int world_size, const ControlChannelOptions& options) {
  const uint16_t port = port_of(listen_on("127.0.0.1", 0));
  Processes processes;
  for (int rank = 0; rank < world_size; ++rank) {
    processes.push_back(std::make_unique<testing::OwnProcess>([=] {
      ControlChannel channel(meet(launch_of(rank, world_size, port)), options);
      channel.all_gather("");
      std::fprintf(stderr, "met\n");
      std::fflush(stderr);
      while (true) {
        channel.all_gather("");
        std::this_thread::sleep_for(milliseconds(20));
      }
    }));
  }
  for (const auto& process : processes) await_line(*process, "met");
  return processes;
}

TEST(ControlChannelProcesses, AKilledOneIsNoticedAtOnce) {
  for (const size_t killed : {size_t{0}, size_t{2}}) {
    const Processes processes = start(4, {});
    processes[killed]->send(SIGKILL);
    const auto begin = Clock::now();
    for (size_t rank = 0; rank < processes.size(); ++rank) {
      ASSERT_TRUE(processes[rank]->wait_for(seconds(30))) << rank;
      EXPECT_EQ(processes[rank]->code(), rank == killed ? -SIGKILL : 1);
      if (rank == killed) continue;
      EXPECT_THAT(processes[rank]->err(), AllOf(HasSubstr(fmt::format("error: rank {} on", killed)),
                                                HasSubstr("is lost: its connection ended")));
    }
    EXPECT_LT(Clock::now() - begin, seconds(5));
  }
}

TEST(ControlChannelProcesses, AStoppedOneIsNoticed) {
  ControlChannelOptions options;
  options.heartbeat = milliseconds(100);
  options.silence = seconds(5);
  const Processes processes = start(3, options);
  processes[1]->send(SIGSTOP);
  for (const size_t rank : {size_t{0}, size_t{2}}) {
    ASSERT_TRUE(processes[rank]->wait_for(seconds(30))) << rank;
    EXPECT_EQ(processes[rank]->code(), 1);
    EXPECT_THAT(processes[rank]->err(),
                AllOf(HasSubstr("error: rank 1 on"), HasSubstr("nothing was heard of it for 5 s")));
  }
}

// One that computes and never looks, as one that waits for a kernel does, ends as well.
TEST(ControlChannelProcesses, WhoDoesNotLookIsEnded) {
  const uint16_t port = port_of(listen_on("127.0.0.1", 0));
  ControlChannelOptions options;
  options.grace = seconds(1);
  testing::OwnProcess busy([&] {
    const ControlChannel channel(meet(launch_of(0, 2, port)), options);
    std::this_thread::sleep_for(seconds(60));
  });
  testing::OwnProcess other([&] { take_part(launch_of(1, 2, port)); });
  std::this_thread::sleep_for(milliseconds(500));
  other.send(SIGKILL);
  ASSERT_TRUE(busy.wait_for(seconds(30)));
  EXPECT_EQ(busy.code(), 1);
  EXPECT_THAT(busy.err(), HasSubstr("error: rank 1 on"));
}

}  // namespace
}  // namespace heddle
