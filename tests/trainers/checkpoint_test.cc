#include "trainers/run/checkpoint.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <ios>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/tensor/transfer.h"
#include "tests/error_of.h"
#include "tests/io/recorded_calls.h"
#include "tests/temp_folder.h"
#include "trainers/evaluation_history.h"

namespace heddle::checkpoint_test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

// Two parameters and their optimizer, filled with numbers of their own.
struct Trained {
  explicit Trained(Context& context, uint64_t seed, DType dtype = DType::float32, int64_t width = 3) {
    parameters.add("matrix", {4, width}, Initializer::normal(1.0), true);
    parameters.add("vector", {5}, Initializer::normal(1.0), false);
    parameters.materialize(context, dtype, seed);
    optimizer = std::make_unique<Optimizer>(context, parameters, OptimizerConfig{});
    Random random(seed, RandomStream::test);
    for (const NamedTensor& named : optimizer->state()) fill_normal(context, named.tensor, random, 0.0, 1.0);
  }

  std::vector<double> numbers(Context& context) const {
    std::vector<double> all;
    const auto append = [&](const Tensor& tensor) {
      const std::vector<double> values = read_values(context, tensor);
      all.insert(all.end(), values.begin(), values.end());
    };
    for (const Parameter& parameter : parameters.all()) append(parameter.master);
    for (const NamedTensor& named : optimizer->state()) append(named.tensor);
    return all;
  }

  ParameterSet parameters;
  std::unique_ptr<Optimizer> optimizer;
};

// Changes the state in a checkpoint, with a checksum that fits.
void change_state(const fs::path& checkpoint, const std::function<void(nlohmann::json&)>& change) {
  nlohmann::json json = nlohmann::json::parse(read_file(checkpoint / "state.json"));
  change(json["state"]);
  const std::string state = json["state"].dump();
  FileDigest digest;
  extend(digest, state.data(), state.size());
  json["crc32"] = digest.crc32;
  write_file(checkpoint / "state.json", json.dump());
}

class CheckpointTest : public ::testing::Test {
 protected:
  fs::path write(int64_t step, int64_t keep = 100) {
    return write_checkpoint(context_, folder_.path() / "checkpoints", trained_.parameters, *trained_.optimizer,
                            {step, 3, "seed: 3\n", "heddle test"}, {.newest = keep});
  }
  std::string refusal(const fs::path& checkpoint) {
    try {
      open_checkpoint(checkpoint);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  }
  std::vector<int64_t> steps() {
    std::vector<int64_t> all;
    for (const CheckpointFolder& folder : list_checkpoints(folder_.path() / "checkpoints")) all.push_back(folder.step);
    return all;
  }

  testing::TempFolder folder_;
  Context context_;
  Trained trained_{context_, 1};
};

TEST_F(CheckpointTest, ReadsBackBitForBit) {
  const Checkpoint checkpoint = open_checkpoint(write(12));
  EXPECT_EQ(checkpoint.path.filename(), "step_12");
  EXPECT_EQ(checkpoint.state.step, 12);
  EXPECT_EQ(checkpoint.state.seed, 3u);
  EXPECT_EQ(checkpoint.state.config, "seed: 3\n");
  EXPECT_EQ(checkpoint.state.program, "heddle test");
  Trained other(context_, 2);
  EXPECT_NE(other.numbers(context_), trained_.numbers(context_));
  load_parameters(context_, checkpoint, other.parameters);
  load_optimizer(context_, checkpoint, *other.optimizer);
  EXPECT_EQ(other.numbers(context_), trained_.numbers(context_));
}

TEST_F(CheckpointTest, ComputeCopiesFollowTheMasters) {
  const Checkpoint checkpoint = open_checkpoint(write(1));
  Trained other(context_, 2, DType::bfloat16);
  load_parameters(context_, checkpoint, other.parameters);
  Trained same(context_, 1, DType::bfloat16);
  EXPECT_EQ(read_values(context_, other.parameters.value()), read_values(context_, same.parameters.value()));
}

// Each file is on the disk under its name before the folder gets its own, and that before write_checkpoint() returns.
TEST_F(CheckpointTest, IsOnTheDiskBeforeItHasItsName) {
  write(1);
  testing::RecordedCalls record(folder_.path() / "checkpoints");
  write(7);
  std::vector<std::string> expected;
  const std::string partial = ".step_7.heddle-partial";
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "state.json"}) {
    const std::string aside = fmt::format("{}/.{}.heddle-partial", partial, name);
    for (const char* call : {"open", "write", "fsync"}) expected.push_back(fmt::format("{} {}", call, aside));
    expected.push_back(fmt::format("rename {} to {}/{}", aside, partial, name));
    for (const char* call : {"open", "fsync"}) expected.push_back(fmt::format("{} {}", call, partial));
  }
  expected.insert(expected.end(), {"rename " + partial + " to step_7", "open .", "fsync ."});
  EXPECT_EQ(record.calls, expected);
}

// The folder of the checkpoints, too, is there to stay before anything is written into it.
TEST_F(CheckpointTest, ANewFolderOfCheckpointsIsSynced) {
  testing::RecordedCalls record(folder_.path());
  write(1);
  ASSERT_GT(record.calls.size(), 2u);
  EXPECT_EQ(record.calls[0], "open .");
  EXPECT_EQ(record.calls[1], "fsync .");
}

// Whichever call fails: no step_N is there in part, nothing else is left, and the checkpoint before it stays.
TEST_F(CheckpointTest, AnyCallMayFail) {
  write(1);
  size_t failing = 0;
  for (bool failed = true; failed; ++failing) {
    fs::remove_all(folder_ / "checkpoints/step_7");
    bool is_named = false;
    {
      testing::RecordedCalls record(folder_.path() / "checkpoints");
      record.fails_at = failing;
      std::string said = "no error";
      try {
        write(7);
      } catch (const Error& error) {
        said = error.what();
      }
      failed = record.made > failing;
      const std::string naming = "rename .step_7.heddle-partial to step_7";
      is_named = record.calls.back() != naming && std::count(record.calls.begin(), record.calls.end(), naming) == 1;
      if (failed) {
        EXPECT_THAT(said, ::testing::AllOf(HasSubstr((folder_ / "checkpoints").string()),
                                           HasSubstr("No space left on device")));
      } else {
        EXPECT_EQ(said, "no error");
      }
    }
    EXPECT_EQ(steps(), is_named ? (std::vector<int64_t>{1, 7}) : std::vector<int64_t>{1}) << failing;
    for (const CheckpointFolder& checkpoint : list_checkpoints(folder_ / "checkpoints")) {
      EXPECT_EQ(refusal(checkpoint.path), "accepted") << failing;
    }
    for (const auto& entry : fs::directory_iterator(folder_ / "checkpoints")) {
      EXPECT_TRUE(entry.path().filename().string().starts_with("step_")) << entry.path();
    }
  }
  EXPECT_GT(failing, 20u);
}

TEST_F(CheckpointTest, TheNewestAreKept) {
  for (int64_t step : {2, 10, 9, 30}) write(step, 2);
  EXPECT_EQ(steps(), (std::vector<int64_t>{10, 30}));
  write(30, 2);  // again: replaced
  EXPECT_EQ(steps(), (std::vector<int64_t>{10, 30}));
  for (const auto& entry : fs::directory_iterator(folder_ / "checkpoints")) {
    EXPECT_TRUE(entry.path().filename().string().starts_with("step_")) << entry.path();
  }
}

// What is damaged, or later than the one that was written, takes the place of none.
TEST_F(CheckpointTest, OnlyWholeOnesAreCounted) {
  fs::create_directories(folder_ / "checkpoints/step_999");
  fs::resize_file(write(500) / "model.safetensors", 20);
  for (int64_t step : {1, 2}) write(step, 1);
  EXPECT_EQ(steps(), (std::vector<int64_t>{2, 500, 999}));
  fs::create_directories(folder_ / "checkpoints/step_3");
  fs::remove(write(4) / "optimizer.safetensors");
  EXPECT_EQ(steps(), (std::vector<int64_t>{2, 3, 4, 500, 999}));
  write(5, 2);
  EXPECT_EQ(steps(), (std::vector<int64_t>{2, 3, 4, 5, 500, 999}));
  write(6, 2);
  EXPECT_EQ(steps(), (std::vector<int64_t>{5, 6, 500, 999}));
  EXPECT_EQ(refusal(folder_ / "checkpoints/step_5"), "accepted");
}

TEST_F(CheckpointTest, AFolderOfCheckpointsMustBeOne) {
  const fs::path checkpoints = folder_ / "checkpoints";
  const auto said = [&] {
    try {
      find_checkpoint(folder_.path(), [](const std::string&) {});
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  fs::create_directory_symlink("/nowhere/disk", checkpoints);
  EXPECT_EQ(said(),
            checkpoints.string() + " is a link to /nowhere/disk, where no folder is; its disk may not be mounted");
  fs::remove(checkpoints);
  write_file(checkpoints, "x");
  EXPECT_EQ(said(), checkpoints.string() + " is a file, expected a folder of checkpoints");
}

TEST_F(CheckpointTest, TruncatedFilesAreRefused) {
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "state.json"}) {
    const fs::path path = write(1);
    fs::resize_file(path / name, fs::file_size(path / name) - 5);
    EXPECT_THAT(refusal(path), HasSubstr((path / name).string() + ": "));
    EXPECT_THAT(refusal(path), HasSubstr("truncated"));
    write(1);
    fs::remove(path / name);
    EXPECT_THAT(refusal(path), HasSubstr((path / name).string() + ": the file is missing"));
  }
}

TEST_F(CheckpointTest, EveryChangedByteIsSeen) {
  const fs::path path = write(1);
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "state.json"}) {
    const std::string good = read_file(path / name);
    for (size_t i = 0; i < good.size(); i += 7) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ 1);
      if (std::isspace(static_cast<unsigned char>(good[i])) && std::string(name) == "state.json") continue;
      std::ofstream(path / name, std::ios::binary) << bad;
      EXPECT_THAT(refusal(path), HasSubstr((path / name).string())) << name << " byte " << i;
    }
    write_file(path / name, good);
  }
  EXPECT_EQ(refusal(path), "accepted");
  const std::string model = read_file(path / "model.safetensors");
  write_file(path / "model.safetensors", model + "x");
  EXPECT_THAT(refusal(path), HasSubstr("too long"));
  std::string corrupt = model;
  corrupt.back() = static_cast<char>(corrupt.back() ^ 1);
  write_file(path / "model.safetensors", corrupt);
  EXPECT_THAT(refusal(path), ::testing::MatchesRegex(".*crc32 [0-9a-f]+, expected [0-9a-f]+: the file is corrupt"));
}

// A whole file of a version to come is not read as if it were of this one.
TEST_F(CheckpointTest, AnotherFormatIsRefused) {
  const fs::path path = write(1);
  change_state(path, [](nlohmann::json& state) { state["format"] = 2; });
  EXPECT_THAT(refusal(path), HasSubstr("state.json: format 2, expected 1: it was written by heddle test"));
}

// As `scp -r` and `cp -rL` leave it.
TEST_F(CheckpointTest, AFolderInPlaceOfTheLinkToTheBestIsReplaced) {
  const fs::path checkpoints = folder_ / "checkpoints", best = checkpoints / "best";
  const auto write_with_best = [&](int64_t step, int64_t best_step) {
    CheckpointState state{step, 3, "seed: 3\n", "heddle test"};
    state.evaluations.best = {.step = best_step, .loss = 0.5};
    write_checkpoint(context_, checkpoints, trained_.parameters, *trained_.optimizer, state, {.newest = 1});
  };
  write_with_best(1, 1);
  fs::remove(best);
  fs::copy(checkpoints / "step_1", best, fs::copy_options::recursive);
  write_with_best(2, 1);
  EXPECT_EQ(fs::read_symlink(best), "step_1");
  // What is nowhere else is not removed.
  const auto expect_refusal = [&](const char* why) {
    EXPECT_THAT(
        testing::error_of([&] { write_with_best(3, 3); }),
        HasSubstr("best is a folder that is no copy of a checkpoint beside it, expected a symbolic link to one"))
        << why;
    EXPECT_EQ(open_checkpoint(best).state.step, 1) << why;
  };
  fs::remove(best);
  fs::copy(checkpoints / "step_1", best, fs::copy_options::recursive);
  write_file(best / "notes.txt", "worth keeping");
  expect_refusal("another file");
  EXPECT_EQ(read_file(best / "notes.txt"), "worth keeping");
  fs::remove(best / "notes.txt");
  std::string model = read_file(checkpoints / "step_1/model.safetensors");
  model.back() = static_cast<char>(model.back() ^ 1);
  write_file(checkpoints / "step_1/model.safetensors", model);
  expect_refusal("the other one is damaged");
  fs::remove_all(checkpoints / "step_1");
  write_checkpoint(context_, checkpoints, trained_.parameters, *trained_.optimizer,
                   {.step = 1, .seed = 4, .config = "seed: 4\n", .program = "heddle test"}, {.newest = 9});
  expect_refusal("the other one is of the same step of another run");
  fs::remove_all(checkpoints / "step_1");
  expect_refusal("there is no other one");
}

// Folders of other names are not ours.
TEST_F(CheckpointTest, OnlyNamesThatARunWritesAreCheckpoints) {
  const fs::path checkpoints = folder_ / "checkpoints";
  const std::vector<std::string> others = {"step_-5", "step_-1", "step_", "step_007", "step_1.old", "step_+1"};
  for (const std::string& name : others) fs::create_directories(checkpoints / name);
  for (const int64_t step : {0, 8, 9}) {
    const CheckpointState state{step, 3, "seed: 3\n", "heddle test"};
    write_checkpoint(context_, checkpoints, trained_.parameters, *trained_.optimizer, state, {.newest = 1});
  }
  for (const std::string& name : others) {
    EXPECT_TRUE(fs::exists(checkpoints / name)) << name;
    EXPECT_FALSE(step_of_checkpoint(name).has_value()) << name;
  }
  EXPECT_FALSE(fs::exists(fs::symlink_status(checkpoints / "best")));
  ASSERT_EQ(list_checkpoints(checkpoints).size(), 1);
  EXPECT_EQ(list_checkpoints(checkpoints)[0].step, 9);
}

// Former versions wrote null for an infinite first loss, which they took for the best one.
TEST_F(CheckpointTest, ABestLossOfNullIsNone) {
  const fs::path path = write(1);
  change_state(path, [](nlohmann::json& state) {
    state["evaluations"] = {{"best_step", 1}, {"best_loss", nullptr}, {"without_gain", 2}};
  });
  const EvaluationHistory found = read_state(path / "state.json").state.evaluations;
  EXPECT_FALSE(found.best.has_value());
  EXPECT_EQ(found.without_gain, 2);
}

TEST_F(CheckpointTest, TheNewestWholeOneIsFoundAndTheOthersSaid) {
  std::vector<std::string> skipped;
  const Note note = [&](const std::string& line) { skipped.push_back(line); };
  EXPECT_FALSE(newest_checkpoint(folder_ / "checkpoints", note).has_value());
  write(5);
  const fs::path damaged = write(10);
  fs::resize_file(damaged / "model.safetensors", 20);
  const auto newest = newest_checkpoint(folder_ / "checkpoints", note);
  ASSERT_TRUE(newest.has_value());
  EXPECT_EQ(newest->state.step, 5);
  ASSERT_EQ(skipped.size(), 1u);
  EXPECT_THAT(skipped[0], HasSubstr("passing over"));
  EXPECT_THAT(skipped[0], HasSubstr("step_10/model.safetensors: 20 bytes, expected"));
  EXPECT_EQ(find_checkpoint(folder_.path(), note).state.step, 5);
  EXPECT_EQ(find_checkpoint(folder_ / "checkpoints", note).state.step, 5);
  EXPECT_EQ(find_checkpoint(newest->path, note).state.step, 5);
  EXPECT_THROW(find_checkpoint(damaged, note), Error);
  EXPECT_THROW(find_checkpoint(folder_ / "nowhere", note), Error);
}

// A folder where a file belongs, and a checkpoint that cannot be entered, here a link to itself.
TEST_F(CheckpointTest, WhatCannotBeReadIsPassedOver) {
  write(5);
  const fs::path folder = write(10) / "optimizer.safetensors";
  fs::remove(folder);
  fs::create_directory(folder);
  fs::create_directory_symlink("step_15", folder_ / "checkpoints/step_15");
  std::vector<std::string> skipped;
  const auto newest =
      newest_checkpoint(folder_ / "checkpoints", [&](const std::string& line) { skipped.push_back(line); });
  ASSERT_TRUE(newest.has_value());
  EXPECT_EQ(newest->state.step, 5);
  EXPECT_THAT(skipped, ::testing::ElementsAre(HasSubstr("step_15/state.json: Too many levels of symbolic links"),
                                              HasSubstr("step_10/optimizer.safetensors: it is no file")));
}

// A float32 is a float64, and a float64 is rounded.
TEST_F(CheckpointTest, IsReadIntoAnotherFloatingDtype) {
  const auto read = [&](const fs::path& path, DType dtype) {
    const Checkpoint checkpoint = open_checkpoint(path);
    Trained other(context_, 2, dtype);
    load_parameters(context_, checkpoint, other.parameters);
    load_optimizer(context_, checkpoint, *other.optimizer);
    return other.numbers(context_);
  };
  EXPECT_EQ(read(write(1), DType::float64), trained_.numbers(context_));
  const Trained wide(context_, 3, DType::float64);
  const fs::path path = write_checkpoint(context_, folder_ / "wide", wide.parameters, *wide.optimizer,
                                         {1, 3, "seed: 3\n", "heddle test"}, {});
  std::vector<double> rounded;
  for (const double number : wide.numbers(context_)) rounded.push_back(static_cast<float>(number));
  EXPECT_NE(rounded, wide.numbers(context_));
  EXPECT_EQ(read(path, DType::float32), rounded);
}

TEST_F(CheckpointTest, AnotherModelIsRefused) {
  const Checkpoint checkpoint = open_checkpoint(write(1));
  Trained wider(context_, 1, DType::float32, 4);
  const auto message = [&](ParameterSet& parameters) -> std::string {
    try {
      load_parameters(context_, checkpoint, parameters);
    } catch (const UsageError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(message(wider.parameters), HasSubstr("tensor 'matrix' is float32 (4, 3), expected float32 (4, 4)"));
  ParameterSet fewer;
  fewer.add("vector", {5}, Initializer::normal(1.0), false);
  fewer.materialize(context_, DType::float32, 1);
  EXPECT_THAT(message(fewer), HasSubstr("tensor 'matrix' is no parameter of the model"));
  ParameterSet other;
  other.add("row", {5}, Initializer::normal(1.0), false);
  other.materialize(context_, DType::float32, 1);
  EXPECT_THAT(message(other), HasSubstr("no tensor 'row' (5): the config is of another model"));
}

}  // namespace
}  // namespace heddle::checkpoint_test
