#include "trainers/model/generate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
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

// The temperature changes the probabilities first; then the likeliest are kept.
TEST(SampleTokenTest, TopKAndTopPHoldAtAnyTemperature) {
  const std::vector<double> logits = {std::log(0.1), std::log(0.6), std::log(0.3)};
  // Squares: 0.01, 0.36, 0.09. Roots: 0.316, 0.775, 0.548.
  EXPECT_THAT(shares(logits, {.temperature = 0.5, .top_k = 2}), ElementsAre(std::pair(1, 80), std::pair(2, 20)));
  EXPECT_THAT(shares(logits, {.temperature = 2.0, .top_k = 2}), ElementsAre(std::pair(1, 59), std::pair(2, 41)));
  EXPECT_THAT(shares(logits, {.temperature = 0.5, .top_p = 0.7}), ElementsAre(std::pair(1, 100)));
  EXPECT_THAT(shares(logits, {.temperature = 2.0, .top_p = 0.7}), ElementsAre(std::pair(1, 59), std::pair(2, 41)));
  EXPECT_THAT(shares(logits, {.temperature = 0.0, .top_k = 3, .top_p = 0.9}), ElementsAre(std::pair(1, 100)));
  // top_p is a share of what top_k keeps: 0.6 of 0.9.
  EXPECT_THAT(shares(logits, {.top_k = 2, .top_p = 0.65}), ElementsAre(std::pair(1, 100)));
}

// Of equally likely tokens those with the lowest ids are kept, and no more than top_p needs.
TEST(SampleTokenTest, ATieAtTheEdgeIsCut) {
  const std::vector<double> logits = {0.5, 0.5, 0.5, 0.5};
  EXPECT_THAT(shares(logits, {.top_p = 0.5}), ElementsAre(std::pair(0, 50), std::pair(1, 50)));
  EXPECT_THAT(shares(logits, {.top_p = 0.51}), ElementsAre(std::pair(0, 33), std::pair(1, 34), std::pair(2, 33)));
  EXPECT_THAT(shares(logits, {.top_p = 0.25}), ElementsAre(std::pair(0, 100)));
  EXPECT_THAT(shares(logits, {.top_k = 2}), ElementsAre(std::pair(0, 50), std::pair(1, 50)));
  const std::vector<double> late = {0.0, 2.0, 0.0, 2.0, 2.0};
  EXPECT_THAT(shares(late, {.top_k = 2}), ElementsAre(std::pair(1, 50), std::pair(3, 50)));
}

std::string until(const std::string& stop, const std::string& bytes) {
  StopText text(stop);
  std::string written;
  for (char byte : bytes) {
    written += text.add(static_cast<uint8_t>(byte));
    if (text.reached()) return written + "|" + text.rest();
  }
  return written + text.rest();
}

TEST(StopTextTest, IsFoundAndLeftOut) {
  EXPECT_EQ(until("END", "the ENDing"), "the |");
  EXPECT_EQ(until("END", "the EN"), "the EN");
  EXPECT_EQ(until("END", "ENEND"), "EN|");
  EXPECT_EQ(until("aab", "aaaab"), "aa|");
  EXPECT_EQ(until("abab", "abaabab"), "aba|");
  EXPECT_EQ(until("x", "x"), "|");
  EXPECT_EQ(until("", "any text"), "any text");
  StopText text("ab");
  EXPECT_EQ(text.add('x'), "x");
  EXPECT_EQ(text.add('a'), "");
  EXPECT_EQ(text.add('a'), "a");
  EXPECT_EQ(text.add('c'), "ac");
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

TEST(GenerateTest, WritesWhatStandsBeforeTheStopText) {
  Context context(Device{}, {.threads = 1});
  LanguageModel model(text_model_config().model);
  model.parameters().materialize(context, DType::float32, 5);
  const auto text = [&](const std::string& stop, int64_t tokens) {
    std::string bytes;
    generate(context, model, "a", {.tokens = tokens, .seed = 3, .stop = stop},
             [&](uint8_t byte) { bytes += static_cast<char>(byte); });
    return bytes;
  };
  const std::string whole = text("", 40), stop = whole.substr(30, 3);
  EXPECT_EQ(whole.size(), 40u);
  EXPECT_EQ(text(stop, 40), whole.substr(0, whole.find(stop)));
  EXPECT_EQ(text(stop, 32), whole.substr(0, 32)) << "what was held back comes at the end";
}

TEST(GenerateTest, AllIdsOfTheVocabularyAreReadAndWritten) {
  Context context(Device{}, {.threads = 1});
  LanguageModel model(testing::tiny_train_config({"model.vocab_size=1000"}).model);
  model.parameters().materialize(context, DType::float32, 5);
  const auto ids = [&](const std::vector<int32_t>& prompt, int64_t choices) {
    std::vector<int32_t> found;
    generate_tokens(context, model, prompt, {.tokens = 60}, choices, [&](int32_t token) {
      found.push_back(token);
      return found.size() < 50;
    });
    EXPECT_EQ(found.size(), 50u);
    return found;
  };
  const std::vector<int32_t> all = ids({999, 0, 500}, 1000), few = ids({999, 0, 500}, 300);
  EXPECT_GT(*std::max_element(all.begin(), all.end()), 700);
  EXPECT_LT(*std::max_element(few.begin(), few.end()), 300);
  EXPECT_NE(ids({998, 0, 500}, 1000), all);
  for (const std::vector<int32_t>& prompt : {std::vector<int32_t>{}, {1000}, {3, -1}}) {
    EXPECT_THROW(generate_tokens(context, model, prompt, {}, 1000, [](int32_t) { return true; }), Error);
  }
}

TEST(GenerateTest, MemoryDoesNotGrowWithTheText) {
  Context context(Device{}, {.threads = 1});
  LanguageModel model(text_model_config().model);
  model.parameters().materialize(context, DType::float32, 5);
  const auto peak = [&](int64_t tokens, size_t prompt = 1) {
    context.allocator().reset_peaks();
    generate(context, model, std::string(prompt, 'a'), {.tokens = tokens}, [](uint8_t) {});
    return context.allocator().stats().allocated.peak;
  };
  EXPECT_EQ(peak(3), peak(60));
  EXPECT_EQ(peak(1, 2500), peak(1, 5000)) << "of a long prompt";
}

}  // namespace
}  // namespace heddle
