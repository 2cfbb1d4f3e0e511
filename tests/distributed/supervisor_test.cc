// Processes of one host that end together. Those of these tests are shells.
#include "core/distributed/supervisor.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/runtime/error.h"
#include "tests/distributed/own_processes.h"
#include "tests/interruptible.h"
#include "tests/temp_folder.h"

namespace heddle {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class SupervisorTest : public ::testing::Test {
 protected:
  // A shell whose script may name the folder as $D.
  SupervisedCommand shell(const std::string& script) const {
    return {{"/bin/sh", "-c", script}, {"D=" + folder_.path().string(), "PATH=/usr/bin:/bin", "RANK_OF_TEST=1"}};
  }
  SupervisorOptions quick() const {
    SupervisorOptions options;
    options.patience = milliseconds(500);
    options.last_patience = milliseconds(500);
    return options;
  }
  // The exit code of supervise(), which runs in a process of its own, whose stderr is `err_`.
  int supervise_all(const std::vector<std::string>& scripts) {
    start(scripts);
    return finish();
  }
  void start(const std::vector<std::string>& scripts) {
    process_ = std::make_unique<testing::OwnProcess>([this, scripts] {
      [[maybe_unused]] std::FILE* out = std::freopen((folder_ / "out").c_str(), "w", stdout);
      std::vector<SupervisedCommand> commands;
      for (const std::string& script : scripts) commands.push_back(shell(script));
      const int code = supervise(commands, quick());
      std::fflush(nullptr);
      ::_exit(code);
    });
  }
  int finish() {
    EXPECT_TRUE(process_->wait_for(seconds(30)));
    err_ = process_->err();
    return process_->code();
  }
  std::string file(const std::string& name) const {
    std::ifstream stream(folder_ / name);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  void await_file(const std::string& name) const {
    for (int i = 0; i < 2000 && file(name).empty(); ++i) std::this_thread::sleep_for(milliseconds(5));
    ASSERT_NE(file(name), "") << name;
  }
  // Whether the process with the id that the file holds still runs: one that has ended may wait for its parent.
  bool is_alive(const std::string& name) const {
    std::ifstream status("/proc/" + std::to_string(std::stoi(file(name))) + "/status");
    std::string word;
    while (status >> word && word != "State:") {
    }
    return status >> word && word != "Z" && word != "X";
  }

  testing::TempFolder folder_;
  std::unique_ptr<testing::OwnProcess> process_;
  std::string err_;
};

TEST_F(SupervisorTest, TheStreamsOfTheFirstAreOurs) {
  EXPECT_EQ(
      supervise_all({"echo result; echo progress >&2; cat; echo \"$RANK_OF_TEST\"",
                     "echo result; echo progress >&2; echo 'error: a thing' >&2; printf 'note: x\\nerror: no end'"}),
      0);
  EXPECT_EQ(file("out"), "result\n1\n");
  EXPECT_THAT(err_, HasSubstr("progress\n"));
  EXPECT_THAT(err_, AllOf(HasSubstr("rank 1: error: a thing\n"), HasSubstr("rank 1: error: no end\n")));
  EXPECT_THAT(err_, AllOf(Not(HasSubstr("rank 1: progress")), Not(HasSubstr("rank 1: note"))));
}

TEST_F(SupervisorTest, OneThatFailsIsNamedAndEndsAll) {
  const auto begin = steady_clock::now();
  EXPECT_EQ(supervise_all({"echo $$ > $D/a; exec sleep 60", "echo $$ > $D/b; echo before >&2; sleep 0.3; exit 3",
                           "trap '' TERM; echo $$ > $D/c; while :; do sleep 0.1; done"}),
            3);
  EXPECT_LT(steady_clock::now() - begin, seconds(10));
  EXPECT_THAT(err_, HasSubstr("error: rank 1 (pid " + file("b").substr(0, file("b").size() - 1) +
                              ") ended with exit code 3\n"));
  EXPECT_THAT(err_, HasSubstr("rank 1: before\n")) << "what it wrote last";
  EXPECT_FALSE(is_alive("a"));
  EXPECT_FALSE(is_alive("c")) << "SIGKILL, where SIGTERM does not help";
}

TEST_F(SupervisorTest, ASignalThatEndsOneIsNamed) {
  EXPECT_EQ(supervise_all({"exec sleep 60", "exec sleep 60", "kill -9 $$"}), 1);
  EXPECT_THAT(err_, AllOf(HasSubstr("error: rank 2 (pid "), HasSubstr(") was ended by signal 9 (Killed)\n")));
}

// Others that fail because of the first are not named.
TEST_F(SupervisorTest, TheFirstFailureCounts) {
  EXPECT_EQ(supervise_all({"sleep 0.4; exit 1", "exit 2"}), 2);
  EXPECT_THAT(err_, AllOf(HasSubstr("error: rank 1 (pid "), Not(HasSubstr("error: rank 0"))));
}

TEST_F(SupervisorTest, WhoHangsAfterTheFirstHasEndedIsEnded) {
  EXPECT_EQ(supervise_all({"exit 0", "exec sleep 60"}), 1);
  EXPECT_THAT(err_, HasSubstr("error: rank 1 (pid "));
}

TEST_F(SupervisorTest, RequestsGoToTheFirstAlone) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    start({"trap 'echo stop > $D/stopped; exit 130' INT TERM HUP; echo > $D/ready0; while :; do sleep 0.05; done",
           "trap 'echo wrong > $D/wrong' INT TERM HUP; echo > $D/ready1; while [ ! -s $D/stopped ]; do sleep 0.05; "
           "done; exit 130"});
    await_file("ready0");
    await_file("ready1");
    process_->send(signal);
    EXPECT_EQ(finish(), 130);
    EXPECT_EQ(file("stopped"), "stop\n");
    EXPECT_EQ(file("wrong"), "");
    EXPECT_EQ(err_, "");
    for (const char* name : {"ready0", "ready1", "stopped"}) std::filesystem::remove(folder_ / name);
  }
}

TEST_F(SupervisorTest, ARequestForACheckpointEndsNothing) {
  start({"trap 'echo > $D/saved' USR1; echo > $D/ready; while [ ! -s $D/saved ]; do sleep 0.05; done",
         "trap 'echo > $D/wrong' USR1; while [ ! -s $D/saved ]; do sleep 0.05; done"});
  await_file("ready");
  process_->send(SIGUSR1);
  EXPECT_EQ(finish(), 0);
  EXPECT_EQ(file("wrong"), "");
}

TEST_F(SupervisorTest, ASecondRequestEndsAllAtOnce) {
  start({"trap '' INT TERM; echo $$ > $D/a; while :; do sleep 0.1; done",
         "trap '' INT TERM; echo $$ > $D/b; while :; do sleep 0.1; done"});
  await_file("a");
  await_file("b");
  process_->send(SIGINT);
  std::this_thread::sleep_for(milliseconds(200));
  process_->send(SIGINT);
  const auto begin = steady_clock::now();
  EXPECT_EQ(finish(), 130);
  EXPECT_LT(steady_clock::now() - begin, seconds(8));
  EXPECT_FALSE(is_alive("a"));
  EXPECT_FALSE(is_alive("b"));
}

TEST_F(SupervisorTest, WithoutTheSupervisorTheyEnd) {
  start({"echo $$ > $D/a; exec sleep 60", "echo $$ > $D/b; exec sleep 60"});
  await_file("a");
  await_file("b");
  process_->send(SIGKILL);
  ASSERT_TRUE(process_->wait_for(seconds(10)));
  for (int i = 0; i < 1000 && (is_alive("a") || is_alive("b")); ++i) std::this_thread::sleep_for(milliseconds(5));
  EXPECT_FALSE(is_alive("a"));
  EXPECT_FALSE(is_alive("b"));
}

// As under nohup.
TEST_F(SupervisorTest, WhatIsIgnoredStaysIgnored) {
  const auto before = ::signal(SIGHUP, SIG_IGN);
  start({"echo > $D/ready; sleep 0.5; kill -HUP $$; exit 0"});
  ::signal(SIGHUP, before);
  await_file("ready");
  process_->send(SIGHUP);
  EXPECT_EQ(finish(), 0);
}

TEST_F(SupervisorTest, AProgramThatIsNotThereIsNamed) {
  try {
    supervise({{{"/bin/sleep", "60"}, {}}, {{"/no/such/program"}, {}}}, quick());
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "cannot start /no/such/program: No such file or directory");
  }
}

TEST(SupervisorLines, Errors) {
  for (const char* line :
       {"error: x", "terminate called after throwing", "  what():  x", "==1==ERROR: AddressSanitizer: x",
        "a.cc:1: runtime error: overflow", "host:1:2 [0] NCCL WARN x"}) {
    EXPECT_TRUE(tells_of_error(line)) << line;
  }
  for (const char* line : {"note: x", "step 1/2", "an error", ""}) EXPECT_FALSE(tells_of_error(line)) << line;
}

}  // namespace
}  // namespace heddle
