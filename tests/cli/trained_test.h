// A run folder to evaluate and to write text with.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "tests/cli/process.h"
#include "tests/trainers/test_config.h"

namespace heddle::testing {

// A model of a line of text, trained for a few steps.
class TrainedTest : public ::testing::Test {
 protected:
  static constexpr const char* kLine = "the quick brown fox jumps over the lazy dog\n";

  TrainedTest() {
    std::ofstream text(text_);
    for (int i = 0; i < 60; ++i) text << kLine;
    text.close();
    training_ = train(run_, {"data={type: text, path: \"" + text_ + "\"}", "model.vocab_size=256",
                             "trainer.sample={prompt: \"the \", tokens: 12, temperature: 0.5}"});
  }

  Finished train(const std::string& run, const std::vector<std::string>& overrides) {
    std::ofstream(folder_ / "tiny.yaml") << tiny_config();
    std::vector<std::string> arguments = {
        "train", (folder_ / "tiny.yaml").string(), "--out", run, "--device", "cpu", "--threads", "1"};
    for (const std::string& text : overrides) arguments.insert(arguments.end(), {"--set", text});
    return run_heddle(arguments);
  }

  // What the command says where a pipe lies in place of this file. Nobody writes into it, so that it would be waited
  // for.
  void expect_no_pipe(const std::string& name, const std::function<Finished()>& command) {
    const std::filesystem::path file = folder_ / name, kept = folder_ / "kept";
    std::filesystem::rename(file, kept);
    EXPECT_EQ(::mkfifo(file.c_str(), 0600), 0);
    const Finished refused = command();
    std::filesystem::remove(file);
    std::filesystem::rename(kept, file);
    EXPECT_EQ(refused.code, 1) << name;
    EXPECT_THAT(refused.err, ::testing::HasSubstr(file.string() + " is a pipe, expected a file"));
  }

  TempFolder folder_;
  std::string run_ = (folder_ / "run").string();
  std::string text_ = (folder_ / "text.txt").string();
  Finished training_;
};

}  // namespace heddle::testing
