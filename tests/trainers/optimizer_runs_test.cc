// Whole runs with every optimizer and with an average of the weights: they go on bit for bit, and what is evaluated is
// the average.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include "core/io/safetensors.h"
#include "core/tensor/transfer.h"
#include "tests/trainers/test_config.h"
#include "tests/trainers/trainer_test.h"
#include "trainers/run/loaded_model.h"

namespace heddle::optimizer_runs_test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class OptimizerRuns : public testing::TrainerTest {};

const std::vector<std::string>& optimizers() {
  static const std::vector<std::string> optimizers = {
      "optimizer={type: adamw, groups: [{pattern: '*.mixer.*', lr_scale: 0.5, weight_decay: 0}]}",
      "optimizer={type: lion}", "optimizer={type: sgd, momentum: 0}", "optimizer={type: sgd, nesterov: true}",
      "optimizer={type: muon}"};
  return optimizers;
}

TEST_F(OptimizerRuns, EveryOptimizerGoesOnBitForBitWithItsAverage) {
  int number = 0;
  for (const std::string& optimizer : optimizers()) {
    for (const char* dtype : {"float32", "bfloat16"}) {
      SCOPED_TRACE(optimizer + ", " + dtype);
      const TrainConfig config = testing::tiny_train_config(
          {optimizer, std::string("trainer.dtype=") + dtype, "trainer.ema=0.9", "trainer.steps=12",
           "trainer.eval_every=5", "trainer.checkpoint_every=4", "schedule={type: wsd, warmup_steps: 2}"});
      const std::string whole = fmt::format("whole{}", ++number), cut = fmt::format("cut{}", number);
      run(whole, config);
      run(cut, config, 3);
      run(cut, config, 4);
      run(cut, config);
      for (const char* name : {"model", "optimizer", "average"}) {
        const std::string path = fmt::format("/checkpoints/step_12/{}.safetensors", name);
        EXPECT_EQ(file(cut + path), file(whole + path)) << name;
      }
      EXPECT_EQ(file(cut + "/metrics.csv"), file(whole + "/metrics.csv"));
    }
  }
}

// It changes nothing in training, and the metrics are those of the average alone.
TEST_F(OptimizerRuns, AnAverageIsEvaluatedAndNotTrained) {
  const std::vector<std::string> common = {"trainer.steps=12", "trainer.eval_every=3", "trainer.checkpoint_every=12"};
  for (const char* dtype : {"float32", "bfloat16"}) {
    std::vector<std::string> with = common, without = common;
    with.insert(with.end(), {"trainer.ema=0.8", std::string("trainer.dtype=") + dtype});
    without.push_back(std::string("trainer.dtype=") + dtype);
    const TrainConfig config = testing::tiny_train_config(with);
    const std::string a = std::string("with_") + dtype, b = std::string("without_") + dtype;
    const TrainResult averaged = run(a, config), plain = run(b, testing::tiny_train_config(without));
    for (const char* name : {"model", "optimizer"}) {
      const std::string path = fmt::format("/checkpoints/step_12/{}.safetensors", name);
      EXPECT_EQ(file(a + path), file(b + path)) << name << ", " << dtype;
    }
    EXPECT_NE(averaged.evaluation->loss, plain.evaluation->loss);

    // The same weights are what is loaded, unless the other ones are asked for.
    Context context(Device{}, {.threads = 1});
    const auto loss = [&](const std::vector<std::string>& overrides) {
      const LoadedModel loaded = load_model(context, folder_ / a, overrides, [](const std::string&) {});
      return evaluate(context, loaded.model, *make_dataset(dataset_options(config))).loss;
    };
    EXPECT_EQ(loss({}), averaged.evaluation->loss) << dtype;
    EXPECT_EQ(loss({"trainer.ema=null"}), plain.evaluation->loss) << dtype;
  }
}

TEST_F(OptimizerRuns, ANewRunStartsFromTheAverage) {
  const TrainConfig config = testing::tiny_train_config({"trainer.steps=6", "trainer.ema=0.9"});
  const TrainResult first = run("first", config);
  init_from_ = folder_ / "first";
  run("second", testing::tiny_train_config(
                    {"trainer.steps=1", "optimizer={type: sgd, lr: 1.0e-30}", "schedule={type: constant}"}));
  EXPECT_THAT(log(), HasSubstr("the weights are the average of"));
  Context context(Device{}, {.threads = 1});
  const LoadedModel loaded = load_model(context, folder_ / "second", {}, [](const std::string&) {});
  EXPECT_EQ(evaluate(context, loaded.model, *make_dataset(dataset_options(config))).loss, first.evaluation->loss);
  // Its own average begins there, too.
  const TrainResult third =
      run("third", testing::tiny_train_config({"trainer.steps=1", "trainer.ema=0.9",
                                               "optimizer={type: sgd, lr: 1.0e-30}", "schedule={type: constant}"}));
  EXPECT_NEAR(third.evaluation->loss, first.evaluation->loss, 1e-6);
}

TEST_F(OptimizerRuns, ADamagedAverageIsADamagedCheckpoint) {
  run("run", testing::tiny_train_config({"trainer.steps=4", "trainer.checkpoint_every=2", "trainer.ema=0.9"}));
  const fs::path path = folder_ / "run/checkpoints/step_4/average.safetensors";
  std::string bytes = read_file(path);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  write_file(path, bytes);
  EXPECT_THAT([&] { open_checkpoint(path.parent_path()); },
              ::testing::ThrowsMessage<Error>(HasSubstr("average.safetensors: crc32")));
  EXPECT_NO_THROW(open_checkpoint(folder_ / "run/checkpoints/step_2"));
}

// A run that is given an average later begins it with the weights of the checkpoint.
TEST_F(OptimizerRuns, AnAverageMayBeginInTheMiddleOfARun) {
  run("run", testing::tiny_train_config({"trainer.steps=4"}));
  run("run", testing::tiny_train_config({"trainer.steps=5", "trainer.ema=0.9"}), 0, (folder_ / "run").string());
  EXPECT_THAT(log(), HasSubstr("step_4 holds no average of the weights: it starts as its weights"));
  Context context(Device{}, {.threads = 1});
  const auto read = [&](const char* file) {
    SafetensorsReader reader(folder_ / file);
    return read_values(context, reader.read(context, reader.at("head.weight")));
  };
  const auto before = read("run/checkpoints/step_4/model.safetensors");
  const auto after = read("run/checkpoints/step_5/model.safetensors");
  const auto average = read("run/checkpoints/step_5/average.safetensors");
  const double decay = 6.0 / 15.0;
  for (size_t i = 0; i < average.size(); ++i) {
    EXPECT_NEAR(average[i], decay * before[i] + (1.0 - decay) * after[i], 1e-7);
  }
}

// Of all ways to go on, with a reason and what else there is.
TEST_F(OptimizerRuns, AnotherOptimizerIsRefused) {
  run("run", testing::tiny_train_config({"trainer.steps=4"}));
  const auto refusal = [&](const std::string& optimizer, const std::string& resume) -> std::string {
    try {
      run("run", testing::tiny_train_config({"trainer.steps=5", "optimizer=" + optimizer}), 0, resume);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  const std::string path = (folder_ / "run").string();
  EXPECT_THAT(refusal("{type: lion}", "auto"), HasSubstr("optimizer.type is lion, the checkpoint's adamw"));
  EXPECT_THAT(refusal("{type: lion}", path),
              ::testing::AllOf(HasSubstr("optimizer.type is lion, but"), HasSubstr("was trained with adamw"),
                               HasSubstr("--init-from")));
  EXPECT_EQ(refusal("{type: adamw, lr: 1.0e-3}", path), "accepted");
}

// A momentum that is switched on begins at 0, and one that is switched off is forgotten.
TEST_F(OptimizerRuns, SgdGoesOnWithAMomentumOrWithoutOne) {
  const auto moments = [&](const std::string& name, const std::string& momentum, int steps, const fs::path& resume) {
    const std::string optimizer = "optimizer={type: sgd, momentum: " + momentum + "}";
    run(name, testing::tiny_train_config({fmt::format("trainer.steps={}", steps), optimizer}), 0, resume.string());
    const std::string written = fmt::format("{}/checkpoints/step_{}/optimizer.safetensors", name, steps);
    return SafetensorsReader(folder_ / written).entries().size();
  };
  EXPECT_EQ(moments("without", "0", 4, "auto"), 0u);
  EXPECT_GT(moments("with", "0.9", 8, folder_ / "without"), 0u);
  EXPECT_EQ(moments("without_again", "0", 12, folder_ / "with"), 0u);
  EXPECT_THAT(log(), HasSubstr("optimizer.momentum is 0.9, the checkpoint's 0"));
}

}  // namespace
}  // namespace heddle::optimizer_runs_test
