// A mixer that heddle does not know is read, written, built, trained, evaluated and sampled with the registry that
// does.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "core/config/config_load.h"
#include "core/io/atomic_file.h"
#include "tests/temp_folder.h"
#include "tests/trainers/own_mixer.h"
#include "tests/trainers/test_config.h"
#include "trainers/evaluate.h"
#include "trainers/model/generate.h"
#include "trainers/run/loaded_model.h"
#include "trainers/trainer.h"

namespace heddle::own_registry_test {
namespace {

using ::testing::HasSubstr;

class OwnRegistryTest : public ::testing::Test {
 protected:
  TrainConfig config(const std::string& mixer = "{type: dense, bias: true}",
                     const std::vector<std::string>& more = {}) const {
    std::vector<std::string> overrides = {"model.mixer=" + mixer};
    overrides.insert(overrides.end(), more.begin(), more.end());
    return read_train_config(parse_config(testing::tiny_config(), "tiny.yaml", overrides), registry_);
  }
  std::string refusal(const std::string& mixer, const std::vector<std::string>& more = {}) const {
    try {
      config(mixer, more);
    } catch (const ConfigError& error) {
      return error.message();
    }
    return "accepted";
  }
  TrainResult run(const TrainConfig& config, int64_t stop_after = 0) {
    Context context(Device{}, {.threads = 1});
    TrainOptions options;
    options.folder = folder_ / "run";
    std::FILE* log = std::fopen((folder_ / "log").c_str(), "w");
    options.log = log;
    options.stop_requested = [taken = int64_t{0}, stop_after]() mutable {
      return stop_after > 0 && taken++ == stop_after;
    };
    const TrainResult result = train(context, config, options, registry_);
    std::fclose(log);
    return result;
  }

  const Registry registry_ = testing::registry_with_dense_mixer();
  testing::TempFolder folder_;
};

TEST_F(OwnRegistryTest, ItsSectionIsReadAndWritten) {
  const TrainConfig read = config("{type: dense, init_std: 0.5}");
  EXPECT_EQ(read.model.mixer.of_layer(0).type, "dense");
  const std::string text = to_yaml(read, registry_);
  EXPECT_THAT(text, HasSubstr("  mixer:\n    type: dense\n    bias: false\n    init_std: 0.5\n"));
  EXPECT_EQ(to_yaml(read_train_config(parse_config(text), registry_), registry_), text);
}

TEST_F(OwnRegistryTest, ItsSectionIsCheckedAsStrictly) {
  EXPECT_THAT(refusal("{type: dens}"), HasSubstr("did you mean 'dense'?"));
  EXPECT_THAT(refusal("{type: dense, bais: true}"),
              HasSubstr("unknown key 'bais' in model.mixer; did you mean 'bias'?"));
  EXPECT_THAT(refusal("{type: dense, init_std: -1}"), HasSubstr("model.mixer.init_std: found '-1'"));
  EXPECT_THAT(refusal("{type: dense, init_std: 1}", {"model.dim=1"}), HasSubstr("found a model of one feature"));
  EXPECT_THAT(refusal("{type: dense}",
                      {"model.vocab_size=256", "data={type: text, path: text.txt, pack: true, separator: 10}"}),
              HasSubstr("data.pack: found true, expected false: a mixer of this model does not keep documents apart"));
  EXPECT_THROW(read_train_config(parse_config(to_yaml(config(), registry_))), ConfigError)
      << "the built-in registry does not know it";
}

TEST_F(OwnRegistryTest, ItsModelIsTrainedStoppedAndContinued) {
  const TrainConfig dense = config("{type: dense, bias: true}", testing::learn_text((folder_ / "text").string(), "60"));
  EXPECT_EQ(run(dense, 7).step, 7);
  const TrainResult result = run(dense);
  EXPECT_TRUE(result.finished);
  Context context(Device{}, {.threads = 1});
  TrainStep untrained(context, dense);
  const auto data = make_dataset(dataset_options(dense));
  EXPECT_GT(evaluate(context, untrained.model(), *data).loss, testing::kUnlearnedLoss);
  EXPECT_LT(result.evaluation.value().loss, testing::kLearnedLoss);

  const LoadedModel loaded = load_model(
      context, folder_ / "run", {}, [](const std::string&) {}, registry_);
  EXPECT_EQ(evaluate(context, loaded.model, *data).loss, result.evaluation->loss);
  EXPECT_THROW(load_model(context, folder_ / "run", {}, [](const std::string&) {}), ConfigError);
}

TEST_F(OwnRegistryTest, ItsStateIsItsOwn) {
  Context context(Device{}, {.threads = 1});
  LanguageModel model(config().model);
  model.parameters().materialize(context, DType::float32, 1);
  ModelState state = model.initial_state();
  for (const int64_t length : {5, 1}) {
    const Tensor tokens = Tensor::zeros(context, {1, length}, DType::int32);
    Tape tape(context, Tape::Mode::inference);
    model.forward(tape, tokens, &state);
  }
  for (const auto& mixer : state) EXPECT_EQ(dynamic_cast<testing::DenseState&>(*mixer).tokens, 6);
}

}  // namespace
}  // namespace heddle::own_registry_test
