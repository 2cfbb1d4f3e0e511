#include "trainers/run/run_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "core/io/atomic_file.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"
#include "trainers/run/checkpoint_config.h"
#include "trainers/run/checkpoint_state.h"

namespace heddle::run_folder_test {
namespace {

namespace fs = std::filesystem;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

TrainConfig tiny(const std::vector<std::string>& overrides = {}) { return testing::tiny_train_config(overrides); }

class RunFolderTest : public ::testing::Test {
 protected:
  RunFolderTest() {
    parameters_.add("vector", {5}, Initializer::normal(1.0), false);
    parameters_.materialize(context_, DType::float32, 1);
  }
  fs::path write(const fs::path& run, int64_t step, const std::string& config = to_yaml(tiny())) {
    return write_checkpoint(context_, run / "checkpoints", parameters_, Optimizer(context_, parameters_, {}),
                            {step, 1, config, "test"}, {.newest = 100});
  }
  // The step to go on from, 0 for a new start, or the reason why not.
  std::string choice(const fs::path& run, const std::string& resume, const TrainConfig& config = tiny(),
                     const DataIdentity& data = {}) {
    notes_.clear();
    try {
      const auto checkpoint = RunFolder(run).choose(resume, {config, registry_, data},
                                                    [&](const std::string& line) { notes_.push_back(line); });
      return std::to_string(checkpoint ? checkpoint->state.step : 0);
    } catch (const Error& error) {
      return error.what();
    }
  }

  const Registry& registry_ = built_in_registry();
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
  const TrainConfig longer = tiny({"trainer.steps=50"}), rotated = tiny({"model.mixer.lrpe=null"});
  EXPECT_THAT(choice(run_, "auto", longer),
              HasSubstr("step_5 was made with: trainer.steps is 50, the checkpoint's 40."));
  EXPECT_THAT(choice(run_, "auto", rotated),
              HasSubstr("model.mixer.lrpe is missing, the checkpoint's {type: lrpe_rotate, theta_init: rope"));
  EXPECT_THAT(choice(run_, "auto", tiny({"optimizer.lr=0.1", "optimizer.betas=[0.5, 0.95]", "trainer.sample=null"})),
              HasSubstr("made with: optimizer.lr is 0.1, the checkpoint's 0.003; optimizer.betas is [0.5, 0.95], the "
                        "checkpoint's [0.9, 0.95]. "));
  EXPECT_EQ(choice(run_, run_.string(), longer), "5");
  ASSERT_EQ(notes_.size(), 1u);
  EXPECT_THAT(notes_[0], HasSubstr("the config is not the one that " + run_.string()));
  EXPECT_THAT(notes_[0], HasSubstr("step_5 was made with: trainer.steps is 50, the checkpoint's 40"));
}

// A warm-up that a short run has cut is another one in a longer run, and that is said.
TEST_F(RunFolderTest, ALongerWarmupIsADifference) {
  const TrainConfig cut = tiny({"trainer.steps=3"});
  write(run_, 3, to_yaml(cut));
  EXPECT_EQ(choice(run_, "auto", cut), "3");
  EXPECT_EQ(choice(run_, run_.string()), "3");
  ASSERT_EQ(notes_.size(), 1u);
  EXPECT_THAT(notes_[0], HasSubstr("schedule.warmup_steps is 5, the checkpoint's 3; trainer.steps is 40, the "
                                   "checkpoint's 3"));
}

// It is the config that is compared, not the text: the version that wrote the checkpoint may have written it otherwise.
TEST_F(RunFolderTest, TheTextOfTheConfigMayDiffer) {
  // Another order of keys, another way to write a number, a default that is written out.
  std::string text = testing::tiny_config() + "  accumulate: 1\n";
  const std::string lr = "optimizer: {lr: 3.0e-3}\n";
  text.erase(text.find(lr), lr.size());
  write(run_, 5, "optimizer: {eps: 1e-8, lr: 0.00300}\n" + text);
  EXPECT_EQ(choice(run_, "auto"), "5");
  EXPECT_EQ(choice(run_, run_.string()), "5");
  EXPECT_TRUE(notes_.empty());
}

// What was written before the resolved config came from the structs: in the order of the config file, the defaults
// after it, and with a key of the norm that meant nothing in a model.
TEST_F(RunFolderTest, FormerCheckpointsAreContinued) {
  const std::string former = R"(seed: 7
data:
  type: copy
  length: 6
model:
  vocab_size: 8
  dim: 16
  layers: 2
  norm:
    type: srms_norm
    eps: 1.0e-6
    scale: 1
    groups: 1
    weight: false
    bias: false
    return_residual: true
  mixer:
    type: lightning
    heads: 2
    act: silu
    lrpe:
      type: lrpe_rotate
      theta_init: rope
      base: 10000
      layers: [0]
      learnable: false
      per_head: false
      act: none
      pairing: half
    gate:
      act: sigmoid
      position: post
      rank: 4
  channel:
    type: glu
    hidden: 16
    act: silu
  tie_embeddings: false
optimizer:
  lr: 3.0e-3
  type: adamw
  betas: [0.9, 0.95]
  eps: 1e-08
  weight_decay: 0.1
  clip_norm: 1
schedule:
  type: cosine
  warmup_steps: 5
  min_lr: 3.0e-4
trainer:
  steps: 40
  batch_size: 4
  sequence_length: 16
  eval_every: 10
  eval_batches: 2
  checkpoint_every: 10
  accumulate: 1
  dtype: float32
  loss_scale: 1
  cuda_graph: auto
  keep_checkpoints: 3
)";
  write(run_, 5, former);
  EXPECT_EQ(choice(run_, "auto"), "5");
  EXPECT_TRUE(notes_.empty());

  // Where the key did mean something, another model would take the place of the one that was trained.
  std::string without_residual = former;
  const std::string key = "return_residual: ";
  without_residual.replace(former.find(key), key.size() + 4, key + "false");
  write(run_, 6, without_residual);
  EXPECT_THAT(choice(run_, "auto"), HasSubstr("model.norm.return_residual: found false, expected true"));
}

// A program may lack the layers of a checkpoint: then the configs differ, but a path is a path.
TEST_F(RunFolderTest, AConfigThatCannotBeReadIsAnotherConfig) {
  write(run_, 5, "seed: 7\n");
  EXPECT_THAT(choice(run_, "auto"), HasSubstr("step_5:1:1: missing key 'data'"));
  EXPECT_EQ(choice(run_, run_.string()), "5");
  ASSERT_EQ(notes_.size(), 1u);
  EXPECT_THAT(notes_[0], HasSubstr("which cannot be read: config of " + run_.string()));
}

TEST_F(RunFolderTest, AutoDoesNotStartOverDamagedCheckpoints) {
  const fs::path path = write(run_, 5);
  fs::remove(path / "state.json");
  EXPECT_THAT(choice(run_, "auto"), HasSubstr("no checkpoint of"));
  ASSERT_EQ(notes_.size(), 1u);
  EXPECT_THAT(notes_[0], HasSubstr("state.json: the file is missing"));
}

TEST_F(RunFolderTest, NoRunStartsWhereItsCheckpointsCannotBe) {
  fs::create_directories(run_);
  fs::create_directory_symlink("/nowhere/disk", run_ / "checkpoints");
  for (const std::string resume : {"auto", "none"}) {
    EXPECT_THAT(choice(run_, resume), HasSubstr("run/checkpoints is a link to /nowhere/disk, where no folder is"));
  }
}

TEST_F(RunFolderTest, DamagedCheckpointsAreNoLaterOnes) {
  const fs::path first = write(run_, 5);
  fs::resize_file(write(run_, 10) / "model.safetensors", 20);
  fs::create_directories(run_ / "checkpoints/step_999");
  EXPECT_EQ(choice(run_, first.string()), "5");
  EXPECT_EQ(choice(run_, run_.string()), "5");
}

TEST_F(RunFolderTest, NoneNeedsAFolderWithoutCheckpoints) {
  EXPECT_EQ(choice(run_, "none"), "0");
  write(run_, 5);
  EXPECT_THAT(choice(run_, "none"), HasSubstr("holds checkpoints up to step 5"));
}

TEST_F(RunFolderTest, APathMustNotLeaveOtherCheckpointsBehind) {
  const fs::path first = write(run_, 5);
  EXPECT_EQ(choice(run_, first.string()), "5");
  const fs::path other = folder_ / "other";
  EXPECT_EQ(choice(other, first.string()), "5");
  write(run_, 10);
  EXPECT_EQ(choice(run_, run_.string()), "10");
  EXPECT_THAT(choice(run_, first.string()), HasSubstr("holds later checkpoints, up to step 10"));
  write(other, 20);
  EXPECT_THAT(choice(other, first.string()), HasSubstr("holds checkpoints of another run"));
  EXPECT_THAT(choice(run_, (folder_ / "nowhere").string()), HasSubstr("does not exist"));
}

// Tab completion writes the last slash of a folder, and a large checkpoint may have been moved to another disk.
TEST_F(RunFolderTest, ACheckpointIsOfItsRunByWhateverPath) {
  const fs::path checkpoint = write(run_, 5), disk = folder_ / "disk";
  const auto is_of_run = [&](const fs::path& path) {
    return is_in_folder({.path = path, .state = {}}, run_ / "checkpoints") && choice(run_, path.string()) == "5";
  };
  fs::create_symlink("step_5", run_ / "checkpoints/best");
  for (const char* name : {"step_5", "step_5/", "best", "best/", "../checkpoints/step_5/"}) {
    EXPECT_TRUE(is_of_run(run_ / "checkpoints" / name)) << name;
  }
  fs::rename(checkpoint, disk);
  fs::create_symlink(disk, checkpoint);
  EXPECT_TRUE(is_of_run(checkpoint));
  EXPECT_TRUE(is_of_run(checkpoint / ""));
  EXPECT_FALSE(is_of_run(disk));
  const fs::path here = fs::current_path();
  fs::current_path(run_ / "checkpoints");
  EXPECT_TRUE(is_of_run("step_5"));
  fs::current_path(here);
}

TEST_F(RunFolderTest, OneProcessAtATime) {
  const RunFolder first(run_);
  EXPECT_THROW(RunFolder second(run_), Error);
}

// Only what a run itself leaves when it is killed.
TEST_F(RunFolderTest, LeftoversAreRemoved) {
  const fs::path checkpoints = run_ / "checkpoints";
  fs::create_directories(partial_path(checkpoints / "step_3"));
  write_file(partial_path(checkpoints / "step_3") / "model.safetensors", "x");
  fs::create_directories(checkpoints / ".step_1.heddle-removed");
  fs::create_symlink("step_3", partial_path(checkpoints / "best"));
  write_file(partial_path(run_ / "config.yaml"), "x");
  const std::vector<fs::path> others = {run_ / "metrics.csv", run_ / ".notes.partial", checkpoints / ".step_3.partial",
                                        run_ / ".notes.heddle-partial", checkpoints / ".mine.heddle-partial"};
  for (const fs::path& other : others) write_file(other, "x");
  const RunFolder folder(run_);
  EXPECT_EQ(std::distance(fs::directory_iterator(checkpoints), {}), 2);
  EXPECT_FALSE(fs::exists(partial_path(run_ / "config.yaml")));
  for (const fs::path& other : others) EXPECT_TRUE(fs::exists(other)) << other;
}

TEST_F(RunFolderTest, AConfigOfTheUserIsNotReplaced) {
  write_file(folder_ / "config.yaml", "# mine\nseed: 1\n");
  const RunFolder mine(folder_.path());
  EXPECT_THROW(mine.check_config(), UsageError);
  EXPECT_THROW(mine.write_config("seed: 2\n"), UsageError);
  EXPECT_EQ(read_file(folder_ / "config.yaml"), "# mine\nseed: 1\n");

  const RunFolder folder(run_);
  folder.write_config("seed: 1\n");
  folder.write_config("seed: 2\n");
  EXPECT_THAT(read_file(run_ / "config.yaml"), ::testing::EndsWith("\nseed: 2\n"));
  // An earlier version wrote it without a first line that says so, but there are checkpoints.
  write(run_, 5);
  write_file(run_ / "config.yaml", "seed: 1\n");
  EXPECT_NO_THROW(folder.write_config("seed: 2\n"));
}

TEST_F(RunFolderTest, TheConfigInARunFolderBelongsToTheRun) {
  RunFolder(run_).write_config("seed: 1\n");
  EXPECT_EQ(run_folder_of(run_ / "config.yaml"), run_);
  write_file(folder_ / "config.yaml", "seed: 1\n");
  write_file(run_ / "other.yaml", "seed: 1\n");
  EXPECT_EQ(run_folder_of(folder_ / "config.yaml"), std::nullopt);
  EXPECT_EQ(run_folder_of(run_ / "other.yaml"), std::nullopt);
  EXPECT_EQ(run_folder_of(run_ / "nowhere" / "config.yaml"), std::nullopt);
}

TEST_F(RunFolderTest, AutoWantsTheSameData) {
  const DataIdentity data{.files = 1, .bytes = 100, .crc32 = 7};
  CheckpointState state{5, 1, to_yaml(tiny()), "test"};
  state.data = data;
  write_checkpoint(context_, run_ / "checkpoints", parameters_, Optimizer(context_, parameters_, {}), state,
                   {.newest = 100});
  EXPECT_EQ(choice(run_, "auto", tiny(), data), "5");
  const DataIdentity longer{.files = 1, .bytes = 3100, .crc32 = 8};
  EXPECT_THAT(choice(run_, "auto", tiny(), longer), HasSubstr("the data are not those that"));
  EXPECT_THAT(choice(run_, "auto", tiny(), longer),
              HasSubstr("now 1 file of 3100 bytes, crc32 00000008, then 1 file of 100"));
  EXPECT_EQ(choice(run_, run_.string(), tiny(), longer), "5");
  EXPECT_THAT(notes_, ::testing::ElementsAre(HasSubstr("the data are not those that")));
  // It must be the same bytes, too.
  EXPECT_THAT(choice(run_, "auto", tiny(), {.files = 1, .bytes = 100, .crc32 = 9}), HasSubstr("the data are not"));
}

TEST_F(RunFolderTest, AFileIsNoRunFolder) {
  write_file(run_, "x");
  EXPECT_THAT(choice(run_, "auto"), HasSubstr("is a file, expected a run folder"));
}

TEST_F(RunFolderTest, ALinkToADiskThatIsNotThereIsNoRunFolder) {
  fs::create_directory_symlink("/nowhere/disk", run_);
  EXPECT_THAT(choice(run_, "auto"), HasSubstr("run is a link to /nowhere/disk, where no folder is"));
  fs::remove(run_);
  fs::create_directory(run_.string() + "_of_disk");
  fs::create_directory_symlink(run_.string() + "_of_disk", run_);
  EXPECT_EQ(choice(run_, "auto"), "0");
}

// Of another user, such as lost+found. Root, whom no mode stops, takes the rights of another one.
TEST_F(RunFolderTest, AFolderThatCannotBeReadIsLeftOut) {
  const fs::path locked = run_ / "checkpoints/lost+found", checkpoint = write(run_, 5);
  fs::create_directory(locked);
  fs::permissions(locked, fs::perms::none);
  fs::permissions(folder_.path(), fs::perms::all);
  const uid_t user = ::geteuid();
  if (user == 0) {
    ASSERT_EQ(::seteuid(65534), 0);
  }
  std::vector<fs::path> files;
  EXPECT_NO_THROW(files = run_files(run_));
  EXPECT_EQ(::seteuid(user), 0);
  fs::permissions(locked, fs::perms::owner_all);
  EXPECT_THAT(files, ::testing::Contains(checkpoint / "model.safetensors"));
}

TEST_F(RunFolderTest, AnEmptyFolderThatWasMadeForNothingIsRemoved) {
  { const RunFolder failed(run_); }
  EXPECT_FALSE(fs::exists(run_));
  { RunFolder(run_).write_config("seed: 1\n"); }
  EXPECT_TRUE(fs::exists(run_ / "config.yaml"));
  fs::create_directory(folder_ / "mine");
  { const RunFolder failed(folder_ / "mine"); }
  EXPECT_TRUE(fs::exists(folder_ / "mine"));
}

// A checkpoint that does not say how much data it has used was made with the batches of its config, not of today's.
TEST_F(RunFolderTest, TheDataThatAFormerCheckpointUsedAreCountedByItsConfig) {
  const std::vector<std::string> then = {"trainer.batch_size=3", "trainer.accumulate=5", "trainer.sequence_length=12"};
  const Checkpoint checkpoint = open_checkpoint(write(run_, 7, to_yaml(tiny(then))));
  const TrainedOn used = trained_on(checkpoint, tiny(), registry_);
  EXPECT_EQ(used.sequences, 7 * 3 * 5);
  EXPECT_EQ(used.tokens, 7 * 3 * 5 * 12);
}

TEST(EvaluationHistoryTest, IsTheSameInACheckpoint) {
  const testing::TempFolder folder;
  for (const bool has_best : {false, true}) {
    for (const int64_t without_gain : {0, 2}) {
      CheckpointState state{.step = 3, .seed = 1, .config = "", .program = ""};
      if (has_best) state.evaluations.best = {.step = 2, .loss = 0.1, .accuracy = 0.75, .bits_per_byte = 1.5};
      state.evaluations.without_gain = without_gain;
      write_state(folder / "state.json", state, {{"model.safetensors", {}}});
      const EvaluationHistory found = read_state(folder / "state.json").state.evaluations;
      EXPECT_EQ(found.best.has_value(), has_best);
      EXPECT_EQ(found.without_gain, without_gain);
      if (!has_best) continue;
      EXPECT_EQ(found.best->step, 2);
      EXPECT_EQ(found.best->loss, 0.1);
      EXPECT_EQ(found.best->accuracy, 0.75);
      EXPECT_EQ(found.best->bits_per_byte, 1.5);
    }
  }
}

// Also in checkpoints of former versions, which hold its loss alone.
TEST(EvaluationHistoryTest, WhatWasNotMeasuredOfTheBestIsNotInACheckpoint) {
  const testing::TempFolder folder;
  CheckpointState state{.step = 3, .seed = 1, .config = "", .program = ""};
  state.evaluations.best = {.step = 2, .loss = 0.1};
  write_state(folder / "state.json", state, {{"model.safetensors", {}}});
  EXPECT_THAT(read_file(folder / "state.json"), Not(AnyOf(HasSubstr("accuracy"), HasSubstr("bits"))));
  const EvaluationHistory found = read_state(folder / "state.json").state.evaluations;
  EXPECT_TRUE(std::isnan(found.best->accuracy));
  EXPECT_TRUE(std::isnan(found.best->bits_per_byte));
}

TEST(EvaluationHistoryTest, OnlyALowerLossIsAGain) {
  EvaluationHistory history;
  EXPECT_FALSE(history.add({0, std::numeric_limits<double>::infinity()}));
  EXPECT_FALSE(history.add({1, std::numeric_limits<double>::quiet_NaN()}));
  EXPECT_EQ(history.without_gain, 2);
  EXPECT_TRUE(history.add({2, 3.0}));
  EXPECT_EQ(history.without_gain, 0);
  EXPECT_FALSE(history.add({3, 3.0}));
  EXPECT_FALSE(history.add({4, 3.5}));
  EXPECT_FALSE(history.add({5, std::numeric_limits<double>::quiet_NaN()}));
  EXPECT_EQ(history.best->step, 2);
  EXPECT_EQ(history.without_gain, 3);
  EXPECT_TRUE(history.add({6, 2.9}));
  EXPECT_EQ(history.best->step, 6);
  EXPECT_EQ(history.best->loss, 2.9);
  EXPECT_EQ(history.without_gain, 0);
}

}  // namespace
}  // namespace heddle::run_folder_test
