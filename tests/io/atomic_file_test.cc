#include "core/io/atomic_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <filesystem>
#include <iterator>
#include <string>

#include "core/runtime/error.h"
#include "tests/temp_folder.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;

class AtomicFileTest : public ::testing::Test {
 protected:
  size_t files() const { return static_cast<size_t>(std::distance(fs::directory_iterator(folder_.path()), {})); }
  testing::TempFolder folder_;
};

TEST_F(AtomicFileTest, TheOldFileStaysUntilTheNewOneIsWhole) {
  const fs::path path = folder_ / "file";
  write_file(path, "old");
  {
    AtomicFile file(path);
    file.write("new", 3);
    EXPECT_EQ(read_file(path), "old");
  }
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(files(), 1u);  // nothing is left beside it
  const FileDigest digest = write_file(path, "new");
  EXPECT_EQ(digest_file(path), digest);
  EXPECT_EQ(read_file(path), "new");
  EXPECT_EQ(files(), 1u);
}

TEST_F(AtomicFileTest, TheDigestIsTheCommonCrc32) {
  const FileDigest digest = write_file(folder_ / "file", "123456789");
  EXPECT_EQ(digest.bytes, 9u);
  EXPECT_EQ(digest.crc32, 0xCBF43926u);  // the check value of CRC-32/ISO-HDLC
}

TEST_F(AtomicFileTest, ErrorsNameTheFile) {
  const auto message = [](auto action) -> std::string {
    try {
      action();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_THAT(message([&] { read_file(folder_ / "none"); }), ::testing::HasSubstr("none: No such file"));
  EXPECT_THAT(message([&] { read_file(folder_.path()); }), ::testing::HasSubstr("it is a folder"));
  EXPECT_THAT(message([&] { write_file(folder_ / "no/file", "x"); }), ::testing::HasSubstr("No such file"));
}

}  // namespace
}  // namespace heddle
