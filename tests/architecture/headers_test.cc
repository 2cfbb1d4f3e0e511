// Every public header compiles alone. One that is the first include of its own source, X.h of X.cc, is compiled alone
// there; the others are listed by CMake as `alone`, and compiled by the target heddle_headers_alone.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace {

std::string first_include(const std::filesystem::path& source) {
  std::ifstream lines(source);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("#include")) return line;
  }
  return "";
}

TEST(Headers, EachIsTheFirstIncludeOfItsSourceOrIsCompiledAlone) {
  std::ifstream lines(HEDDLE_HEADERS);
  int headers = 0, alone = 0;
  for (std::string header, source; lines >> header >> source; ++headers) {
    if (source == "alone") {
      ++alone;
    } else {
      EXPECT_EQ(first_include(HEDDLE_SOURCE_DIR "/" + source), "#include \"" + header + "\"")
          << source << ": include " << header << " first, so that it is known to compile alone";
    }
  }
  EXPECT_GT(headers, alone);
  EXPECT_GT(alone, 0);
}

}  // namespace
