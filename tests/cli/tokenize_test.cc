#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/tensor/random.h"
#include "tests/cli/process.h"
#include "tests/cli/trained_test.h"
#include "tests/temp_folder.h"
#include "trainers/data/sentencepiece.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using testing::Finished;
using ::testing::HasSubstr;
using testing::run_heddle;

class TokenizeCommandTest : public testing::TrainedTest {
 protected:
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  Finished tokenize(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"tokenize", text_});
    return run_heddle(arguments);
  }
  std::string refusal(const std::vector<std::string>& arguments, int code = 2) {
    const Finished finished = tokenize(arguments);
    EXPECT_EQ(finished.code, code) << finished.err;
    return finished.err;
  }
};

TEST_F(TokenizeCommandTest, BytesAreTrainedOn) {
  const Finished finished = tokenize({"--out", path("bytes.bin")});
  ASSERT_EQ(finished.code, 0) << finished.err;
  EXPECT_EQ(finished.out, "tokens        2640 in " + path("bytes.bin") +
                              ", uint16 behind a header of llm.c\n"
                              "vocabulary    256: model.vocab_size is at least this\n"
                              "bytes         2640, 1.000 a token\n");
  EXPECT_EQ(finished.err, "");
  // The run on the tokens is the run on the text.
  const std::vector<std::string> more = {"model.vocab_size=256", "trainer.steps=12"};
  std::vector<std::string> text = {"data={type: text, path: '" + text_ + "'}"},
                           tokens = {"data={type: tokens, path: '" + path("bytes.bin") + "', tokenizer: bytes}"};
  for (auto* overrides : {&text, &tokens}) overrides->insert(overrides->end(), more.begin(), more.end());
  const Finished of_text = train(path("of_text"), text), of_tokens = train(path("of_tokens"), tokens);
  EXPECT_THAT(of_tokens.err, HasSubstr(" nats/token ("));
  EXPECT_EQ(read_file(path("of_text") + "/metrics.csv"), read_file(path("of_tokens") + "/metrics.csv"));
  const auto bits = [](const std::string& out) {
    const size_t begin = out.find("bits per byte");
    return out.substr(begin, out.find('\n', begin) - begin);
  };
  const Finished evaluated = run_heddle({"eval", path("of_tokens")});
  EXPECT_THAT(evaluated.out, AllOf(HasSubstr("nats per token\n"), HasSubstr("bytes             ")));
  EXPECT_EQ(bits(evaluated.out), bits(run_heddle({"eval", path("of_text")}).out));
  // Text is evaluated once it is tokens: the error says how.
  EXPECT_THAT(run_heddle({"eval", path("of_tokens"), "--data", text_}).err,
              HasSubstr("`heddle tokenize " + text_ + " --tokenizer bytes --out " + text_ + ".bin`"));
  ASSERT_EQ(tokenize({"--tokenizer", "bytes", "--out", text_ + ".bin"}).code, 0);
  EXPECT_EQ(bits(run_heddle({"eval", path("of_tokens"), "--data", text_ + ".bin"}).out),
            bits(run_heddle({"eval", path("of_text"), "--data", text_}).out));
  const std::vector<std::string> prompt = {"--prompt", "the ", "--tokens", "9", "--temperature", "0"};
  std::vector<std::string> by_text = {"generate", path("of_text")}, by_tokens = {"generate", path("of_tokens")};
  for (auto* arguments : {&by_text, &by_tokens}) arguments->insert(arguments->end(), prompt.begin(), prompt.end());
  EXPECT_EQ(run_heddle(by_tokens).out, run_heddle(by_text).out);
}

TEST_F(TokenizeCommandTest, DocumentsArePackedAndWritten) {
  const Finished finished = tokenize({"--out", path("lines.bin"), "--documents", "line"});
  ASSERT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(finished.out, AllOf(HasSubstr("vocabulary    257"),
                                  HasSubstr("documents     60, each behind token 256: data.separator\n")));
  const Finished trained =
      train(path("packed"),
            {"data={type: tokens, path: '" + path("lines.bin") + "', tokenizer: bytes, pack: true, separator: 256}",
             "model.vocab_size=257", "trainer.sample={prompt: 'the ', tokens: 30}", "trainer.steps=12"});
  ASSERT_EQ(trained.code, 0) << trained.err;
  EXPECT_THAT(trained.out, ::testing::StartsWith("the "));
  EXPECT_EQ(run_heddle({"eval", path("packed")}).code, 0);
  EXPECT_EQ(run_heddle({"generate", path("packed"), "--tokens", "5"}).code, 0);
}

TEST_F(TokenizeCommandTest, AVocabularyIsTrainedAndUsed) {
  if (!has_sentencepiece()) GTEST_SKIP() << "heddle was built without sentencepiece";
  const Finished finished = tokenize({"--out", path("fox.bin"), "--train-vocab", "290"});
  ASSERT_EQ(finished.code, 0) << finished.err;
  EXPECT_EQ(finished.err, "");
  EXPECT_THAT(finished.out, AllOf(HasSubstr("tokenizer     " + path("fox.model")), HasSubstr("vocabulary    290")));
  const std::string model = read_file(path("fox.model")), tokens = read_file(path("fox.bin"));
  // Again, and with the model that was written.
  ASSERT_EQ(tokenize({"--out", path("again.bin"), "--train-vocab", "290"}).code, 0);
  EXPECT_EQ(read_file(path("again.model")), model);
  EXPECT_EQ(read_file(path("again.bin")), tokens);
  ASSERT_EQ(tokenize({"--out", path("fox_2.bin"), "--tokenizer", path("fox.model")}).code, 0);
  EXPECT_EQ(read_file(path("fox_2.bin")), tokens);

  const std::string section = "path: '" + path("fox.bin") + "', tokenizer: '" + path("fox.model") + "'}";
  const Finished trained = train(path("pieces"), {"data={type: tokens, " + section, "model.vocab_size=290",
                                                  "trainer.sample={prompt: 'the quick', tokens: 5}",
                                                  "trainer.sequence_length=8", "trainer.steps=12"});
  ASSERT_EQ(trained.code, 0) << trained.err;
  EXPECT_THAT(trained.out, ::testing::StartsWith("the quick"));
  EXPECT_THAT(run_heddle({"eval", path("pieces")}).out, HasSubstr("bits per byte"));
  EXPECT_THAT(run_heddle({"generate", path("pieces"), "--prompt", "the ", "--tokens", "4"}).out,
              ::testing::StartsWith("the "));
  EXPECT_THAT(run_heddle({"generate", path("pieces"), "--prompt-tokens", "4"}).err,
              HasSubstr("this model reads text, expected --prompt TEXT"));
  // A run notices another tokenizer.
  write_file(path("fox.model"), read_file(path("again.model")) + std::string("\x12\x00", 2));
  EXPECT_NE(train(path("pieces"),
                  {"data={type: tokens, " + section, "model.vocab_size=290",
                   "trainer.sample={prompt: 'the quick', tokens: 5}", "trainer.sequence_length=8", "trainer.steps=12"})
                .code,
            0);
  // Its own is in its folder, and goes with the weights.
  EXPECT_THAT(run_heddle({"generate", path("pieces"), "--prompt", "the ", "--tokens", "4"}).out,
              ::testing::StartsWith("the "));
  EXPECT_THAT(run_heddle({"eval", path("pieces")}).out, HasSubstr("bits per byte"));
  const Finished exported = run_heddle({"export", path("pieces"), "--out", path("hf")});
  EXPECT_THAT(exported.out, AllOf(HasSubstr("tokenizer.model"), HasSubstr("--prompt TEXT")));
  EXPECT_EQ(read_file(path("hf/tokenizer.model")), model);
  EXPECT_THAT(read_file(path("hf/config.json")), HasSubstr("\"tokens\": \"pieces\""));
  EXPECT_EQ(run_heddle({"export", path("pieces"), "--out", path("hf")}).code, 0);
  fs::remove(path("hf/config.json"));
  EXPECT_THAT(run_heddle({"export", path("pieces"), "--out", path("hf")}).err,
              HasSubstr("holds model.safetensors, which no export has written"));
  fs::remove(path("pieces/tokenizer.model"));
  EXPECT_THAT(run_heddle({"generate", path("pieces")}).err, HasSubstr("the tokenizer is not that of"));
  fs::remove(path("fox.model"));
  const Finished without = run_heddle({"generate", path("pieces")});
  EXPECT_EQ(without.code, 2);
  EXPECT_THAT(without.err, HasSubstr("found no file '" + path("fox.model")));
  EXPECT_EQ(run_heddle({"export", path("pieces"), "--out", path("weights")}).code, 0);
  EXPECT_FALSE(fs::exists(path("weights/tokenizer.model")));
}

TEST_F(TokenizeCommandTest, WithoutTheLibraryItsPackageIsNamed) {
  if (has_sentencepiece()) GTEST_SKIP() << "heddle was built with sentencepiece";
  EXPECT_THAT(refusal({"--out", path("x.bin"), "--train-vocab", "300"}, 1),
              HasSubstr("install the Debian package libsentencepiece-dev"));
}

TEST_F(TokenizeCommandTest, WhatCannotBeMeantIsRefused) {
  EXPECT_THAT(refusal({}), HasSubstr("--out is required"));
  EXPECT_THAT(refusal({"--out", path("no/x.bin")}), HasSubstr("is no folder"));
  EXPECT_THAT(refusal({"--out", text_}), HasSubstr("is one of the texts"));
  for (const char* out : {"/dev/null", "/dev/stdout"}) {
    EXPECT_THAT(refusal({"--out", out}), HasSubstr("--out: " + std::string(out) + " is written as a stream"));
  }
  EXPECT_THAT(refusal({"--out", path("x.bin"), "--separator", "256"}), HasSubstr("there are no documents"));
  EXPECT_THAT(refusal({"--out", path("x.bin"), "--documents", "lines"}), HasSubstr("did you mean 'line'"));
  EXPECT_THAT(refusal({"--out", path("x.bin"), "--documents", "line", "--separator", "97"}),
              HasSubstr("token 97 is text, which documents may hold"));
  EXPECT_THAT(refusal({"--out", path("x.bin"), "--documents", "line", "--separator", "-1"}),
              HasSubstr("--separator: found '-1'"));
  EXPECT_THAT(refusal({"--out", path("x.bin"), "--documents", "line", "--separator", "2147483647"}),
              HasSubstr("--separator: found '2147483647', expected an integer in [0, 2147483646]"));
  EXPECT_THAT(refusal({"--out", path("x.bin"), "--train-vocab", "255"}), HasSubstr("--train-vocab: found '255'"));
  EXPECT_THAT(refusal({"--out", path("x.bin"), "--train-vocab", "300", "--tokenizer", "bytes"}), HasSubstr("excludes"));
  EXPECT_THAT(refusal({"--out", path("x.model"), "--train-vocab", "300"}), HasSubstr("is written by --out, too"));
  EXPECT_THAT(run_heddle({"tokenize", path("none"), "--out", path("x.bin")}).err, HasSubstr("found no file"));
  EXPECT_FALSE(fs::exists(path("x.bin")));
  EXPECT_FALSE(fs::exists(path("x.model")));
}

// As a config that names such files.
TEST_F(TokenizeCommandTest, FilesThatAreNotWhatTheyShouldBeAreWrongUsage) {
  write_file(path("empty.txt"), "");
  write_file(path("lines.txt"), "\n\n\n");
  write_file(path("wrong.model"), "no model of sentencepiece");
  fs::create_directories(path("folder"));
  const auto error_of = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "tokenize");
    arguments.insert(arguments.end(), {"--out", path("x.bin")});
    const Finished finished = run_heddle(arguments);
    EXPECT_EQ(finished.code, 2) << finished.err;
    EXPECT_FALSE(fs::exists(path("x.bin")));
    return finished.err;
  };
  EXPECT_THAT(error_of({path("empty.txt")}), HasSubstr("error: " + path("empty.txt") + " is empty"));
  EXPECT_THAT(error_of({path("folder")}), HasSubstr("error: cannot read " + path("folder") + ": it is a folder"));
  EXPECT_THAT(error_of({path("lines.txt"), "--documents", "line"}), HasSubstr("error: the text has no token"));
  EXPECT_THAT(error_of({text_, "--tokenizer", path("folder")}), HasSubstr("folder is a folder, expected a file"));
  if (has_sentencepiece()) {
    EXPECT_THAT(error_of({text_, "--tokenizer", path("wrong.model")}), HasSubstr("is no model of sentencepiece"));
  }
}

TEST_F(TokenizeCommandTest, SizesThatTheTextDoesNotAllow) {
  if (!has_sentencepiece()) GTEST_SKIP() << "heddle was built without sentencepiece";
  std::string characters;
  for (int i = 0; i < 50; ++i) characters += "\xe4\xb8" + std::string(1, static_cast<char>(0x80 + i));
  write_file(path("many.txt"), characters);
  const auto error_of = [&](const std::string& vocabulary) {
    const Finished finished =
        run_heddle({"tokenize", path("many.txt"), text_, "--out", path("x.bin"), "--train-vocab", vocabulary});
    EXPECT_EQ(finished.code, 2);
    EXPECT_FALSE(fs::exists(path("x.bin")));
    return finished.err;
  };
  EXPECT_THAT(error_of("270"), AllOf(HasSubstr("--train-vocab: found a vocabulary of 270 tokens, expected at least "),
                                     HasSubstr(" for this text"), ::testing::Not(HasSubstr("character_coverage"))));
  EXPECT_THAT(error_of("30000"), HasSubstr("found a vocabulary of 30000 tokens, expected at most "));
}

// The vocabulary has room, and the tokens, the last of which are written at the end, have not.
TEST_F(TokenizeCommandTest, AFullDiskLeavesTokensAndVocabularyAsTheyWere) {
  if (!has_sentencepiece()) GTEST_SKIP() << "heddle was built without sentencepiece";
  const auto tokenize_on_small_disk = [&](const std::string& out) {
    const std::string command =
        fmt::format("trap '' XFSZ; ulimit -f 24; '{}' tokenize '{}' '{}' --out '{}' --train-vocab 290 2> '{}'",
                    HEDDLE_PROGRAM, text_, text_, path(out), path("err"));
    EXPECT_NE(std::system(fmt::format("bash -c \"{}\"", command).c_str()), 0);
    EXPECT_THAT(read_file(path("err")), AllOf(HasSubstr("cannot write "), HasSubstr(out)));
  };
  std::string text;
  for (int i = 0; i < 6; ++i) text += read_file(text_);
  write_file(text_, text);
  tokenize_on_small_disk("new.bin");
  EXPECT_FALSE(fs::exists(path("new.bin")));
  EXPECT_FALSE(fs::exists(path("new.model")));
  write_file(path("old.bin"), "tokens");
  write_file(path("old.model"), "vocabulary");
  tokenize_on_small_disk("old.bin");
  EXPECT_EQ(read_file(path("old.bin")), "tokens");
  EXPECT_EQ(read_file(path("old.model")), "vocabulary");
  for (const char* name : {"new.bin", "new.model", "old.bin", "old.model"}) {
    EXPECT_FALSE(fs::exists(partial_path(path(name)))) << name;
  }
}

TEST_F(TokenizeCommandTest, OfTwoThatWriteOneFileTheSecondIsRefused) {
  const std::string small = path("small.txt");
  write_file(small, "a few words");
  fs::resize_file(text_, uint64_t{4} << 30);
  testing::Process first({"tokenize", text_, "--out", path("x.bin")});
  while (first.running() && !fs::exists(partial_path(path("x.bin")))) continue;
  const Finished second = run_heddle({"tokenize", small, "--out", path("x.bin")});
  EXPECT_TRUE(first.running());
  EXPECT_EQ(second.code, 1);
  EXPECT_EQ(second.err, "error: cannot write " + path("x.bin") + ": it is being written already\n");
  EXPECT_TRUE(fs::exists(partial_path(path("x.bin"))));
  first.send(SIGKILL);
  first.wait();
  const Finished third = run_heddle({"tokenize", small, "--out", path("x.bin")});
  EXPECT_EQ(third.code, 0) << third.err;
  EXPECT_EQ(fs::file_size(path("x.bin")), 1024u + 2 * 11);
  EXPECT_FALSE(fs::exists(partial_path(path("x.bin"))));
}

// The library that trains a vocabulary cannot be stopped, so the signal ends the process.
TEST_F(TokenizeCommandTest, ASignalEndsTheTrainingOfAVocabulary) {
  if (!has_sentencepiece()) GTEST_SKIP() << "heddle was built without sentencepiece";
  Random random(5, RandomStream::test);
  std::string text;
  for (int word = 0; word < 300000; ++word) {
    for (int letter = 0; letter < 12; ++letter) text += static_cast<char>('a' + random.next_below(26));
    text += word % 10 == 9 ? '\n' : ' ';
  }
  write_file(text_, text);
  for (const int signal : {SIGINT, SIGTERM}) {
    testing::Process process({"tokenize", text_, "--out", path("x.bin"), "--train-vocab", "8000"});
    std::this_thread::sleep_for(std::chrono::seconds(1));
    ASSERT_TRUE(process.running()) << process.err();
    const auto sent = std::chrono::steady_clock::now();
    process.send(signal);
    EXPECT_EQ(process.wait(), -signal);
    EXPECT_LT(std::chrono::steady_clock::now() - sent, std::chrono::seconds(2));
    EXPECT_FALSE(fs::exists(path("x.bin")));
    EXPECT_FALSE(fs::exists(path("x.model")));
  }
}

// What is stopped leaves neither a token file nor a part of one.
TEST_F(TokenizeCommandTest, ASignalLeavesNothing) {
  fs::resize_file(text_, uint64_t{4} << 30);
  testing::Process process({"tokenize", text_, "--out", path("x.bin")});
  while (process.running() && !fs::exists(partial_path(path("x.bin")))) continue;
  process.send(SIGTERM);
  EXPECT_EQ(process.wait(), 130);
  EXPECT_FALSE(fs::exists(path("x.bin")));
  EXPECT_FALSE(fs::exists(partial_path(path("x.bin"))));
}

}  // namespace
}  // namespace heddle
