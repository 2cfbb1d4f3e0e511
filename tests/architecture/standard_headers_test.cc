#include "standard_headers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "include_dag.h"

namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

const fs::path kRoot = HEDDLE_SOURCE_DIR;

StandardHeaders headers_of_the_table() {
  std::ifstream lines(kRoot / "tests/architecture/standard_headers.txt");
  return StandardHeaders(lines);
}

// Empty where there is no such file.
std::string text_of(const fs::path& path) {
  std::ostringstream text;
  if (fs::exists(path)) text << std::ifstream(path).rdbuf();
  return text.str();
}

// All C++ and CUDA files below the folders of the build and in the tests, as paths from the root.
std::set<fs::path> sources() {
  std::ifstream lines(HEDDLE_INCLUDE_DAG);
  std::set<std::string> folders = {"tests"};
  const IncludeDag dag(lines);
  for (const auto& [folder, below] : dag.folders()) folders.insert(folder);
  std::set<fs::path> found;
  for (const std::string& folder : folders) {
    if (!fs::exists(kRoot / folder)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / folder)) {
      const std::string extension = entry.path().extension();
      const bool is_source = extension == ".h" || extension == ".cc" || extension == ".cu" || extension == ".cuh";
      if (is_source) found.insert(entry.path().lexically_relative(kRoot));
    }
  }
  return found;
}

// The header X.h that X.cc or X.cu implements: beside it, or for kernels above its folder cpu or cuda.
std::string own_header_of(const fs::path& source, const std::string& text) {
  if (source.extension() == ".h") return "";
  fs::path header = source;
  header.replace_extension(".h");
  static const std::regex device_folder("/(cpu|cuda)/");
  for (const std::string& name : {header.string(), std::regex_replace(header.string(), device_folder, "/")}) {
    if (text.find("#include \"" + name + "\"") != std::string::npos) return text_of(kRoot / name);
  }
  return "";
}

TEST(StandardHeaders, EverySourceIncludesWhatItUses) {
  const StandardHeaders headers = headers_of_the_table();
  const std::set<fs::path> all = sources();
  for (const char* known : {"examples/train_without_yaml.cc", "kernels/dense/cuda/gemm.cu", "tests/temp_folder.h"}) {
    EXPECT_TRUE(all.contains(known)) << known;
  }
  for (const fs::path& path : all) {
    const std::string text = text_of(kRoot / path);
    for (const std::string& message : headers.violations(path.string(), text, own_header_of(path, text))) {
      ADD_FAILURE() << message;
    }
  }
}

TEST(StandardHeaders, FindsAMissingInclude) {
  const StandardHeaders headers = headers_of_the_table();
  EXPECT_THAT(headers.violations("a.cc", "#include <vector>\n\nauto x = std::max_element(v.begin(), v.end());\n"),
              ElementsAre("a.cc:3: std::max_element is used without #include <algorithm>"));
  EXPECT_THAT(headers.violations("a.cc", "#include <cstdint>\nstd::vector<int64_t> v;  // 1\n", "#include <string>\n"),
              ElementsAre("a.cc:2: std::vector is used without #include <vector>"));
  EXPECT_THAT(headers.violations("a.h", "#include <string>\nuint8_t f(std::string s);\nuint8_t g();\n"),
              ElementsAre("a.h:2: uint8_t is used without #include <cstdint>"));
  EXPECT_THAT(headers.violations("a.h", "namespace fs = std::filesystem;\nfs::path p = \"std::map\";\n"),
              ElementsAre("a.h:1: std::filesystem is used without #include <filesystem>"));
  EXPECT_THAT(
      headers.violations("a.cc", "int n = 1'000;\nconst char* s = R\"x(\n)x\";\nchar c = '\"';\nstd::set<int> s;\n"),
      ElementsAre("a.cc:5: std::set is used without #include <set>"));
  EXPECT_THAT(headers.violations("a.cc", "std::no_such_name x;\n"),
              ElementsAre("a.cc:1: std::no_such_name is not in tests/architecture/standard_headers.txt: add it to the "
                          "line of its header"));
}

TEST(StandardHeaders, LeavesTheRestAlone) {
  const StandardHeaders headers = headers_of_the_table();
  const std::string vector = "#include <vector>\n";
  EXPECT_THAT(headers.violations("a.cc", vector + "std::vector<int> v;\n"), IsEmpty());
  EXPECT_THAT(headers.violations("a.cc", "std::vector<int> v;\n", vector), IsEmpty()) << "its own header has it";
  EXPECT_THAT(
      headers.violations("a.cc", "// std::map\n/* std::set\n */ const char* s = \"std::sort \\\" std::map\";\n"),
      IsEmpty());
  EXPECT_THAT(headers.violations("a.cc", "int size = other.size_t + our::errno_of(std_name);\n"), IsEmpty());
}

}  // namespace
