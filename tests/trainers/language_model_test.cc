#include "trainers/model/language_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/config/config_load.h"
#include "core/tensor/transfer.h"
#include "layers/modules/feed_forward.h"
#include "tests/trainers/reference_model.h"
#include "tests/trainers/test_config.h"

namespace heddle::language_model_test {
namespace {

const std::vector<int32_t> kTokens = {3, 1, 7, 0, 5, 5, 2, 6, 4, 1};

Tensor on_device(Context& context, const std::vector<int32_t>& tokens) {
  const Tensor tensor = Tensor::empty(context, {1, static_cast<int64_t>(tokens.size())}, DType::int32);
  copy_from_host(context, tensor, tokens.data());
  return tensor;
}

void expect_near(const std::vector<double>& found, const testing::ReferenceModel::Rows& expected) {
  ASSERT_EQ(found.size(), expected.size() * expected[0].size());
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_NEAR(found[i], expected[i / expected[0].size()][i % expected[0].size()], 1e-12) << i;
  }
}

class LanguageModelTest : public ::testing::Test {
 protected:
  LanguageModelTest() { model_.parameters().materialize(context_, DType::float64, 3); }

  std::vector<double> logits(const std::vector<int32_t>& tokens, ModelState* state = nullptr) {
    Tape tape(context_, Tape::Mode::inference);
    return read_values(context_, model_.forward(tape, on_device(context_, tokens), state).value);
  }

  testing::ReferenceModel::Rows expected() {
    return testing::ReferenceModel(context_, config_, model_.parameters()).logits(kTokens);
  }

  Context context_{Device{}, {.threads = 1}};
  const ModelConfig config_ = testing::tiny_train_config().model;
  LanguageModel model_{config_};
};

TEST_F(LanguageModelTest, LogitsAreThoseOfTheReference) { expect_near(logits(kTokens), expected()); }

TEST_F(LanguageModelTest, ATextMayBeReadInParts) {
  ModelState state = model_.initial_state();
  ASSERT_EQ(state.size(), 2u);
  std::vector<double> found;
  for (const auto& [begin, end] : std::vector<std::pair<int, int>>{{0, 4}, {4, 5}, {5, 10}}) {
    const std::vector<double> part = logits({kTokens.begin() + begin, kTokens.begin() + end}, &state);
    found.insert(found.end(), part.begin(), part.end());
  }
  expect_near(found, expected());
}

// What a mixer saves of its state, it continues from.
TEST_F(LanguageModelTest, AStateSurvivesSavingAndLoading) {
  ModelState state = model_.initial_state();
  logits({kTokens.begin(), kTokens.begin() + 6}, &state);
  ModelState loaded;
  const TrainConfig config = testing::tiny_train_config();
  ParameterSet unused;
  for (size_t layer = 0; layer < state.size(); ++layer) {
    const auto mixer = config.model.mixer.of_layer(layer).options->make(
        ModuleBuilder(unused, "mixer_" + std::to_string(layer)),
        {config.model.dim, static_cast<int64_t>(layer), config.model.layers});
    loaded.push_back(mixer->load_state(context_, state[layer]->save(context_)));
  }
  const std::vector<int32_t> rest(kTokens.begin() + 6, kTokens.end());
  EXPECT_EQ(logits(rest, &loaded), logits(rest, &state));
}

TEST_F(LanguageModelTest, PartsAreObservedInOrder) {
  std::vector<std::string> parts;
  Tape tape(context_, Tape::Mode::inference);
  model_.forward(tape, on_device(context_, kTokens), nullptr,
                 [&](std::string_view part, const Variable&) { parts.emplace_back(part); });
  EXPECT_THAT(parts,
              ::testing::ElementsAre("embedding", "blocks.0.mixer_norm", "blocks.0.mixer", "blocks.0.channel_norm",
                                     "blocks.0.channel", "blocks.1.mixer_norm", "blocks.1.mixer",
                                     "blocks.1.channel_norm", "blocks.1.channel", "final_norm", "head"));
}

// Each block, layer and pass has a mask of its own, which its seed gives again; inference has none.
TEST_F(LanguageModelTest, EachPlaceHasAMaskOfItsOwn) {
  ModelConfig config = config_;
  config.dropout = 0.5;
  LanguageModel model(config);
  model.parameters().materialize(context_, DType::float64, 3);
  const auto masks_of = [&](const DropoutMasks& given, Tape::Mode mode) {
    std::vector<std::vector<bool>> masks;
    Tape tape(context_, mode);
    const auto observe = [&](std::string_view part, const Variable& output) {
      if (!part.ends_with(".mixer") && !part.ends_with(".channel")) return;
      masks.emplace_back();
      for (const double value : read_values(context_, output.value)) masks.back().push_back(value == 0.0);
    };
    model.forward(tape, on_device(context_, kTokens), nullptr, observe, given);
    return masks;
  };
  const auto masks = masks_of({.seed = 1}, Tape::Mode::record), others = masks_of({.seed = 2}, Tape::Mode::record);
  std::set<std::vector<bool>> all(masks.begin(), masks.end());
  all.insert(others.begin(), others.end());
  EXPECT_EQ(all.size(), 8u);
  EXPECT_EQ(masks_of({.seed = 1}, Tape::Mode::record), masks);
  const std::vector<uint64_t> seeds = model.dropout_seeds(1);
  ASSERT_EQ(seeds.size(), 4u);
  const Tensor tensor = Tensor::empty(context_, {2, 2}, DType::int64);
  copy_from_host(context_, tensor, seeds.data());
  EXPECT_EQ(masks_of({.seed = 2, .seeds = tensor}, Tape::Mode::record), masks);
  EXPECT_TRUE(model_.dropout_seeds(1).empty());
  Tape tape(context_, Tape::Mode::inference);
  EXPECT_EQ(read_values(context_, model.forward(tape, on_device(context_, kTokens)).value), logits(kTokens));
}

// Counts how often the options of a channel layer are read.
struct CountedOptions : FeedForwardConfig {
  explicit CountedOptions(int& reads) : FeedForwardConfig(FeedForwardType::ffn), reads(reads) {}
  void describe(ConfigFields& fields, const ModelSize& model) override {
    if (fields.reads()) ++reads;
    FeedForwardConfig::describe(fields, model);
  }
  int& reads;
};

TEST(DeepLanguageModelTest, AConfigIsReadOnceHoweverManyBlocksAreBuiltOfIt) {
  int reads = 0;
  Registry registry = built_in_registry();
  registry.add_channel("counted", [&] { return std::make_unique<CountedOptions>(reads); });
  const TrainConfig config = read_train_config(
      parse_config(testing::tiny_config(), "tiny.yaml",
                   std::vector<std::string>{"model.layers=2000", "model.mixer.lrpe.layers=[0, 1, 2, 3, 5, 1999]",
                                            "model.channel={type: counted, hidden: 8}"}),
      registry);
  const LanguageModel model(config.model);
  EXPECT_EQ(model.parameters().all().size(), 2u + 2000u * 6u);
  EXPECT_EQ(reads, 1);
}

// Inference keeps nothing: what is allocated after it is the model, the tokens, the logits and, with a state, the
// state.
TEST(InferenceTest, KeepsParametersAndOutputAlone) {
  const std::string configs = std::string(HEDDLE_SOURCE_DIR) + "/configs/";
  std::vector<TrainConfig> models = {
      testing::tiny_train_config(),
      testing::tiny_train_config({"trainer.dtype=bfloat16", "model.tie_embeddings=true",
                                  "model.norm={type: layer_norm}", "model.channel={type: ffn, hidden: 24}"})};
  for (const char* name : {"toy_kjv", "toy_copy", "toy_mqar"}) {
    models.push_back(load_train_config(configs + name + ".yaml"));
  }
  for (const TrainConfig& config : models) {
    Context context(Device{}, {.threads = 1});
    const auto allocated = [&] { return context.allocator().stats().allocated.current; };
    LanguageModel model(config.model);
    model.parameters().materialize(context, config.trainer.dtype, 1);
    const Tensor tokens = on_device(context, kTokens);
    const size_t before = allocated();
    Tape tape(context, Tape::Mode::inference);
    Variable logits = model.forward(tape, tokens);
    const size_t bytes = static_cast<size_t>(logits.value.numel()) * size_of(logits.dtype());
    EXPECT_EQ(allocated(), before + (bytes + 511) / 512 * 512);
    logits = {};
    EXPECT_EQ(allocated(), before);

    ModelState state = model.initial_state();
    model.forward(tape, tokens, &state);
    const size_t with_state = allocated();
    for (int i = 0; i < 3; ++i) model.forward(tape, tokens, &state);
    EXPECT_EQ(allocated(), with_state);  // a recurrent state does not grow with the text
    state.clear();
    EXPECT_EQ(allocated(), before);
  }
}

}  // namespace
}  // namespace heddle::language_model_test
