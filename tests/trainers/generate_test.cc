#include "trainers/model/generate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor/transfer.h"
#include "tests/trainers/test_config.h"

namespace heddle {
namespace {

using ::testing::ElementsAre;

std::string printed(const std::string& bytes) {
  Utf8Printer printer;
  std::string text;
  for (char byte : bytes) text += printer.add(static_cast<uint8_t>(byte));
  return text + printer.finish();
}

TEST(Utf8PrinterTest, TextStaysAndOtherBytesAreEscaped) {
  EXPECT_EQ(printed("plain\n\ttext"), "plain\n\ttext");
  EXPECT_EQ(printed("\xC3\xA4 \xE2\x82\xAC \xF0\x9F\x98\x80"), "\xC3\xA4 \xE2\x82\xAC \xF0\x9F\x98\x80");
  EXPECT_EQ(printed("a\x1B[31m\r\x7F"), "a\\x1b[31m\\x0d\\x7f");
  EXPECT_EQ(printed("\xFF\x80z"), "\\xff\\x80z");
  EXPECT_EQ(printed("\xC3(\xE2\x82"), "\\xc3(\\xe2\\x82");                  // cut short, also at the end
  EXPECT_EQ(printed("\xE2\xC3\xA4"), "\\xe2\xC3\xA4");                      // a new character within one
  EXPECT_EQ(printed("\xC0\xAF\xE0\x80\xAF"), "\\xc0\\xaf\\xe0\\x80\\xaf");  // overlong
  EXPECT_EQ(printed("\xED\xA0\x80\xF4\x90\x80\x80"), "\\xed\\xa0\\x80\\xf4\\x90\\x80\\x80");
}

TEST(Utf8PrinterTest, ACharacterComesOutWhole) {
  Utf8Printer printer;
  EXPECT_EQ(printer.add(0xE2), "");
  EXPECT_EQ(printer.add(0x82), "");
  EXPECT_EQ(printer.add(0xAC), "\xE2\x82\xAC");
}

// How often each token is drawn over an even grid of uniform numbers, in percent.
std::map<int64_t, int> shares(const std::vector<double>& logits, const GenerateOptions& options) {
  std::map<int64_t, int> counts;
  for (int i = 0; i < 100; ++i) ++counts[sample_token(logits, options, (i + 0.5) / 100)];
  return counts;
}

TEST(SampleTokenTest, FollowsTheProbabilities) {
  const std::vector<double> logits = {std::log(0.2), std::log(0.5), std::log(0.3)};
  EXPECT_THAT(shares(logits, {}), ElementsAre(std::pair(0, 20), std::pair(1, 50), std::pair(2, 30)));
  EXPECT_THAT(shares(logits, {.temperature = 0.0}), ElementsAre(std::pair(1, 100)));
  EXPECT_THAT(shares(logits, {.temperature = 0.5}), ElementsAre(std::pair(0, 11), std::pair(1, 66), std::pair(2, 23)));
  EXPECT_THAT(shares(logits, {.temperature = 1e-30}), ElementsAre(std::pair(1, 100)));
}

TEST(SampleTokenTest, KeepsTheLikeliest) {
  const std::vector<double> logits = {std::log(0.1), std::log(0.6), std::log(0.3)};
  EXPECT_THAT(shares(logits, {.top_k = 1}), ElementsAre(std::pair(1, 100)));
  EXPECT_THAT(shares(logits, {.top_k = 5}), ElementsAre(std::pair(0, 10), std::pair(1, 60), std::pair(2, 30)));
  EXPECT_THAT(shares(logits, {.top_p = 0.8}), ElementsAre(std::pair(1, 67), std::pair(2, 33)));
  EXPECT_THAT(shares(logits, {.top_p = 0.0}), ElementsAre(std::pair(1, 100)));
  EXPECT_THAT(shares(logits, {.top_k = 2, .top_p = 0.5}), ElementsAre(std::pair(1, 100)));
  EXPECT_EQ(sample_token(std::vector<double>{1.0, 2.0, 2.0}, {.temperature = 0.0}, 0.9), 1);
}

TrainConfig text_model_config(std::vector<std::string> overrides = {}) {
  overrides.insert(overrides.end(), {"data={type: text, path: none}", "model.vocab_size=260"});
  return testing::tiny_train_config(overrides);
}

class GenerateLrpe : public ::testing::TestWithParam<const char*> {};

TEST_P(GenerateLrpe, StateEqualsReadingTheWholeTextAgain) {
  Context context(Device{}, {.threads = 1});
  LanguageModel model(text_model_config({std::string("model.mixer.lrpe=") + GetParam()}).model);
  model.parameters().materialize(context, DType::float64, 5);
  std::string text = "In the beginning";
  generate(context, model, text, {.tokens = 20, .temperature = 0.0}, [&](uint8_t byte) {
    const auto length = static_cast<int64_t>(text.size());
    const Tensor tokens = Tensor::empty(context, {1, length}, DType::int32);
    const std::vector<int32_t> ids(reinterpret_cast<const uint8_t*>(text.data()),
                                   reinterpret_cast<const uint8_t*>(text.data()) + length);
    copy_from_host(context, tokens, ids.data());
    Tape tape(context, Tape::Mode::inference);
    const Variable logits = model.forward(tape, tokens);
    std::vector<double> last = read_values(context, logits.value.select(1, length - 1));
    last.resize(256);
    EXPECT_EQ(byte, sample_token(last, {.temperature = 0.0}, 0.0)) << "after " << text;
    text += static_cast<char>(byte);
  });
  EXPECT_EQ(text.size(), 36u);
}

INSTANTIATE_TEST_SUITE_P(All, GenerateLrpe,
                         ::testing::Values("{type: lrpe_rotate, base: 100}",
                                           "{type: lrpe_cosine, base: 100, act: relu, extra_tokens: 3}"));

TEST(GenerateTest, TheSeedDecides) {
  Context context(Device{}, {.threads = 1});
  LanguageModel model(text_model_config().model);
  model.parameters().materialize(context, DType::float32, 5);
  const auto text = [&](uint64_t seed) {
    std::string bytes;
    generate(context, model, "a", {.tokens = 30, .seed = seed},
             [&](uint8_t byte) { bytes += static_cast<char>(byte); });
    return bytes;
  };
  EXPECT_EQ(text(1), text(1));
  EXPECT_NE(text(1), text(2));
  EXPECT_THROW(generate(context, model, "", {}, [](uint8_t) {}), Error);
}

TEST(GenerateTest, MemoryDoesNotGrowWithTheText) {
  Context context(Device{}, {.threads = 1});
  LanguageModel model(text_model_config().model);
  model.parameters().materialize(context, DType::float32, 5);
  const auto peak = [&](int64_t tokens) {
    context.allocator().reset_peaks();
    generate(context, model, "a", {.tokens = tokens}, [](uint8_t) {});
    return context.allocator().stats().allocated.peak;
  };
  EXPECT_EQ(peak(3), peak(60));
}

}  // namespace
}  // namespace heddle
