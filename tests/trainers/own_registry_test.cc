// A mixer that heddle does not know is read, written, built, trained, evaluated and sampled with the registry that
// does, and what it does wrong is said of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/config/config_load.h"
#include "core/io/atomic_file.h"
#include "layers/ops/view.h"
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

// What a mixer or channel layer of a user may do wrong. The error names the layer, not the next operator of the model.
struct Faults {
  std::function<Variable(Tape& tape, const Variable& x)> forward = [](Tape&, const Variable& x) { return x; };
  bool makes_state = true, makes_layer = true;
};

struct FaultyMixer : testing::DenseMixer {
  FaultyMixer(const Faults& faults, const ModuleBuilder& builder, int64_t dim)
      : DenseMixer({}, builder, dim), faults_(faults) {}
  Variable forward(Tape& tape, const Variable& x, MixerState*, const Tensor&) const override {
    return faults_.forward(tape, x);
  }
  std::unique_ptr<MixerState> make_state() const override {
    return faults_.makes_state ? DenseMixer::make_state() : nullptr;
  }
  Faults faults_;
};

struct FaultyMixerOptions : MixerOptions {
  explicit FaultyMixerOptions(const Faults& faults) : faults_(faults) {}
  void describe(ConfigFields&, const ModelSize&) override {}
  std::unique_ptr<Mixer> make(const ModuleBuilder& builder, const BlockPlace& place) const override {
    if (!faults_.makes_layer) return nullptr;
    return std::make_unique<FaultyMixer>(faults_, builder, place.dim);
  }
  Faults faults_;
};

struct FaultyChannel : Channel {
  explicit FaultyChannel(const Faults& faults) : faults_(faults) {}
  Variable forward(Tape& tape, const Variable& x) const override { return faults_.forward(tape, x); }
  Faults faults_;
};

struct FaultyChannelOptions : ChannelOptions {
  explicit FaultyChannelOptions(const Faults& faults) : faults_(faults) {}
  void describe(ConfigFields&, const ModelSize&) override {}
  std::unique_ptr<Channel> make(const ModuleBuilder&, const BlockPlace&) const override {
    return faults_.makes_layer ? std::make_unique<FaultyChannel>(faults_) : nullptr;
  }
  Faults faults_;
};

// What is said of a model whose mixers, or else whose channel layers, have these faults.
std::string said_of(const std::string& layer, const Faults& faults, const std::string& recompute = "none") {
  Registry registry = built_in_registry();
  registry.add_mixer("faulty", [faults] { return std::make_unique<FaultyMixerOptions>(faults); });
  registry.add_channel("faulty", [faults] { return std::make_unique<FaultyChannelOptions>(faults); });
  const std::vector<std::string> overrides = {"model." + layer + "={type: faulty}", "model.recompute=" + recompute};
  try {
    Context context(Device{}, {.threads = 1});
    LanguageModel model(
        read_train_config(parse_config(testing::tiny_config(), "tiny.yaml", overrides), registry).model);
    model.parameters().materialize(context, DType::float32, 1);
    Tape tape(context);
    model.forward(tape, Tensor::zeros(context, {2, 3}, DType::int32));
    model.initial_state();
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

TEST(OwnLayersTest, WhatTheyDoWrongIsSaidOfThem) {
  const Faults nothing{.forward = [](Tape&, const Variable&) { return Variable(); }};
  const Faults half{.forward = [](Tape& tape, const Variable& x) { return split_last(tape, x, {8, 8})[0]; }};
  const Faults rows{.forward = [](Tape& tape, const Variable& x) { return reshape(tape, x, {6, 16}); }};
  const Faults wide{.forward = [](Tape& tape, const Variable& x) {
    return tape.constant(Tensor::zeros(tape.context(), x.shape(), DType::float64));
  }};
  for (const std::string layer : {"mixer", "channel"}) {
    const std::string name = "[blocks.0." + layer + "] ";
    EXPECT_EQ(said_of(layer, {}), "accepted");
    EXPECT_EQ(said_of(layer, nothing), name + "y is missing");
    for (const std::string recompute : {"none", "block", layer.c_str()}) {
      EXPECT_EQ(said_of(layer, half, recompute),
                name + "y is float32 (2, 3, 8), expected float32 (2, 3, 16): those of x");
    }
    EXPECT_EQ(said_of(layer, rows), name + "y is float32 (6, 16), expected float32 (2, 3, 16): those of x");
    EXPECT_EQ(said_of(layer, wide), name + "y is float64 (2, 3, 16), expected float32 (2, 3, 16): those of x");
    EXPECT_EQ(said_of(layer, {.makes_layer = false}), name + "make() returned nullptr");
  }
  EXPECT_EQ(said_of("mixer", {.makes_state = false}), "[blocks.0.mixer] make_state() returned nullptr");
}

TEST(OwnLayersTest, ARowOfTheRegistryMakesOptions) {
  const auto said = [](const auto& add) -> std::string {
    try {
      Registry registry = built_in_registry();
      add(registry);
      read_train_config(parse_config(testing::tiny_config(), "tiny.yaml", {{"model.mixer={type: own}"}}), registry);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(said([](Registry& registry) { registry.add_mixer("own", nullptr); }),
            "mixer own has no function that makes its options");
  EXPECT_EQ(said([](Registry& registry) { registry.add_channel("own", nullptr); }),
            "channel layer own has no function that makes its options");
  EXPECT_EQ(said([](Registry& registry) { registry.add_mixer("", [] { return nullptr; }); }),
            "a mixer without a type was added to the registry");
  EXPECT_EQ(said([](Registry& registry) { registry.add_mixer("own", [] { return nullptr; }); }),
            "the function of type own returned no options");
}

}  // namespace
}  // namespace heddle::own_registry_test
