#include "core/io/mapped_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <ios>
#include <optional>
#include <string>
#include <thread>

#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "tests/temp_folder.h"

namespace heddle {
namespace {

using ::testing::HasSubstr;
using testing::TempFolder;

std::string refusal(const std::filesystem::path& path) {
  try {
    MappedFile file(path);
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

TEST(MappedFileTest, HoldsTheBytesOfTheFile) {
  const TempFolder folder;
  std::string contents(10000, '\0');
  for (size_t i = 0; i < contents.size(); ++i) contents[i] = static_cast<char>(i * 37);
  write_file(folder / "file", contents);
  std::optional<MappedFile> file(folder / "file");
  EXPECT_EQ(file->bytes(), contents);
  EXPECT_EQ(file->path(), folder / "file");

  const MappedFile copy = *file;
  file.reset();
  write_file(folder / "file", "another file under this name");
  EXPECT_EQ(copy.bytes(), contents);
  EXPECT_EQ(MappedFile(folder / "file").bytes(), "another file under this name");

  write_file(folder / "empty", "");
  EXPECT_EQ(MappedFile(folder / "empty").bytes(), "");
}

TEST(MappedFileTest, WhatCannotBeMappedIsRead) {
  const TempFolder folder;
  const std::filesystem::path path = folder / "pipe";
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const std::string contents(3000000, 'x');  // of several reads
  std::thread writer([&] { std::ofstream(path, std::ios::binary) << contents << "y"; });
  const MappedFile file(path);
  writer.join();
  EXPECT_EQ(file.bytes(), contents + "y");
  const MappedFile copy = file;
  EXPECT_EQ(copy.bytes().data(), file.bytes().data());
}

TEST(MappedFileTest, NamesWhatItCannotOpen) {
  const TempFolder folder;
  EXPECT_THAT(refusal(folder / "none"), HasSubstr("cannot open " + (folder / "none").string() + ": No such file"));
  EXPECT_THAT(refusal(folder.path()), HasSubstr(folder.path().string() + ": it is a folder"));
}

}  // namespace
}  // namespace heddle
