#include "core/io/temporary_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "tests/temp_folder.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class TemporaryFolderTest : public ::testing::Test {
 protected:
  ~TemporaryFolderTest() override { ::unsetenv("TMPDIR"); }

  void set(const fs::path& path) { ::setenv("TMPDIR", path.c_str(), 1); }
  std::string refusal_in(const fs::path& path) {
    set(path);
    try {
      const TemporaryFolder folder("test");
      return "none";
    } catch (const Error& error) {
      return error.what();
    }
  }

  testing::TempFolder parent_;
};

TEST_F(TemporaryFolderTest, IsInTmpdirAndRemoved) {
  set(parent_.path());
  fs::path path;
  {
    const TemporaryFolder folder("test");
    path = folder.path();
    EXPECT_EQ(path.parent_path(), parent_.path());
    EXPECT_THAT(path.filename().string(), StartsWith("heddle_test_"));
    write_file(path / "file", "text");
  }
  EXPECT_FALSE(fs::exists(path));
  set("");
  EXPECT_EQ(TemporaryFolder("test").path().parent_path(), "/tmp");
}

TEST_F(TemporaryFolderTest, NamesTmpdirWhereNoneCanBeMade) {
  const fs::path missing = parent_ / "missing";
  EXPECT_EQ(refusal_in(missing), "no folder can be made in " + missing.string() +
                                     ", which TMPDIR names: No such file or directory; set TMPDIR to a folder for "
                                     "temporary files");
  write_file(parent_ / "file", "text");
  EXPECT_THAT(refusal_in(parent_ / "file"), AllOf(HasSubstr("TMPDIR"), HasSubstr("Not a directory")));
}

}  // namespace
}  // namespace heddle
