#include "trainers/gemm_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "core/io/atomic_file.h"
#include "kernels/dense/gemm_algorithms.h"
#include "tests/temp_folder.h"

namespace heddle::gemm_cache_test {
namespace {

using Entries = std::map<std::string, std::string>;

class GemmCacheTest : public ::testing::Test {
 protected:
  static Entries& known(Context& context) { return context.resource<kernels::GemmAlgorithms>().known; }

  heddle::testing::TempFolder folder_;
  std::filesystem::path file_ = folder_ / "cache" / "heddle" / "gemm_algorithms.txt";
  std::vector<std::string> notes_;
  Note note_ = [this](const std::string& line) { notes_.push_back(line); };
};

TEST_F(GemmCacheTest, KeepsWhatWasFound) {
  Context context;
  GemmCache cache(context, file_, note_);
  EXPECT_TRUE(context.resource<kernels::GemmAlgorithms>().search);
  cache.save();
  EXPECT_FALSE(std::filesystem::exists(file_)) << "nothing was found";
  known(context)["a/64x64"] = "01ff";
  known(context)["b/64x64"] = "02ff";
  cache.save();
  EXPECT_EQ(read_file(file_), "a/64x64 01ff\nb/64x64 02ff\n");

  Context other;
  GemmCache(other, file_, note_);
  EXPECT_EQ(known(other), known(context));
  EXPECT_TRUE(notes_.empty());
}

TEST_F(GemmCacheTest, KeepsWhatAnotherProcessWrote) {
  Context first, second;
  GemmCache first_cache(first, file_, note_), second_cache(second, file_, note_);
  known(first)["a"] = "1";
  known(second)["a"] = "2";
  known(second)["b"] = "2";
  first_cache.save();
  second_cache.save();
  EXPECT_EQ(read_file(file_), "a 1\nb 2\n");
}

TEST_F(GemmCacheTest, LeavesOutDamagedLines) {
  std::filesystem::create_directories(file_.parent_path());
  write_file(file_, "a 1\n\nb\nc 3 4\nd 5");
  Context context;
  GemmCache(context, file_, note_);
  EXPECT_EQ(known(context), (Entries{{"a", "1"}, {"d", "5"}}));
}

TEST_F(GemmCacheTest, APipeIsANoteAndIsNotWaitedFor) {
  std::filesystem::create_directories(file_.parent_path());
  ASSERT_EQ(::mkfifo(file_.c_str(), 0600), 0);
  Context context;
  GemmCache cache(context, file_, note_);
  known(context)["a/64x64"] = "01ff";
  cache.save();
  ASSERT_EQ(notes_.size(), 2u);
  for (const std::string& note : notes_) EXPECT_THAT(note, ::testing::HasSubstr("is a pipe, expected a file"));
}

TEST_F(GemmCacheTest, AFolderThatCannotBeMadeIsANote) {
  write_file(folder_ / "cache", "a file where the folder should be");
  Context context;
  GemmCache cache(context, file_, note_);
  known(context)["a"] = "1";
  cache.save();
  cache.save();
  EXPECT_THAT(notes_, ::testing::ElementsAre(::testing::HasSubstr("are not kept: ")));
}

TEST_F(GemmCacheTest, WithoutAFileNothingIsKept) {
  Context context;
  GemmCache cache(context, {}, note_);
  EXPECT_TRUE(context.resource<kernels::GemmAlgorithms>().search);
  known(context)["a"] = "1";
  cache.save();
  EXPECT_TRUE(notes_.empty());
}

TEST_F(GemmCacheTest, TheFileIsInTheCacheOfTheUser) {
  ::setenv("XDG_CACHE_HOME", "/a/cache", 1);
  EXPECT_EQ(gemm_cache_file(), "/a/cache/heddle/gemm_algorithms.txt");
  ::setenv("XDG_CACHE_HOME", "relative", 1);  // which the standard says to ignore
  ::setenv("HOME", "/home/user", 1);
  EXPECT_EQ(gemm_cache_file(), "/home/user/.cache/heddle/gemm_algorithms.txt");
  ::unsetenv("XDG_CACHE_HOME");
  ::unsetenv("HOME");
  EXPECT_EQ(gemm_cache_file(), "");
}

}  // namespace
}  // namespace heddle::gemm_cache_test
