#include "core/io/file_identity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "tests/temp_folder.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;

TEST(FileIdentityTest, AllPathsOfAFileAreEqual) {
  const testing::TempFolder folder;
  write_file(folder / "file", "x");
  write_file(folder / "copy", "x");
  fs::create_symlink(folder / "file", folder / "link");
  fs::create_hard_link(folder / "file", folder / "hard");
  for (const char* name : {"file", "./file", "link", "hard"}) {
    EXPECT_EQ(file_identity(folder / name), file_identity(folder / "file")) << name;
  }
  EXPECT_NE(file_identity(folder / "copy"), file_identity(folder / "file"));
}

TEST(FileIdentityTest, OfAFileThatIsNotThereYet) {
  const testing::TempFolder folder;
  fs::create_symlink("new", folder / "link");
  EXPECT_EQ(file_identity(folder / "link"), file_identity(folder / "new"));
  EXPECT_EQ(file_identity(folder / "none/../new"), file_identity(folder / "new"));
  EXPECT_NE(file_identity(folder / "other"), file_identity(folder / "new"));
  EXPECT_EQ(file_identity("heddle_new"), file_identity(fs::current_path() / "heddle_new"));
  fs::create_symlink("circle", folder / "circle");
  EXPECT_EQ(file_identity(folder / "circle"), file_identity(folder / "./circle"));
  EXPECT_NE(file_identity(folder / "circle"), file_identity(folder / "new"));
  EXPECT_THROW(is_written_through(folder / "circle"), Error);
}

// A descriptor is written through whatever it leads to.
TEST(FileIdentityTest, WhatIsWrittenThrough) {
  const testing::TempFolder folder;
  write_file(folder / "file", "x");
  fs::create_symlink("/dev/stdout", folder / "link");
  for (const std::string& path : std::vector<std::string>{"/dev/null", "/dev/stdout", "/dev/fd/1", folder / "link"}) {
    EXPECT_TRUE(is_written_through(path)) << path;
  }
  for (const fs::path& path : std::vector<fs::path>{folder / "file", folder / "new", folder.path()}) {
    EXPECT_FALSE(is_written_through(path)) << path;
  }
}

}  // namespace
}  // namespace heddle
