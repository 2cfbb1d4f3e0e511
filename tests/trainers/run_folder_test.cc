#include "trainers/run/run_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/io/atomic_file.h"
#include "tests/temp_folder.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class RunFolderTest : public ::testing::Test {
 protected:
  RunFolderTest() {
    parameters_.add("vector", {5}, Initializer::normal(1.0), false);
    parameters_.materialize(context_, DType::float32, 1);
  }
  fs::path write(const fs::path& run, int64_t step) {
    return write_checkpoint(context_, run / "checkpoints", parameters_, AdamW(context_, parameters_, {}),
                            {step, 1, kConfig, "test"}, 100);
  }
  // The step to go on from, 0 for a new start, or the reason why not.
  std::string choice(const fs::path& run, const std::string& resume, const std::string& config = kConfig) {
    notes_.clear();
    try {
      const auto checkpoint =
          RunFolder(run).choose(resume, config, [&](const std::string& line) { notes_.push_back(line); });
      return std::to_string(checkpoint ? checkpoint->state.step : 0);
    } catch (const Error& error) {
      return error.what();
    }
  }

  static constexpr const char* kConfig = "seed: 1\nsteps: 2\n";
  testing::TempFolder folder_;
  fs::path run_ = folder_ / "run";
  Context context_;
  ParameterSet parameters_;
  std::vector<std::string> notes_;
};

TEST_F(RunFolderTest, AutoGoesOnFromTheNewest) {
  EXPECT_EQ(choice(run_, "auto"), "0");
  write(run_, 5);
  write(run_, 10);
  EXPECT_EQ(choice(run_, "auto"), "10");
  EXPECT_TRUE(notes_.empty());
}

TEST_F(RunFolderTest, AutoWantsTheSameConfig) {
  write(run_, 5);
  EXPECT_THAT(choice(run_, "auto", "seed: 1\nsteps: 3\n"), HasSubstr("now 'steps: 3', then 'steps: 2'"));
  EXPECT_THAT(choice(run_, "auto", "seed: 1\n"), HasSubstr("now 'nothing', then 'steps: 2'"));
  EXPECT_EQ(choice(run_, run_.string(), "seed: 1\nsteps: 3\n"), "5");
  ASSERT_EQ(notes_.size(), 1u);
  EXPECT_THAT(notes_[0], HasSubstr("the config is not the one"));
}

TEST_F(RunFolderTest, AutoDoesNotStartOverDamagedCheckpoints) {
  const fs::path path = write(run_, 5);
  fs::remove(path / "state.json");
  EXPECT_THAT(choice(run_, "auto"), HasSubstr("no checkpoint of"));
  ASSERT_EQ(notes_.size(), 1u);
  EXPECT_THAT(notes_[0], HasSubstr("state.json: the file is missing"));
}

TEST_F(RunFolderTest, NoneNeedsAFolderWithoutCheckpoints) {
  EXPECT_EQ(choice(run_, "none"), "0");
  write(run_, 5);
  EXPECT_THAT(choice(run_, "none"), HasSubstr("holds checkpoints up to step 5"));
}

TEST_F(RunFolderTest, APathMustNotLeaveOtherCheckpointsBehind) {
  const fs::path early = write(run_, 5);
  EXPECT_EQ(choice(run_, early.string()), "5");
  const fs::path other = folder_ / "other";
  EXPECT_EQ(choice(other, early.string()), "5");
  write(run_, 10);
  EXPECT_EQ(choice(run_, run_.string()), "10");
  EXPECT_THAT(choice(run_, early.string()), HasSubstr("holds later checkpoints, up to step 10"));
  write(other, 20);
  EXPECT_THAT(choice(other, early.string()), HasSubstr("holds checkpoints of another run"));
  EXPECT_THAT(choice(run_, (folder_ / "nowhere").string()), HasSubstr("does not exist"));
}

TEST_F(RunFolderTest, OneProcessAtATime) {
  const RunFolder first(run_);
  EXPECT_THROW(RunFolder second(run_), Error);
}

TEST_F(RunFolderTest, LeftoversAreRemoved) {
  fs::create_directories(run_ / "checkpoints" / ".step_3.partial");
  write_file(run_ / "checkpoints" / ".step_3.partial" / "model.safetensors", "x");
  fs::create_directories(run_ / "checkpoints" / ".step_1.removed");
  write_file(run_ / ".metrics.csv.partial", "x");
  write_file(run_ / "metrics.csv", "x");
  const RunFolder folder(run_);
  EXPECT_TRUE(fs::is_empty(run_ / "checkpoints"));
  EXPECT_TRUE(fs::exists(run_ / "metrics.csv"));
  EXPECT_FALSE(fs::exists(run_ / ".metrics.csv.partial"));
}

TEST_F(RunFolderTest, AFileIsNoRunFolder) {
  write_file(run_, "x");
  EXPECT_THAT(choice(run_, "auto"), HasSubstr("is a file, expected a run folder"));
}

}  // namespace
}  // namespace heddle
