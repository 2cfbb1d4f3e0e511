// The copy of its tokenizer that a run keeps: a run and its checkpoints do not need the file of data.tokenizer again,
// and another tokenizer is refused.
#include "trainers/run/run_tokenizer.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <tuple>
#include <vector>

#include "core/io/atomic_file.h"
#include "tests/distributed/threads.h"
#include "tests/error_of.h"
#include "tests/trainers/test_config.h"
#include "tests/trainers/trainer_test.h"
#include "trainers/data/sentencepiece.h"
#include "trainers/data/tokenize.h"
#include "trainers/dry_run.h"
#include "trainers/run/loaded_model.h"
#include "trainers/run/run_folder.h"

namespace heddle::run_tokenizer_test {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

class RunTokenizerTest : public testing::TrainerTest {
 protected:
  void SetUp() override {
    if (!has_sentencepiece()) GTEST_SKIP() << "heddle was built without sentencepiece";
    write_file(text_, read_file(fs::path(HEDDLE_SOURCE_DIR) / "tests/golden/text.txt"));
    pieces_ = vocabulary(320);
    write_file(model_, pieces_);
  }
  std::string vocabulary(int64_t size) { return train_vocabulary(open_texts({text_}), size); }
  TrainConfig config(const std::string& tokenizer, std::vector<std::string> overrides = {}) {
    overrides.insert(overrides.begin(), {"data={type: text, path: '" + text_ + "', tokenizer: '" + tokenizer + "'}",
                                         "model.vocab_size=320", "trainer.steps=12", "trainer.checkpoint_every=4",
                                         "trainer.sample={prompt: 'the ', tokens: 5}"});
    return testing::tiny_train_config(overrides);
  }
  TrainConfig config() { return config(model_); }
  std::string weights(const std::string& run) { return file(run + "/checkpoints/step_12/model.safetensors"); }
  LoadedModel loaded(const std::string& path, const std::vector<std::string>& overrides = {}) {
    return load_model(context_, folder_ / path, overrides, [](const std::string&) {});
  }
  std::string shown(const std::string& name, const std::string& contents) {
    FileDigest digest;
    extend(digest, contents.data(), contents.size());
    return fmt::format("{} ({} bytes, crc32 {:08x})", name, digest.bytes, digest.crc32);
  }
  std::string copy(const std::string& run) { return (folder_ / run / "tokenizer.model").string(); }

  std::string text_ = (folder_ / "text").string(), model_ = (folder_ / "text.model").string(), pieces_;
  Context context_{Device{}, {.threads = 1}};
};

TEST_F(RunTokenizerTest, ARunThatLostTheFileGoesOnToTheSameBits) {
  run("whole", config());
  EXPECT_EQ(file("whole/tokenizer.model"), pieces_);
  const Checkpoint checkpoint = open_checkpoint(folder_ / "whole/checkpoints/step_12");
  ASSERT_TRUE(checkpoint.state.tokenizer);
  EXPECT_EQ(to_string(*checkpoint.state.tokenizer), shown(model_, pieces_));

  run("parts", config(), 5);
  fs::remove(model_);
  run("parts", config());
  EXPECT_EQ(weights("parts"), weights("whole"));
  EXPECT_EQ(file("parts/metrics.csv"), file("whole/metrics.csv"));
  EXPECT_EQ(file("parts/checkpoints/step_12/state.json"), file("whole/checkpoints/step_12/state.json"));
  EXPECT_EQ(dry_run(config(), {.folder = folder_ / "parts"}).step, 12);

  // In another folder the run goes on from a checkpoint of the first, whose copy it takes over.
  run("elsewhere", config(), 0, (folder_ / "whole/checkpoints/step_8").string());
  EXPECT_EQ(weights("elsewhere"), weights("whole"));
  EXPECT_EQ(file("elsewhere/tokenizer.model"), pieces_);
  init_from_ = folder_ / "whole";
  run("from weights", config(), 1);
  EXPECT_EQ(file("from weights/tokenizer.model"), pieces_);
}

TEST_F(RunTokenizerTest, AnotherTokenizerIsRefusedAndBothAreNamed) {
  run("run", config(), 5);
  const std::string others = vocabulary(310);
  write_file(model_, others);
  const std::string step_5 = (folder_ / "run/checkpoints/step_5").string();
  const auto names_both =
      AllOf(HasSubstr("the tokenizer is not that of " + step_5), HasSubstr("now " + shown(model_, others)),
            HasSubstr("then " + shown(model_, pieces_)), HasSubstr("--set data.tokenizer=" + copy("run")));
  EXPECT_THAT(testing::error_of([&] { run("run", config()); }), names_both);
  EXPECT_THAT(testing::error_of([&] { run("run", config(), 0, (folder_ / "run").string()); }), names_both);
  EXPECT_THAT(testing::error_of([&] { dry_run(config(), {.folder = folder_ / "run"}); }), names_both);
  EXPECT_THAT(testing::error_of([&] { run("run", config("bytes"), 0, (folder_ / "run").string()); }),
              HasSubstr("now bytes, then"));
  EXPECT_EQ(file("run/tokenizer.model"), pieces_);
  // The copy by its name is no other config.
  run("run", config(copy("run")));
  write_file(model_, pieces_);
  run("whole", config());
  EXPECT_EQ(weights("run"), weights("whole"));
}

// Blocks may be taken for other tokens, but it is said.
TEST_F(RunTokenizerTest, ANewRunWithWeightsOfAnotherTokenizerNotesIt) {
  run("run", config());
  const std::string others = vocabulary(310);
  const fs::path other = folder_ / "other.model", exported = folder_ / "exported";
  write_file(other, others);
  fs::create_directory(exported);
  write_file(exported / "config.json", R"({"model_type": "heddle"})");
  fs::copy(folder_ / "run/checkpoints/step_12/model.safetensors", exported);
  fs::copy(copy("run"), exported);
  for (const auto& [from, weights, tokenizer] :
       {std::tuple(folder_ / "run", folder_ / "run/checkpoints/step_12", model_),
        std::tuple(exported, exported, (exported / "tokenizer.model").string())}) {
    init_from_ = from;
    const std::string note = "the tokenizer is not that of " + weights.string() + ": now " +
                             shown(other.string(), others) + ", then " + shown(tokenizer, pieces_) +
                             ": embedding and head have learned other tokens";
    size_t said = log().size();
    run("same_" + from.filename().string(), config(), 1);
    EXPECT_EQ(log().find("the tokenizer is not that of", said), std::string::npos);
    said = log().size();
    run("other_" + from.filename().string(), config(other.string()), 1);
    EXPECT_NE(log().find(note, said), std::string::npos) << log().substr(said);
  }
}

TEST_F(RunTokenizerTest, ModelsAreUsedWithTheCopy) {
  run("run", config());
  write_file(model_, vocabulary(310));
  EXPECT_EQ(loaded("run").config.data.tokenizer, copy("run"));
  EXPECT_EQ(loaded("run/checkpoints/step_8").config.data.tokenizer, copy("run"));
  EXPECT_EQ(loaded("run/checkpoints/best").config.data.tokenizer, copy("run"));
  fs::rename(folder_ / "run/checkpoints", folder_ / "disk");
  fs::create_symlink(folder_ / "disk", folder_ / "run/checkpoints");
  EXPECT_EQ(loaded("run").config.data.tokenizer, copy("run"));
  // What the user names is checked as well.
  EXPECT_THAT(
      testing::error_of([&] { loaded("run", {"data.tokenizer='" + model_ + "'"}); }),  // the name that the config has
      "no error");
  fs::copy(model_, folder_ / "other.model");
  EXPECT_THAT(
      testing::error_of([&] { loaded("run", {"data.tokenizer='" + (folder_ / "other.model").string() + "'"}); }),
      AllOf(HasSubstr("--set data.tokenizer: the tokenizer is not that of"), HasSubstr("other.model ("),
            HasSubstr("then " + shown(model_, pieces_))));
  EXPECT_THAT(testing::error_of([&] { loaded("run", {"data.tokenizer=bytes"}); }), HasSubstr("now bytes, then"));
  // A checkpoint without its run is used with the file of the config, if it is the same.
  EXPECT_THAT(testing::error_of([&] { loaded("disk/step_8"); }), HasSubstr("the tokenizer is not that of"));
  write_file(model_, pieces_);
  EXPECT_EQ(loaded("disk/step_8").config.data.tokenizer, model_);
  // A copy that was damaged.
  write_file(copy("run"), pieces_.substr(1));
  EXPECT_THAT(testing::error_of([&] { loaded("run"); }), HasSubstr("now " + shown(copy("run"), pieces_.substr(1))));
}

// Runs of earlier versions: no copy, and nothing of it in the state.
TEST_F(RunTokenizerTest, FormerRunsGoOnAndGetACopy) {
  run("run", config(), 5);
  const fs::path state_file = folder_ / "run/checkpoints/step_5/state.json";
  StateFile state = read_state(state_file);
  state.state.tokenizer.reset();
  write_state(state_file, state.state, state.files);
  fs::remove(copy("run"));
  EXPECT_EQ(loaded("run").config.data.tokenizer, model_);
  run("run", config());
  EXPECT_EQ(file("run/tokenizer.model"), pieces_);
  EXPECT_TRUE(open_checkpoint(folder_ / "run/checkpoints/step_12").state.tokenizer);
}

TEST_F(RunTokenizerTest, AFileOfThatNameIsNeverReplaced) {
  fs::create_directory(folder_ / "run");
  write_file(copy("run"), "a file of the user");
  EXPECT_THAT(testing::error_of([&] { run("run", config()); }),
              AllOf(HasSubstr(shown(copy("run"), "a file of the user") +
                              ", which keeps the tokenizer of a run, is not " + shown(model_, pieces_)),
                    HasSubstr("--out DIR")));
  EXPECT_EQ(file("run/tokenizer.model"), "a file of the user");
  EXPECT_FALSE(fs::exists(folder_ / "run/config.yaml"));
  // Left behind by a process that was killed while it wrote.
  fs::remove(copy("run"));
  write_file(partial_path(copy("run")), "half");
  run("run", config(), 1);
  EXPECT_EQ(file("run/tokenizer.model"), pieces_);
  EXPECT_FALSE(fs::exists(partial_path(copy("run"))));
}

// The first one writes, and all of them read the copy where the file is gone.
TEST_F(RunTokenizerTest, SeveralProcessesHaveOneCopy) {
  const auto expect_run = [&](int64_t steps) {
    const std::vector<std::string> errors = testing::run_together(2, [&](Communicator& communicator) {
      Context context(Device{}, {.threads = 1});
      TrainOptions options;
      options.folder = folder_ / "run";
      options.log = nullptr;
      options.communicator = &communicator;
      options.stop_requested = [taken = int64_t{0}, steps]() mutable { return steps > 0 && taken++ == steps; };
      train(context, config(), options);
    });
    EXPECT_THAT(errors, ::testing::Each(""));
  };
  expect_run(5);
  EXPECT_EQ(file("run/tokenizer.model"), pieces_);
  fs::remove(model_);
  expect_run(0);
  EXPECT_TRUE(fs::exists(folder_ / "run/checkpoints/step_12"));
}

TEST_F(RunTokenizerTest, OtherTokenizersHaveNoCopy) {
  run("bytes", testing::tiny_train_config({"data={type: text, path: '" + text_ + "'}", "model.vocab_size=256"}), 1);
  run("none", testing::tiny_train_config(), 1);
  for (const char* name : {"bytes", "none"}) {
    EXPECT_FALSE(fs::exists(copy(name)));
    EXPECT_FALSE(open_checkpoint(folder_ / name / "checkpoints/step_1").state.tokenizer);
    loaded(name);
  }
}

}  // namespace
}  // namespace heddle::run_tokenizer_test
