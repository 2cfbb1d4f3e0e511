#include "core/config/config_difference.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace heddle {
namespace {

// "PATH: FIRST -> SECOND" for each difference.
std::vector<std::string> differences(const std::string& first, const std::string& second) {
  std::vector<std::string> lines;
  for (const ConfigDifference& difference : config_differences(*parse_yaml(first, "a"), *parse_yaml(second, "b"))) {
    lines.push_back(difference.path + ": " + difference.first + " -> " + difference.second);
  }
  return lines;
}

using Lines = std::vector<std::string>;

TEST(ConfigDifferenceTest, NamesEveryKeyWithBothValues) {
  EXPECT_EQ(differences("a: 1\nb: {c: [1, 2], d: x}\n", "a: 1\nb: {c: [1, 2], d: x}\n"), Lines{});
  EXPECT_EQ(differences("a: 1\nb: {c: [1, 2], d: x}\n", "a: 2\nb: {c: [1, 3], d: \"y z\"}\n"),
            (Lines{"a: 1 -> 2", "b.c: [1, 2] -> [1, 3]", "b.d: x -> \"y z\""}));
}

TEST(ConfigDifferenceTest, TheOrderOfKeysMakesNoDifference) {
  EXPECT_EQ(differences("a: 1\nb: {c: 2, d: 3}\n", "b: {d: 3, c: 2}\na: 1\n"), Lines{});
}

TEST(ConfigDifferenceTest, ASectionThatOneLacksIsShownWhole) {
  EXPECT_EQ(differences("t: {sample: {prompt: a, tokens: 3}}\n", "t: {}\nnew: 1\n"),
            (Lines{"t.sample: {prompt: a, tokens: 3} -> ", "new:  -> 1"}));
  EXPECT_EQ(differences("t: {sample: 1}\n", "t: 5\n"), (Lines{"t: {sample: 1} -> 5"}));
}

}  // namespace
}  // namespace heddle
