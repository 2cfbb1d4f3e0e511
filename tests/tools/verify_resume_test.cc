#include "tools/verify_resume.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor/transfer.h"
#include "tests/temp_folder.h"
#include "tests/trainers/own_mixer.h"
#include "tests/trainers/test_config.h"
#include "trainers/model/language_model.h"
#include "trainers/train_step.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class VerifyResumeTest : public ::testing::Test {
 protected:
  VerifyResumeTest() { ::setenv("TMPDIR", folder_.path().c_str(), 1); }
  ~VerifyResumeTest() override { ::unsetenv("TMPDIR"); }

  VerifyResumeResult verify(const TrainConfig& config, int64_t steps, const Registry& registry = built_in_registry()) {
    VerifyResumeOptions options;
    options.steps = steps;
    options.log = nullptr;
    options.open = [] { return std::make_unique<Context>(Device{}, ContextOptions{.threads = 1}); };
    options.stop_requested = [this] { return asked_++ == stop_at_; };
    const VerifyResumeResult result = verify_resume(config, options, registry);
    EXPECT_TRUE(fs::is_empty(folder_.path())) << "something is left";
    return result;
  }

  testing::TempFolder folder_;
  int64_t asked_ = 0, stop_at_ = -1;
};

// The data are read three times, and a pipe can be read once.
TEST_F(VerifyResumeTest, DataInAPipeAreRefused) {
  const testing::TempFolder other;
  const std::string pipe = (other.path() / "pipe").string();
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  try {
    verify(testing::tiny_train_config({"data={type: text, path: " + pipe + "}", "model.vocab_size=256"}), 4);
    FAIL() << "it was verified";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("found '" + pipe + "', a pipe or a device, expected a file"));
  }
}

// What would end a training early, a loss that no longer falls among it, is left out.
TEST_F(VerifyResumeTest, RunsThatGoOnAreTheSame) {
  for (const std::string more : {"trainer.dtype=bfloat16", "model.dropout=0.2", "trainer.hours=1.0e-9",
                                 "optimizer.lr=1.0e-30", "logging.csv=false"}) {
    const VerifyResumeResult result =
        verify(testing::tiny_train_config(
                   {more, "schedule={type: constant}", "trainer.eval_every=3", "trainer.stop_after_no_gain=1"}),
               7);
    EXPECT_TRUE(result.finished);
    EXPECT_FALSE(result.difference.has_value()) << *result.difference;
    EXPECT_EQ(result.steps, 7);
    EXPECT_EQ(result.stop, 3);
    const LanguageModel model(testing::tiny_train_config().model);
    EXPECT_EQ(result.tensors, 3 * static_cast<int64_t>(model.parameters().all().size()));
  }
  EXPECT_EQ(verify(testing::tiny_train_config({"trainer.steps=5"}), 20).steps, 5);
  const fs::path trace = fs::absolute("verify_resume_trace.json");
  verify(testing::tiny_train_config({"trainer.profile={steps: [2, 3], trace: " + trace.string() + "}"}), 4);
  EXPECT_FALSE(fs::exists(trace));
  EXPECT_THROW(verify(testing::tiny_train_config({"trainer.steps=1"}), 20), UsageError);
}

// A mixer that remembers something that no checkpoint has: how often this object was called.
struct Forgetful : testing::DenseMixer {
  using DenseMixer::DenseMixer;
  Variable forward(Tape& tape, const Variable& x, MixerState* state, const Tensor& segments) const override {
    const Variable y = DenseMixer::forward(tape, x, state, segments);
    if (tape.mode() == Tape::Mode::record && ++calls == 9)
      write_values(tape.context(), y.value.select(0, 0), values(y));
    return y;
  }
  static std::vector<double> values(const Variable& y) {
    return std::vector<double>(static_cast<size_t>(y.value.select(0, 0).numel()), 0.25);
  }
  mutable int64_t calls = 0;
};
struct ForgetfulOptions : testing::DenseOptions {
  std::unique_ptr<Mixer> make(const ModuleBuilder& builder, const BlockPlace& place) const override {
    return std::make_unique<Forgetful>(linear, builder, place.dim);
  }
};

TEST_F(VerifyResumeTest, TheFirstTensorThatDiffersIsNamed) {
  Registry registry = built_in_registry();
  registry.add_mixer("forgetful", [] { return std::make_unique<ForgetfulOptions>(); });
  const TrainConfig config = read_train_config(
      parse_config(testing::tiny_config(), "tiny.yaml", {{"model.mixer={type: forgetful}"}}), registry);
  // The ninth step differs, which is in the second part.
  EXPECT_FALSE(verify(config, 8, registry).difference.has_value());
  const VerifyResumeResult result = verify(config, 10, registry);
  EXPECT_TRUE(result.finished);
  ASSERT_TRUE(result.difference.has_value());
  EXPECT_THAT(*result.difference, StartsWith("step 9: model.safetensors, tensor blocks.0.channel."));
}

// The checkpoints of the training are gone when the user reads that it failed.
TEST_F(VerifyResumeTest, NumbersThatBlowUpSendNobodyToAFolderThatIsGone) {
  const TrainConfig config = testing::tiny_train_config({"optimizer.lr=1.0e+30", "schedule.warmup_steps=0"});
  try {
    verify(config, 20);
    FAIL() << "the numbers are finite";
  } catch (const NonFinite& error) {
    EXPECT_THAT(error.what(), HasSubstr("nothing is kept of this training, a run of heddle train keeps checkpoints"));
    EXPECT_THAT(error.what(), Not(HasSubstr(folder_.path().string())));
  }
}

TEST_F(VerifyResumeTest, ItEndsWhenItIsAskedTo) {
  for (const int64_t at : {0, 4, 11, 15}) {
    asked_ = 0;
    stop_at_ = at;
    EXPECT_FALSE(verify(testing::tiny_train_config(), 8).finished) << at;
  }
}

}  // namespace
}  // namespace heddle
