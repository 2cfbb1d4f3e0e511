// `heddle generate` as a user meets it.
#include "trainers/model/generate.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <ios>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "tests/cli/trained_test.h"
#include "trainers/run/loaded_model.h"

namespace heddle {
namespace {

using testing::Finished;
using ::testing::HasSubstr;
using testing::run_heddle;
using ::testing::StartsWith;

class GenerateCommandTest : public testing::TrainedTest {
 protected:
  Finished generate(const std::vector<std::string>& more) const {
    std::vector<std::string> arguments = {"generate", run_, "--device", "cpu", "--threads", "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_heddle(arguments);
  }
  std::string text(const std::vector<std::string>& more) const {
    const Finished finished = generate(more);
    EXPECT_EQ(finished.code, 0) << finished.err;
    return finished.out;
  }
  std::string refusal(const std::vector<std::string>& more) const {
    const Finished finished = generate(more);
    EXPECT_EQ(finished.code, 2) << finished.out;
    EXPECT_EQ(finished.out, "");
    return finished.err;
  }
};

// What is not given is what docs and help say.
TEST_F(GenerateCommandTest, DefaultsAreThoseOfTheHelp) {
  const std::string help = run_heddle({"generate", "--help"}).out;
  std::vector<std::string> arguments = {"--prompt", "\n"};
  const std::regex option(R"((--[\w-]+) \w+ \[([\d.]+)\])");
  for (std::sregex_iterator found(help.begin(), help.end(), option), end; found != end; ++found) {
    if ((*found)[1] != "--threads") arguments.insert(arguments.end(), {(*found)[1], (*found)[2]});
  }
  EXPECT_EQ(arguments.size(), 2u + 2 * 6) << help;  // tokens, samples, temperature, top-k, top-p, seed
  EXPECT_EQ(text({}), text(arguments));
}

// Each option reaches the sampler as what it is.
TEST_F(GenerateCommandTest, OptionsAreThoseOfTheLibrary) {
  Context context(Device{}, {.threads = 1});
  const LoadedModel loaded = load_model(
      context, run_, {}, [](const std::string&) {}, built_in_registry());
  const std::string prompt = "the quick ";
  std::set<std::string> different;
  for (const GenerateOptions& options : std::vector<GenerateOptions>{
           {.tokens = 60, .seed = 5},
           {.tokens = 60, .temperature = 2.5, .seed = 5},
           {.tokens = 60, .temperature = 2.5, .top_k = 3, .seed = 5},
           {.tokens = 60, .temperature = 2.5, .top_p = 0.5, .seed = 5},
           {.tokens = 61, .temperature = 2.5, .top_k = 7, .top_p = 0.9, .seed = 6},
       }) {
    Utf8Printer printer;
    std::string expected = prompt;
    heddle::generate(context, loaded.model, ByteTokenizer(), prompt, options,
                     [&](uint8_t byte) { expected += printer.add(byte); });
    expected += printer.finish() + "\n";
    EXPECT_EQ(text({"--prompt", prompt, "--tokens", std::to_string(options.tokens), "--temperature",
                    fmt::format("{}", options.temperature), "--top-k", std::to_string(options.top_k), "--top-p",
                    fmt::format("{}", options.top_p), "--seed", std::to_string(options.seed)}),
              expected);
    different.insert(expected);
  }
  EXPECT_EQ(different.size(), 5u);
}

TEST_F(GenerateCommandTest, RepeatsItselfBySeed) {
  const auto text = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"generate", run_, "--prompt", "the ", "--tokens", "40"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Finished finished = run_heddle(arguments);
    EXPECT_EQ(finished.code, 0) << finished.err;
    EXPECT_THAT(finished.out, StartsWith("the "));
    return finished.out;
  };
  EXPECT_EQ(text({"--seed", "3"}), text({"--seed", "3"}));
  EXPECT_NE(text({"--seed", "3"}), text({"--seed", "4"}));
  EXPECT_EQ(text({"--temperature", "0"}), text({"--top-k", "1", "--seed", "9"}));
  EXPECT_EQ(text({"--temperature", "0"}), text({"--top-p", "0"}));
  EXPECT_EQ(run_heddle({"generate", run_, "--prompt", ""}).code, 2);
  EXPECT_EQ(run_heddle({"generate", run_, "--top-p", "1.5"}).code, 2);
  EXPECT_EQ(run_heddle({"generate", run_, "--temperature", "-1"}).code, 2);
}

TEST_F(GenerateCommandTest, ThePromptMayComeFromAFileOrStdin) {
  const std::string prompt = "the quick\nbrown ", file = (folder_ / "prompt").string();
  write_file(file, prompt);
  const std::string expected = text({"--prompt", prompt, "--tokens", "20"});
  EXPECT_THAT(expected, StartsWith(prompt));
  EXPECT_EQ(text({"--prompt-file", file, "--tokens", "20"}), expected);
  const std::string command = fmt::format("'{}' generate '{}' --device cpu --tokens 20 --prompt-file - < '{}' > '{}'",
                                          HEDDLE_PROGRAM, run_, file, (folder_ / "out").string());
  EXPECT_EQ(std::system(command.c_str()), 0);
  EXPECT_EQ(read_file(folder_ / "out"), expected);

  EXPECT_THAT(refusal({"--prompt-file", file + "x"}), HasSubstr("--prompt-file: cannot open " + file + "x"));
  write_file(file, "");
  EXPECT_THAT(refusal({"--prompt-file", file}), HasSubstr("--prompt-file: the prompt is empty"));
  EXPECT_THAT(refusal({"--prompt-file", file, "--prompt", "a"}), HasSubstr("excludes"));
  EXPECT_THAT(refusal({"--prompt-tokens", "1,2"}), HasSubstr("this model reads bytes of text, expected --prompt TEXT"));
}

TEST_F(GenerateCommandTest, SamplesHaveSeedsOfTheirOwn) {
  const std::vector<std::string> options = {"--prompt", "the ", "--tokens", "15", "--seed"};
  const auto one = [&](const std::string& seed) {
    std::vector<std::string> all = options;
    all.push_back(seed);
    return text(all);
  };
  std::vector<std::string> three = options;
  three.insert(three.end(), {"5", "--samples", "3"});
  EXPECT_EQ(text(three), "=== sample 1 of 3, seed 5 ===\n" + one("5") + "=== sample 2 of 3, seed 6 ===\n" + one("6") +
                             "=== sample 3 of 3, seed 7 ===\n" + one("7"));
  EXPECT_THAT(refusal({"--samples", "0"}), HasSubstr("--samples"));
}

TEST_F(GenerateCommandTest, StopsBeforeAText) {
  const std::string whole = text({"--prompt", "the ", "--tokens", "60", "--temperature", "0"});
  size_t place = 4;  // two letters that belong to no \\xNN
  const auto is_letter = [&](size_t i) { return whole[i] > 'f' && whole[i] <= 'z' && whole[i] != 'x'; };
  while (place + 1 < whole.size() && !(is_letter(place) && is_letter(place + 1))) ++place;
  ASSERT_LT(place + 1, whole.size()) << whole;
  const std::string stop = whole.substr(place, 2);
  EXPECT_EQ(text({"--prompt", "the ", "--tokens", "60", "--temperature", "0", "--stop", stop}),
            whole.substr(0, place) + "\n");
  EXPECT_EQ(text({"--prompt", "the ", "--tokens", "60", "--temperature", "0", "--stop", "no such text"}), whole);
  EXPECT_THAT(refusal({"--stop", ""}), HasSubstr("--stop"));
}

// The separator of documents ends a sample, is not shown, and is read before a prompt.
TEST_F(GenerateCommandTest, EndsWithItsDocument) {
  run_ = (folder_ / "packed").string();
  ASSERT_EQ(train(run_, {"data={type: text, path: \"" + text_ + "\", pack: true, separator: 10}",
                         "model.vocab_size=256", "trainer.steps=2"})
                .code,
            0);
  const std::string out = text({"--prompt", "the ", "--tokens", "4000", "--temperature", "9"});
  EXPECT_EQ(out.find('\n'), out.size() - 1) << "it goes on behind the separator";
  const std::string empty = (folder_ / "empty").string();
  std::ofstream(empty).close();
  const std::string begun = text({});
  EXPECT_GT(begun.size(), 1u);
  EXPECT_EQ(text({"--prompt", ""}), begun) << "a document is begun";
  EXPECT_EQ(text({"--prompt-file", empty}), begun);

  run_ = (folder_ / "ids").string();
  const std::string file = (folder_ / "tokens.bin").string();
  std::ofstream tokens(file, std::ios::binary);
  for (uint16_t i = 0; i < 2000; ++i) {
    const uint16_t token = i % 8;
    tokens.write(reinterpret_cast<const char*>(&token), sizeof token);
  }
  tokens.close();
  const std::string data =
      "data={type: tokens, path: '" + file + "', validation_fraction: 0.2, pack: true, separator: 3}";
  ASSERT_EQ(train(run_, {data, "trainer.steps=2"}).code, 0);
  const std::vector<std::string> options = {"--tokens", "300", "--temperature", "9", "--prompt-tokens"};
  const auto sample = [&](const std::string& prompt) {
    std::vector<std::string> all = options;
    all.push_back(prompt);
    return text(all);
  };
  const std::string ids = sample("1,2");
  EXPECT_THAT(ids, StartsWith("1 2 "));
  EXPECT_EQ(ids.find('3'), std::string::npos) << ids;
  EXPECT_LT(ids.size(), 300) << ids;
  EXPECT_EQ("3 " + ids, sample("3,1,2"));
  EXPECT_EQ("3 " + sample(""), sample("3"));
  EXPECT_EQ(sample(""), text({"--tokens", "300", "--temperature", "9"}));
}

TEST_F(GenerateCommandTest, EndsWhenNobodyReads) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "there is no /dev/full";
  const Finished finished =
      run_heddle({"generate", run_, "--tokens", "1000000000000"}, {.out = "/dev/full", .err = ""});
  EXPECT_EQ(finished.code, 1);
  EXPECT_THAT(finished.err, StartsWith("error: cannot write to stdout"));
}

// As what is generated is: a terminal shows both.
TEST_F(GenerateCommandTest, APromptIsShownEscaped) {
  EXPECT_THAT(text({"--prompt", "a\x1b[31m\xff \xC3\xA4\n", "--tokens", "1"}),
              StartsWith("a\\x1b[31m\\xff \xC3\xA4\n"));
  const Finished sampled =
      train((folder_ / "sampled").string(), {"data={type: text, path: \"" + text_ + "\"}", "model.vocab_size=256",
                                             "trainer.steps=1", "trainer.sample={prompt: \"a\\e[31m\", tokens: 1}"});
  EXPECT_THAT(sampled.out, StartsWith("a\\x1b[31m"));
}

// A model whose data are no text reads and writes ids.
TEST_F(GenerateCommandTest, IdsInAndOut) {
  run_ = (folder_ / "copy").string();
  ASSERT_EQ(train(run_, {}).code, 0);
  const std::string out = text({"--prompt-tokens", "1,2,3, 0", "--tokens", "9", "--seed", "4"});
  EXPECT_THAT(out, StartsWith("1 2 3 0 "));
  std::istringstream numbers(out);
  int count = 0;
  for (int id = 0; numbers >> id; ++count) EXPECT_TRUE(id >= 0 && id < 8) << out;
  EXPECT_EQ(count, 13);
  EXPECT_EQ(out.back(), '\n');
  EXPECT_EQ(text({"--prompt", "1 2\n3 0", "--tokens", "9", "--seed", "4"}), out);
  EXPECT_EQ(text({"--prompt", "1 2\n3 0", "--tokens", "9", "--temperature", "0"}),
            text({"--prompt", "1 2\n3 0", "--tokens", "9", "--top-k", "1"}));

  EXPECT_THAT(refusal({}), HasSubstr("expected ids to go on from, --prompt-tokens 1,2,3"));
  EXPECT_THAT(refusal({"--prompt-tokens", "1,8"}),
              HasSubstr("--prompt-tokens: found '8', expected token ids in [0, 8) without leading zeros, as in 1,2,3"));
  EXPECT_THAT(refusal({"--prompt-tokens", "1,03"}), HasSubstr("--prompt-tokens: found '03', expected token ids"));
  EXPECT_THAT(refusal({"--prompt", "1 -2"}), HasSubstr("--prompt: found '-2'"));
  EXPECT_THAT(refusal({"--prompt", "a text"}), HasSubstr("--prompt: found 'a'"));
  for (const char* ids : {" , ", "1,", ",1", "1,,2", "1, \n"}) {
    EXPECT_THAT(refusal({"--prompt", ids}), HasSubstr("--prompt: found no token id, expected some")) << ids;
  }
  EXPECT_THAT(refusal({"--prompt", "1", "--stop", "x"}), HasSubstr("--stop: this model writes token ids"));
}

}  // namespace
}  // namespace heddle
