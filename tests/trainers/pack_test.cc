// data.pack: documents that share a sequence have the losses and gradients that they have alone.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/config/config_error.h"
#include "core/io/atomic_file.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"
#include "trainers/evaluate.h"
#include "trainers/model/generate.h"
#include "trainers/train_step.h"

namespace heddle::pack_test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Ids = std::vector<int32_t>;

constexpr int32_t kSeparator = 0, kVocabulary = 11;

// Documents of these lengths, each behind its separator.
std::vector<Ids> some_documents(const std::vector<int64_t>& lengths) {
  Random random(5, RandomStream::test);
  std::vector<Ids> documents;
  for (const int64_t length : lengths) {
    Ids& document = documents.emplace_back(Ids{kSeparator});
    for (int64_t i = 1; i < length; ++i) {
      document.push_back(static_cast<int32_t>(1 + random.next_below(kVocabulary - 1)));
    }
  }
  return documents;
}

Ids joined(const std::vector<Ids>& documents) {
  Ids all;
  for (const Ids& document : documents) all.insert(all.end(), document.begin(), document.end());
  return all;
}

// One sequence of these tokens, with a target for each: the next token, and a separator after the last.
Batch batch_of(const Ids& tokens, bool is_packed) {
  Batch batch{.size = 1, .length = static_cast<int64_t>(tokens.size()), .tokens = tokens, .targets = {}};
  batch.targets.assign(tokens.begin() + 1, tokens.end());
  batch.targets.push_back(kSeparator);
  if (!is_packed) return batch;
  batch.segments.resize(tokens.size());
  number_documents(tokens, kSeparator, batch.segments.data());
  return batch;
}

class PackedModel {
 public:
  PackedModel(const std::string& mixer, DType dtype, const std::string& recompute = "none")
      : model_(testing::tiny_train_config({"model.mixer=" + mixer, "model.dim=24", "model.layers=3",
                                           "model.recompute=" + recompute, "model.vocab_size=20"})
                   .model) {
    model_.parameters().materialize(context_, dtype, 3);
  }

  // The mean loss of the targets from `begin` to `end`.
  double loss(const Batch& batch, int64_t begin, int64_t end) {
    Tape tape(context_, Tape::Mode::inference);
    const DeviceBatch on_device = to_device(context_, batch);
    const Tensor logits = model_.forward(tape, {on_device.tokens, on_device.segments}).value;
    const auto part = [&](const Tensor& all) { return all.select(0, 0).slice(0, begin, end); };
    return read_values(context_,
                       language_model_loss(tape, tape.constant(part(logits)), part(on_device.targets)).value)[0];
  }

  // Adds `share` of the gradient of the mean loss.
  void add_gradient(const Batch& batch, double share) {
    Tape tape(context_);
    const DeviceBatch on_device = to_device(context_, batch);
    const Variable loss =
        model_.loss(tape, model_.features(tape, {on_device.tokens, on_device.segments}), on_device.targets);
    const Tensor upstream = Tensor::empty(context_, {}, loss.value.dtype());
    write_values(context_, upstream, {share});
    tape.backward(loss, upstream);
  }
  std::vector<double> take_gradient() {
    std::vector<double> all;
    for (const Parameter& parameter : model_.parameters().all()) {
      const std::vector<double> values = read_values(context_, parameter.gradient.tensor);
      all.insert(all.end(), values.begin(), values.end());
    }
    model_.parameters().zero_grad();
    return all;
  }

 private:
  Context context_{Device{}, {.threads = 2}};
  LanguageModel model_;
};

class PackedDocuments : public ::testing::TestWithParam<const char*> {};

TEST_P(PackedDocuments, HaveTheLossesThatTheyHaveAlone) {
  PackedModel model(GetParam(), DType::float32);
  const std::vector<Ids> documents = some_documents({9, 1, 30, 2, 70, 16});
  const Batch packed = batch_of(joined(documents), true), unpacked = batch_of(joined(documents), false);
  double largest_change = 0.0;
  int64_t begin = 0;
  for (const Ids& document : documents) {
    const auto length = static_cast<int64_t>(document.size());
    const double alone = model.loss(batch_of(document, false), 0, length);
    EXPECT_NEAR(model.loss(packed, begin, begin + length), alone, 1e-5);
    largest_change = std::max(largest_change, std::abs(model.loss(unpacked, begin, begin + length) - alone));
    begin += length;
  }
  EXPECT_GT(largest_change, 1e-3) << "documents that are not packed see one another";
}

TEST_P(PackedDocuments, HaveTheGradientsThatTheyHaveAlone) {
  const std::vector<Ids> documents = some_documents({9, 1, 20, 2, 40});
  const Batch packed = batch_of(joined(documents), true);
  PackedModel model(GetParam(), DType::float64);
  for (const Ids& document : documents) {
    model.add_gradient(batch_of(document, false),
                       static_cast<double>(document.size()) / static_cast<double>(packed.length));
  }
  const std::vector<double> alone = model.take_gradient();
  for (const char* recompute : {"none", "block", "mixer"}) {
    PackedModel again(GetParam(), DType::float64, recompute);
    again.add_gradient(packed, 1.0);
    EXPECT_THAT(again.take_gradient(), ::testing::Pointwise(::testing::DoubleNear(1e-9), alone)) << recompute;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Mixers, PackedDocuments,
    ::testing::Values(
        "{type: lightning, heads: 2, lrpe: {type: lrpe_rotate}, gate: {rank: 4}}",
        "{type: lightning, heads: 2, act: none, lrpe: {type: lrpe_cosine, act: silu, learnable: true}}",
        "{type: linear_attention, heads: 4, kv_heads: 2, act: relu, lrpe: {type: lrpe_rotate}, decay: true}",
        "{type: linear_attention, heads: 2, act: softmax, normalizer: true, lrpe: {type: lrpe_cosine}}",
        "{type: retention, heads: 2}", "{type: simple_gla, heads: 2}", "{type: softmax_attention, heads: 2}",
        "{type: softmax_attention, heads: 4, kv_heads: 2, window: 5}",
        "{pattern: [a, b], kinds: {a: {type: lightning, heads: 2}, b: {type: softmax_attention, heads: 2}}}"));

TEST(PackTest, DocumentsAreNumberedByTheirSeparators) {
  const auto numbers = [](const Ids& tokens) {
    Ids segments(tokens.size());
    number_documents(tokens, 7, segments.data());
    return segments;
  };
  EXPECT_THAT(numbers({1, 2, 7, 3, 7, 7, 4}), ElementsAre(0, 0, 1, 1, 2, 3, 3));
  EXPECT_THAT(numbers({7, 1}), ElementsAre(1, 1));
  EXPECT_THAT(numbers({7}), ElementsAre(1));
}

TEST(PackTest, AStateHasNoSegments) {
  Context context;
  LanguageModel model(testing::tiny_train_config().model);
  model.parameters().materialize(context, DType::float32, 1);
  ModelState state = model.initial_state();
  const DeviceBatch batch = to_device(context, batch_of({0, 1, 2}, true));
  Tape tape(context, Tape::Mode::inference);
  EXPECT_THAT(
      [&] {
        model.forward(tape, {batch.tokens, batch.segments}, &state);
      },
      ::testing::ThrowsMessage<Error>(HasSubstr("found segments beside a state")));
}

class PackedTextTest : public ::testing::Test {
 protected:
  TrainConfig config(const std::string& data, const std::vector<std::string>& more = {}) const {
    std::vector<std::string> overrides = {"data={type: text, path: '" + path_ + "'" + data + "}",
                                          "model.vocab_size=256"};
    overrides.insert(overrides.end(), more.begin(), more.end());
    return testing::tiny_train_config(overrides);
  }
  std::string refusal(const std::string& data, const std::vector<std::string>& more = {}) const {
    try {
      config(data, more);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "accepted";
  }

  PackedTextTest() {
    std::string text;
    for (int i = 0; i < 60; ++i) text += "\nab" + std::string(static_cast<size_t>(i % 7), 'c');
    write_file(path_, text);
  }

  testing::TempFolder folder_;
  std::string path_ = (folder_ / "text").string();
};

TEST_F(PackedTextTest, BatchesHaveSegments) {
  const auto data = make_dataset(dataset_options(config(", pack: true, separator: 10")));
  for (const Batch& batch : {data->training_batch(3), data->validation_batch(0)}) {
    ASSERT_EQ(batch.segments.size(), batch.tokens.size());
    for (size_t i = 0; i < batch.tokens.size(); ++i) {
      const bool is_first = i % static_cast<size_t>(batch.length) == 0;
      const int32_t before = is_first ? 0 : batch.segments[i - 1];
      EXPECT_EQ(batch.segments[i], before + (batch.tokens[i] == '\n'));
    }
  }
  EXPECT_TRUE(make_dataset(dataset_options(config("")))->training_batch(3).segments.empty());
}

// Steps and evaluations are those of documents that do not see one another.
TEST_F(PackedTextTest, TrainingAndEvaluationArePacked) {
  Context context(Device{}, {.threads = 1});
  const auto losses = [&](const std::string& data) {
    const TrainConfig read = config(data);
    TrainStep train_step(context, read);
    const auto batches = make_dataset(dataset_options(read));
    const double trained = train_step.step({batches->training_batch(0)}, 1, 1e-3).loss;
    return std::vector{trained, evaluate(context, train_step.model(), *batches).loss};
  };
  const std::vector<double> packed = losses(", pack: true, separator: 10"), unpacked = losses("");
  EXPECT_NE(packed[0], unpacked[0]);
  EXPECT_NE(packed[1], unpacked[1]);
  // Nothing is packed where no token is the separator.
  EXPECT_EQ(losses(", pack: true, separator: 200"), unpacked);
}

// A document begins with the separator and ends before the next one.
TEST_F(PackedTextTest, ATextEndsWithItsDocument) {
  Context context(Device{}, {.threads = 1});
  LanguageModel model(config("").model);
  model.parameters().materialize(context, DType::float32, 1);
  const ByteTokenizer bytes;
  const auto text = [&](const std::string& prompt, std::optional<int32_t> end) {
    std::string written;
    generate(context, model, bytes, prompt, {.tokens = 400, .end = end},
             [&](uint8_t byte) { written += static_cast<char>(byte); });
    return written;
  };
  const std::string whole = text("\na", std::nullopt);
  ASSERT_EQ(whole.size(), 400u);
  ASSERT_NE(whole.find('\n'), std::string::npos);
  EXPECT_EQ(text("\na", 10), whole.substr(0, whole.find('\n')));
  EXPECT_EQ(text("a", 10), whole.substr(0, whole.find('\n'))) << "the separator is read before the prompt";
  EXPECT_EQ(text("", 10), text("\n", 10));
}

// A sample needs no prompt: a document is begun.
TEST_F(PackedTextTest, ASampleBeginsADocument) {
  const auto prompt = [&](const std::string& more, const std::string& sample) {
    return config(more, {"trainer.sample=" + sample}).trainer.sample->prompt;
  };
  const std::string packed = ", pack: true, separator: 10";
  EXPECT_EQ(prompt(packed, "{}"), "");
  EXPECT_EQ(prompt(packed, "{prompt: \"\"}"), "");
  EXPECT_EQ(prompt(packed, "{prompt: a}"), "a");
  EXPECT_EQ(prompt("", "{}"), "\n");
  // The prompt that nobody wrote is not in the config of the run, which may go on without packing.
  const std::string stored = to_yaml(config(packed, {"trainer.sample={}"}));
  const std::vector<std::string> unpacked = {"data.pack=false", "data.separator=null"};
  EXPECT_EQ(read_train_config(parse_config(stored, "config.yaml", unpacked)).trainer.sample->prompt, "\n");
  EXPECT_EQ(read_train_config(parse_config(stored)).trainer.sample->prompt, "");
}

TEST_F(PackedTextTest, WhatCannotBeMeantIsRefused) {
  EXPECT_THAT(refusal(", pack: true"), HasSubstr("missing key 'separator' in data"));
  EXPECT_THAT(refusal(", separator: 10"), HasSubstr("data.pack is true; null takes it away"));
  EXPECT_THAT(refusal(", pack: true, separator: -1"), HasSubstr("data.separator: found '-1'"));
  EXPECT_THAT(refusal(", pack: true, separator: 256", {"model.vocab_size=300"}),
              HasSubstr("data.separator: found 256, expected less than 256: the tokens of this text are bytes"));
  EXPECT_THAT(refusal("", {"data={type: tokens, path: x, pack: true, separator: 300}", "model.vocab_size=300"}),
              HasSubstr("data.separator: found 300, expected less than model.vocab_size (300)"));
  EXPECT_THAT(refusal("", {"data={type: copy, pack: true}"}), HasSubstr("it belongs to types text and tokens"));
  // Encodings that count from the start of a sequence cannot start anew.
  const std::string from_the_start = "model.mixer.lrpe={type: lrpe_cosine, extra_tokens: 1}";
  EXPECT_THAT(refusal(", pack: true, separator: 10", {from_the_start}),
              HasSubstr("data.pack: found true, expected false: a mixer of this model does not keep documents apart"));
  Context context(Device{}, {.threads = 1});
  const TrainConfig packed = config(", pack: true, separator: 10");
  TrainStep train_step(context, config("", {from_the_start}));
  EXPECT_THAT([&] { train_step.step({make_dataset(dataset_options(packed))->training_batch(0)}, 1, 1e-3); },
              ::testing::ThrowsMessage<Error>(HasSubstr("found packed documents beside lrpe.shape")));
}

}  // namespace
}  // namespace heddle::pack_test
