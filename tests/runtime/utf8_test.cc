#include "core/runtime/utf8.h"

#include <gtest/gtest.h>

#include <string>

namespace heddle {
namespace {

TEST(Utf8Test, OnlyCharactersHaveALength) {
  EXPECT_EQ(character_length("ab"), 1u);
  EXPECT_EQ(character_length("\xc3\xa4z"), 2u);
  EXPECT_EQ(character_length("\xe2\x82\xac"), 3u);
  EXPECT_EQ(character_length("\xf0\x9f\x98\x80"), 4u);
  for (const char* none : {"", "\x80", "\xc3", "\xc3z", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                           "\xf5\x80\x80\x80", "\xe2\x82"}) {
    EXPECT_EQ(character_length(none), 0u) << none;
  }
}

TEST(Utf8Test, OtherBytesAreReplacedOneByOne) {
  EXPECT_EQ(valid_utf8("caf\xc3\xa9"), "caf\xc3\xa9");
  EXPECT_EQ(valid_utf8("caf\xe9.yaml"), "caf\xef\xbf\xbd.yaml");
  EXPECT_EQ(valid_utf8("\xe2\x82"), "\xef\xbf\xbd\xef\xbf\xbd");
}

TEST(Utf8Test, TheEndIsCutBetweenCharacters) {
  EXPECT_EQ(last_characters("a\xc3\xa4\xe2\x82\xac", 2), "\xc3\xa4\xe2\x82\xac");
  EXPECT_EQ(last_characters("ab", 5), "ab");
  EXPECT_EQ(last_characters("ab", 0), "");
}

}  // namespace
}  // namespace heddle
