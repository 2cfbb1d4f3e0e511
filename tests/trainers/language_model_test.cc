#include "trainers/model/language_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "core/tensor/transfer.h"
#include "tests/trainers/reference_model.h"
#include "tests/trainers/test_config.h"

namespace heddle {
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

  Context context_{Device{}, {.threads = 1}};
  LanguageModel model_{testing::tiny_train_config().model};
};

TEST_F(LanguageModelTest, LogitsAreThoseOfTheReference) {
  expect_near(logits(kTokens), testing::ReferenceModel(context_, model_.parameters()).logits(kTokens));
}

TEST_F(LanguageModelTest, ATextMayBeReadInParts) {
  const auto expected = testing::ReferenceModel(context_, model_.parameters()).logits(kTokens);
  ModelState state = model_.initial_state();
  ASSERT_EQ(state.size(), 2u);
  std::vector<double> found;
  for (const auto& [begin, end] : std::vector<std::pair<int, int>>{{0, 4}, {4, 5}, {5, 10}}) {
    const std::vector<double> part = logits({kTokens.begin() + begin, kTokens.begin() + end}, &state);
    found.insert(found.end(), part.begin(), part.end());
  }
  expect_near(found, expected);
}

// What a mixer saves of its state, it continues from.
TEST_F(LanguageModelTest, AStateSurvivesSavingAndLoading) {
  ModelState state = model_.initial_state();
  logits({kTokens.begin(), kTokens.begin() + 6}, &state);
  ModelState loaded;
  const TrainConfig config = testing::tiny_train_config();
  ParameterSet unused;
  for (size_t layer = 0; layer < state.size(); ++layer) {
    const auto mixer =
        config.model.mixer.options->make(ModuleBuilder(unused, "mixer_" + std::to_string(layer)),
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

// A config is read once, however many blocks are built from it, and names are not compared with all others.
TEST(DeepLanguageModelTest, ThousandsOfLayersAreBuiltInASecondOrTwo) {
  const TrainConfig config =
      testing::tiny_train_config({"model.layers=8000", "model.mixer.lrpe.layers=[0, 1, 2, 3, 5, 7999]"});
  const auto start = std::chrono::steady_clock::now();
  const LanguageModel model(config.model);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  EXPECT_EQ(model.parameters().all().size(), 2u + 8000u * 6u);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(seconds, 5.0);  // a tenth of it on a machine with nothing else to do
#endif
}

}  // namespace
}  // namespace heddle
