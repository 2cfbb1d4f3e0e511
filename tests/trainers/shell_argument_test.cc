#include "trainers/shell_argument.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <span>
#include <string>

#include "core/config/config_load.h"

namespace heddle::shell_argument_test {
namespace {

// What a shell makes of `arguments`, each in a line.
std::string read_by_shell(const std::string& arguments) {
  FILE* const pipe = popen(("printf '%s\\n' " + arguments).c_str(), "r");
  std::string lines;
  std::array<char, 256> part{};
  while (fgets(part.data(), part.size(), pipe) != nullptr) lines += part.data();
  EXPECT_EQ(pclose(pipe), 0);
  return lines;
}

const std::string kPaths[] = {"a.txt", "it's",   "two  words", "$HOME/`x`", "a\\b\"c", "*.txt",
                              "~/a",   "x#y: z", "[1, 2]",     "",          "\u00e4"};

TEST(ShellArgumentTest, AShellReadsThePath) {
  for (const std::string& path : kPaths) EXPECT_EQ(read_by_shell(shell_argument(path)), path + "\n");
  EXPECT_EQ(shell_argument("runs/a-b_1.0"), "runs/a-b_1.0");
  EXPECT_EQ(shell_argument("--out"), "./--out") << "no option";
}

TEST(ShellArgumentTest, AConfigReadsTheText) {
  for (const std::string& path : kPaths) {
    if (path.empty()) continue;
    const std::string lines = read_by_shell(shell_set("a.b", path));
    ASSERT_EQ(lines.rfind("--set\na.b=", 0), 0u) << lines;
    const std::string set = lines.substr(6, lines.size() - 7);
    EXPECT_EQ(parse_config("{}", "test", std::span(&set, 1)).section("a").require<std::string>("b"), path) << set;
  }
}

}  // namespace
}  // namespace heddle::shell_argument_test
