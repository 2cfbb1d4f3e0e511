// What a command writes: messages may be lost, results may not, and files are replaced only where they are files.
#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "core/io/atomic_file.h"
#include "tests/cli/process.h"
#include "tests/trainers/test_config.h"
#include "trainers/run/checkpoint.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::Process;
using testing::run_heddle;
using testing::Streams;

class StreamsTest : public ::testing::Test {
 protected:
  StreamsTest() { std::ofstream(folder_ / "tiny.yaml") << testing::tiny_config(); }

  std::vector<std::string> train(const std::string& out) const {
    return {
        "train", (folder_ / "tiny.yaml").string(), "--out", (folder_ / out).string(), "--device", "cpu", "--threads",
        "1"};
  }
  void expect_trained(const std::string& run) const {
    EXPECT_NO_THROW(open_checkpoint(folder_ / run / "checkpoints" / "step_40"));
    EXPECT_THAT(read_file(folder_ / run / "metrics.csv"), HasSubstr("\n40,"));
  }
  // A small benchmark of memory, which takes no time.
  std::vector<std::string> bench(const std::string& csv) const {
    return {"bench",      HEDDLE_SOURCE_DIR "/configs/bench/srms_norm.yaml",
            "--n",        "1024",
            "--config",   "plain",
            "--quantity", "memory",
            "--csv",      csv};
  }

  testing::TempFolder folder_;
};

// Neither would be seen on a terminal, which a message from a file could otherwise color or clear, too.
TEST_F(StreamsTest, ControlCharactersOfAMessageAreShown) {
  EXPECT_THAT(run_heddle({"plot", "a\r\x1b[2Jb"}).err, HasSubstr("error: a\\x0d\\x1b[2Jb: there is no such"));
}

TEST_F(StreamsTest, MessagesThatCannotBeWrittenEndNoTraining) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "there is no /dev/full";
  EXPECT_EQ(run_heddle(train("full"), {.err = "/dev/full"}).code, 0);
  expect_trained("full");
  EXPECT_EQ(run_heddle(train("closed"), {.err = Streams::kClosed}).code, 0);
  expect_trained("closed");
  EXPECT_EQ(read_file(folder_ / "full/metrics.csv"), read_file(folder_ / "closed/metrics.csv"));
}

TEST_F(StreamsTest, AReaderOfMessagesThatGoesAwayEndsNoTraining) {
  const fs::path pipe = folder_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  Process process(train("run"), {.err = pipe.string()});
  ::close(reader);
  EXPECT_EQ(process.wait(), 0);
  expect_trained("run");
}

TEST_F(StreamsTest, ResultsThatCannotBeWrittenAreAFailure) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "there is no /dev/full";
  ASSERT_EQ(run_heddle(train("run")).code, 0);
  const std::string run = (folder_ / "run").string();
  for (const std::vector<std::string>& command : {std::vector<std::string>{"info"},
                                                  {"eval", run, "--device", "cpu"},
                                                  {"--help"},
                                                  {"gradcheck", "embedding"},
                                                  {"gradcheck", "--list"},
                                                  {"gradcheck", "rms_norm"},  // more than the stream holds back
                                                  bench((folder_ / "rows.csv").string())}) {
    for (const std::string& out : {std::string("/dev/full"), std::string(Streams::kClosed)}) {
      const testing::Finished finished = run_heddle(command, {.out = out});
      EXPECT_EQ(finished.code, 1) << command[0] << " " << out;
      EXPECT_THAT(finished.err, HasSubstr("error: cannot write to stdout: ")) << command[0] << " " << out;
    }
  }
}

// `ulimit -f`: the system would end the process by SIGXFSZ, without a word and with a part of the file left behind.
TEST_F(StreamsTest, AFileBeyondTheSizeThatIsAllowedIsAFailure) {
  const std::string config = (folder_ / "tiny.yaml").string(), err = (folder_ / "err").string();
  const auto limited = [&](const std::string& command) {
    return std::system(fmt::format("bash -c \"trap - XFSZ; ulimit -f 1; exec '{}' {} > /dev/null 2> '{}'\"",
                                   HEDDLE_PROGRAM, command, err)
                           .c_str());
  };
  for (const char* option : {"--json", "--snapshot", "--trace", "--plot"}) {
    const fs::path file = folder_ / "file";
    const int status = limited(fmt::format("memory '{}' {} '{}'", config, option, file.string()));
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1) << option;
    EXPECT_THAT(read_file(err), HasSubstr("File too large")) << option;
    EXPECT_FALSE(fs::exists(file) || fs::exists(partial_path(file))) << option;
  }
}

TEST_F(StreamsTest, ALinkIsFollowed) {
  write_file(folder_ / "rows.csv", "old");
  fs::create_symlink("rows.csv", folder_ / "link.csv");
  fs::create_symlink("new.csv", folder_ / "dangling.csv");
  for (const auto& [link, target] : {std::pair{"link.csv", "rows.csv"}, std::pair{"dangling.csv", "new.csv"}}) {
    ASSERT_EQ(run_heddle(bench((folder_ / link).string())).code, 0);
    EXPECT_TRUE(fs::is_symlink(folder_ / link));
    EXPECT_THAT(read_file(folder_ / target), ::testing::StartsWith("suite,"));
  }
}

// A program that reads stdout finds the file there and nothing else: the table for people goes to stderr.
TEST_F(StreamsTest, AFileOnStdoutIsAloneThere) {
  fs::create_symlink("/dev/stdout", folder_ / "link");
  for (const std::string& out :
       {std::string("-"), std::string("/dev/stdout"), std::string("/dev/fd/1"), (folder_ / "link").string()}) {
    const testing::Finished rows = run_heddle(bench(out));
    EXPECT_EQ(rows.code, 0) << rows.err;
    EXPECT_THAT(rows.out, ::testing::StartsWith("suite,")) << out;
    EXPECT_THAT(rows.err, HasSubstr("plain")) << out;
    const testing::Finished memory = run_heddle({"memory", HEDDLE_SOURCE_DIR "/configs/toy_copy.yaml", "--json", out});
    EXPECT_EQ(memory.code, 0) << memory.err;
    EXPECT_THAT(memory.out, ::testing::StartsWith("{")) << out;
    EXPECT_THAT(memory.err, HasSubstr("peak")) << out;
  }
  // Where it goes elsewhere, they stay where they are looked for.
  EXPECT_THAT(run_heddle(bench("/dev/null")).out, HasSubstr("plain"));
  EXPECT_THAT(run_heddle(bench((folder_ / "-").string())).out, HasSubstr("plain"));
  EXPECT_TRUE(fs::exists(folder_ / "-"));
}

TEST_F(StreamsTest, WhatIsNoFileIsWrittenThrough) {
  const fs::path pipe = folder_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  EXPECT_EQ(run_heddle(bench(pipe.string())).code, 0);
  std::string read(1 << 16, '\0');
  const ssize_t bytes = ::read(reader, read.data(), read.size());
  ::close(reader);
  EXPECT_TRUE(fs::is_fifo(pipe));
  ASSERT_GT(bytes, 0);
  EXPECT_THAT(read, ::testing::StartsWith("suite,"));

  EXPECT_EQ(run_heddle(bench("/dev/null")).code, 0);
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

}  // namespace
}  // namespace heddle
