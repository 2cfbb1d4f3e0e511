// `heddle --version`, the manual of each command, and completion in bash.
#include "cli/manual.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "core/io/atomic_file.h"
#include "layers/registry.h"
#include "tests/cli/process.h"
#include "tests/temp_folder.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::ContainsRegex;
using ::testing::ElementsAre;
using testing::Finished;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::IsSupersetOf;
using ::testing::Not;
using testing::run_heddle;
using ::testing::StartsWith;
using testing::TempFolder;

// The commands that `heddle --help` lists.
std::vector<std::string> commands() {
  const std::string help = run_heddle({"--help"}).out;
  std::istringstream lines(help.substr(help.find("Subcommands:")));
  const std::regex row("  ([a-z][a-z-]*) +[A-Z].*");
  std::vector<std::string> names;
  std::smatch found;
  for (std::string line; std::getline(lines, line);) {
    if (std::regex_match(line, found, row)) names.push_back(found[1]);
  }
  return names;
}

std::set<std::string> options_in(const std::string& text) {
  const std::regex option("(^|[ ,])(--[a-z][a-z-]*)");
  std::set<std::string> found;
  for (std::sregex_iterator at(text.begin(), text.end(), option), end; at != end; ++at) found.insert((*at)[2]);
  return found;
}

TEST(ManualTest, VersionIsTwoLines) {
  const Finished version = run_heddle({"--version"});
  EXPECT_EQ(version.code, 0);
  EXPECT_EQ(version.err, "");
  EXPECT_TRUE(std::regex_match(version.out, std::regex("heddle [0-9]+\\.[0-9]+\\.[0-9]+\n"
                                                       "built by (g\\+\\+|clang) [0-9].*, (OpenMP|std::thread), "
                                                       "(with|without) CUDA, instructions: baseline.*\n")))
      << version.out;
}

TEST(ManualTest, InfoNamesEveryOperator) {
  const std::string info = run_heddle({"info"}).out;
  for (const std::string& name : built_in_registry().operator_names()) EXPECT_THAT(info, HasSubstr(name));
}

// Each command has all sections of a manual page, and its examples use options that it has.
TEST(ManualTest, EveryCommandHasAManual) {
  ASSERT_THAT(commands(), IsSupersetOf({"train", "eval", "generate", "export", "gradcheck", "bench", "info"}));
  for (const std::string& command : commands()) {
    SCOPED_TRACE(command);
    const Finished help = run_heddle({command, "--help"});
    EXPECT_EQ(help.code, 0);
    EXPECT_THAT(help.out, StartsWith("heddle " + command + ": "));
    const size_t examples = help.out.find("\n\nExamples:\n  heddle "),
                 codes = help.out.find("\nExit codes:\n  0    done\n");
    ASSERT_NE(examples, std::string::npos);
    ASSERT_NE(codes, std::string::npos);
    EXPECT_LT(examples, codes);
    std::smatch page;
    ASSERT_TRUE(std::regex_search(help.out, page, std::regex("\nSee also: (docs/[a-z_]+\\.md)")));
    EXPECT_TRUE(fs::exists(fs::path(HEDDLE_SOURCE_DIR) / page[1].str()));

    std::istringstream lines(help.out.substr(examples, codes - examples));
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string program, shown;
      words >> program >> shown;
      if (!line.starts_with("  heddle ") || shown.starts_with('-')) continue;
      EXPECT_THAT(commands(), Contains(shown)) << line;
      const std::string options = run_heddle({shown, "--help"}).out;
      for (const std::string& option : options_in(line)) {
        EXPECT_THAT(options.substr(0, options.find("\nExamples:")), ContainsRegex("\n  " + option + "( |\n)")) << line;
      }
    }
  }
}

TEST(ManualTest, IsAskedForByAWordOrAnOption) {
  const auto expect_same = [](const std::vector<std::string>& word, const std::vector<std::string>& option) {
    const testing::Finished found = run_heddle(word), expected = run_heddle(option);
    EXPECT_EQ(found.code, 0) << found.err;
    EXPECT_EQ(found.out, expected.out);
    EXPECT_EQ(found.err, "");
  };
  expect_same({"help"}, {"--help"});
  expect_same({"help", "--help"}, {"--help"});
  expect_same({"help", "train"}, {"train", "--help"});
  expect_same({"help", "run-layer"}, {"run-layer", "--help"});
  const auto refusal = [](const std::vector<std::string>& arguments) {
    const testing::Finished found = run_heddle(arguments);
    EXPECT_EQ(found.code, 2);
    EXPECT_EQ(found.out, "");
    return found.err;
  };
  EXPECT_EQ(refusal({"help", "trian"}), "error: unknown command 'trian'; did you mean 'train'?\n");
  EXPECT_EQ(refusal({"help", "train", "eval"}), "error: help: found 'eval' after 'train', expected one command\n");
  EXPECT_EQ(refusal({"helb"}), "error: unknown command 'helb'; did you mean 'help'?\n");
}

// What is shown of a value is what it stands for, not how the library of the command line calls its type.
TEST(ManualTest, ValuesAreShownByTheirMeaning) {
  for (const std::string& command : commands()) {
    const std::string help = run_heddle({command, "--help"}).out;
    EXPECT_THAT(help, Not(ContainsRegex("(TEXT|INT|UINT|FLOAT)( \\.\\.\\.|=|:|$)|=\\["))) << command;
  }
  EXPECT_THAT(run_heddle({"bench", "--help"}).out, HasSubstr("\n  suite SUITE... [srms_norm]  "));
}

TEST(ManualTest, ExitCodesOfACommandStandBesideTheOthers) {
  EXPECT_THAT(run_heddle({"train", "--help"}).out,
              HasSubstr("\n  2    wrong usage or configuration\n  130  interrupted"));
  const std::string gradcheck = run_heddle({"gradcheck", "--help"}).out;
  EXPECT_THAT(gradcheck, HasSubstr("\n  0    done\n  1    a gradient is wrong, or failure at run time\n  2    wrong"));
  EXPECT_THAT(gradcheck, HasSubstr("\n  3    none is wrong, and one is undecided\n"));
}

TEST(ManualTest, TextIsWrapped) {
  EXPECT_EQ(cli::wrapped("a b\nc", 2), "  a b\n  c\n");
  EXPECT_EQ(cli::wrapped("", 0), "");
  const std::string half(49, 'x'), longer(120, 'y');
  EXPECT_EQ(cli::wrapped(half + " " + half + " z", 1), " " + half + " " + half + "\n z\n");
  EXPECT_EQ(cli::wrapped(half + " " + longer, 0), half + "\n" + longer + "\n");
}

// Configs that came with the program are found from any folder, and one's own go before them.
TEST(ManualTest, ConfigsThatCameWithTheProgramAreFound) {
  const TempFolder folder;
  const std::string program = HEDDLE_PROGRAM;
  const auto trains = [&](const std::string& config) {
    const std::string command =
        "cd '" + folder.path().string() + "' && '" + program + "' train " + config + " --dry-run > out 2> err";
    return std::system(command.c_str()) == 0;
  };
  EXPECT_TRUE(trains("configs/toy_copy.yaml")) << read_file(folder / "err");
  EXPECT_FALSE(trains("configs/toy_cpoy.yaml"));
  EXPECT_THAT(read_file(folder / "err"), HasSubstr("cannot read 'configs/toy_cpoy.yaml'"));
  fs::create_directory(folder / "configs");
  std::ofstream(folder / "configs/toy_copy.yaml") << "model: 1\n";
  EXPECT_FALSE(trains("configs/toy_copy.yaml"));
}

class CompletionTest : public ::testing::Test {
 protected:
  // What bash offers for the last of these words.
  std::vector<std::string> complete(const std::vector<std::string>& words) {
    std::string line = "cd '" + folder_.path().string() +
                       "' && . '" HEDDLE_SOURCE_DIR "/completion/heddle.bash' && COMP_WORDS=('" HEDDLE_PROGRAM "'";
    for (const std::string& word : words) line += " '" + word + "'";
    line += ") COMP_CWORD=" + std::to_string(words.size()) + "; _heddle; printf '%s\\n' \"${COMPREPLY[@]}\" > '" +
            (folder_ / "replies").string() + "'";
    std::ofstream(folder_ / "line") << line;
    const std::string command =
        "bash --norc '" + (folder_ / "line").string() + "' 2> '" + (folder_ / "err").string() + "'";
    EXPECT_EQ(std::system(command.c_str()), 0) << read_file(folder_ / "err");
    std::istringstream replies(read_file(folder_ / "replies"));
    std::vector<std::string> all;
    for (std::string reply; std::getline(replies, reply);) {
      if (!reply.empty()) all.push_back(reply);
    }
    return all;
  }

  TempFolder folder_;
};

TEST_F(CompletionTest, Commands) {
  std::vector<std::string> expected = commands();
  expected.insert(expected.end(), {"help", "--help", "--version"});
  EXPECT_THAT(complete({""}), ::testing::UnorderedElementsAreArray(expected));
  EXPECT_THAT(complete({"ev"}), ElementsAre("eval"));
  EXPECT_THAT(complete({"x"}), IsEmpty());
  std::ofstream(folder_ / "train.txt") << "";
  EXPECT_THAT(complete({"help", "tr"}), ElementsAre("train"));
  EXPECT_THAT(complete({"help", "train", "tr"}), IsEmpty());
  EXPECT_THAT(complete({"info", "tr"}), IsEmpty());
}

TEST_F(CompletionTest, OptionsAreThoseOfTheCommand) {
  EXPECT_THAT(complete({"train", "--res"}), ElementsAre("--resume"));
  EXPECT_THAT(complete({"export", "runs/a", "--"}), IsSupersetOf({"--out", "--format", "--shard-size", "--help"}));
  EXPECT_THAT(complete({"eval", "--"}), Not(Contains("--resume")));
}

TEST_F(CompletionTest, ValuesOfOptions) {
  EXPECT_THAT(complete({"export", "runs/a", "--format", ""}), ElementsAre("hf", "fla"));
  EXPECT_THAT(complete({"bench", "--quantity", "m"}), ElementsAre("memory"));
  EXPECT_THAT(complete({"bench", "--quantity", "=", "m"}), ElementsAre("memory")) << "--quantity=m, as bash splits it";
  EXPECT_THAT(complete({"bench", "--quantity", "="}), ElementsAre("speed", "memory"));
  EXPECT_THAT(complete({"train", "a.yaml", "--set", "=", "ru"}), IsEmpty());
  EXPECT_THAT(complete({"train", "--device", "cu"}), ElementsAre("cuda", "cuda:0"));
  EXPECT_THAT(complete({"train", "--device", "m"}), IsEmpty());
  EXPECT_THAT(complete({"memory", "--device", "m"}), ElementsAre("meta"));
  fs::create_directory(folder_ / "runs");
  EXPECT_THAT(complete({"export", "runs/a", "--out", "ru"}), ElementsAre("runs"));
  EXPECT_THAT(complete({"train", "a.yaml", "--set", "ru"}), IsEmpty());
  EXPECT_THAT(complete({"train", "a.yaml", "--resume", ""}), IsSupersetOf({"auto", "none", "runs"}));
  EXPECT_THAT(complete({"train", "a.yaml", "--resume", "no"}), ElementsAre("none"));
  EXPECT_THAT(complete({"tokenize", "a.txt", "--out", "ru"}), ElementsAre("runs"));
  EXPECT_THAT(complete({"tokenize", "a.txt", "--tokenizer", ""}), IsSupersetOf({"bytes", "runs"}));
  EXPECT_THAT(complete({"tokenize", "a.txt", "--tokenizer", "FI"}), IsEmpty());
  EXPECT_THAT(complete({"bench", "--pass", "bw"}), ElementsAre("bwd", "bwd_first"));
  EXPECT_THAT(complete({"train", "a.yaml", "--gpus", ""}), IsEmpty());
}

TEST_F(CompletionTest, ConfigsAndOperators) {
  std::ofstream(folder_ / "mine.yaml") << "{}";
  std::ofstream(folder_ / "mine.txt") << "";
  EXPECT_THAT(complete({"train", "mi"}), ElementsAre("mine.yaml"));
  EXPECT_THAT(complete({"train", "--dry-run", "mi"}), ElementsAre("mine.yaml"));  // an option without a value
  EXPECT_THAT(complete({"train", "configs/toy_c"}), ElementsAre("configs/toy_copy.yaml"));
  EXPECT_THAT(complete({"gradcheck", "lrpe_"}), ElementsAre("lrpe_rotate", "lrpe_cosine"));
  EXPECT_THAT(complete({"bench", "norm_"}), ElementsAre("norm_cpu", "norm_full_precision", "norm_gate"));
  EXPECT_THAT(complete({"eval", "mine"}), ::testing::UnorderedElementsAre("mine.yaml", "mine.txt"));
}

}  // namespace
}  // namespace heddle
