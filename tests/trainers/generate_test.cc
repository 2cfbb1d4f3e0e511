#include "trainers/model/generate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/runtime/error.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "tests/trainers/test_config.h"

namespace heddle::generate_test {
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
  EXPECT_EQ(printed("a\xC2\x9B"
                    "2J\xC2\x80\xC2\xA0"),
            "a\\xc2\\x9b2J\\xc2\\x80\xC2\xA0");
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
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(sample_token(std::vector<double>{-kInfinity, 2.0}, {}, 0.1), 1);
  for (const double temperature : {0.0, 1.0}) {
    for (const std::vector<double>& logits :
         {std::vector<double>{1.0, std::nan(""), 2.0}, {kInfinity, 1.0, 0.0}, {-kInfinity, -kInfinity}, {}}) {
      EXPECT_THROW(sample_token(logits, {.temperature = temperature}, 0.5), Error);
    }
  }
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

// What sample_token() says of itself, step by step: the probabilities at the temperature, of them the top_k likeliest,
// of these the fewest whose share reaches top_p, and of those the one that `uniform` falls on; the lower of equals
// first.
int64_t drawn(const std::vector<double>& logits, const GenerateOptions& options, double uniform) {
  std::vector<std::pair<double, int64_t>> likeliest;
  for (size_t i = 0; i < logits.size(); ++i) likeliest.emplace_back(-logits[i], static_cast<int64_t>(i));
  std::sort(likeliest.begin(), likeliest.end());
  if (options.temperature == 0.0) return likeliest[0].second;
  if (options.top_k > 0 && options.top_k < static_cast<int64_t>(likeliest.size())) {
    likeliest.resize(static_cast<size_t>(options.top_k));
  }
  const auto weight = [&](size_t i) {
    return std::exp((likeliest[0].first - likeliest[i].first) / options.temperature);
  };
  const auto total = [&] {
    double sum = 0.0;
    for (size_t i = 0; i < likeliest.size(); ++i) sum += weight(i);
    return sum;
  };
  const double all = total();
  double share = 0.0;
  for (size_t i = 0; i < likeliest.size(); ++i) {
    share += weight(i) / all;
    if (share >= options.top_p) likeliest.resize(i + 1);
  }
  const double kept = total();
  double reached = 0.0;
  for (size_t i = 0; i < likeliest.size(); ++i) {
    reached += weight(i) / kept;
    if (uniform < reached) return likeliest[i].second;
  }
  return likeliest.back().second;
}

TEST(SampleTokenTest, IsTheDrawnTokenForAllOptionsTogether) {
  Random random(6, RandomStream::test);
  int among_equals = 0, cut_by_both = 0;
  for (int i = 0; i < 20000; ++i) {
    std::vector<double> logits(1 + random.next_below(i % 50 == 0 ? 2000 : 12));
    const bool has_equals = random.next_below(2) == 0;
    for (double& logit : logits)
      logit = has_equals ? static_cast<double>(random.next_below(3)) : 2 * random.next_normal();
    GenerateOptions options;
    options.temperature = std::vector<double>{0.0, 1e-3, 0.3, 0.7, 1.0, 1.9, 40.0}[random.next_below(7)];
    options.top_k = std::vector<int64_t>{0, 0, 1, 2, 3, 5, 400}[random.next_below(7)];
    const double share = 0.999 * random.next_uniform() + 1e-4;
    options.top_p = std::vector<double>{0.0, 1e-9, share, share, 1.0}[random.next_below(5)];
    const double uniform = std::vector<double>{0.0, 1.0 - 0x1p-24, random.next_uniform()}[random.next_below(3)];
    ASSERT_EQ(sample_token(logits, options, uniform), drawn(logits, options, uniform))
        << ::testing::PrintToString(logits) << ", temperature " << options.temperature << ", top_k " << options.top_k
        << ", top_p " << options.top_p << ", uniform " << uniform;
    among_equals += has_equals && options.temperature > 0.0 ? 1 : 0;
    cut_by_both += options.top_k > 1 && options.top_p == share ? 1 : 0;
  }
  EXPECT_GT(among_equals, 5000);
  EXPECT_GT(cut_by_both, 2000);
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

// Logits after the last of these tokens, all of them read at once and without a state.
std::vector<double> last_logits(Context& context, const LanguageModel& model, const std::vector<int32_t>& ids) {
  const auto length = static_cast<int64_t>(ids.size());
  const Tensor tokens = Tensor::empty(context, {1, length}, DType::int32);
  copy_from_host(context, tokens, ids.data());
  Tape tape(context, Tape::Mode::inference);
  return read_values(context, model.forward(tape, tokens).value.select(1, length - 1));
}

class GenerateLrpe : public ::testing::TestWithParam<const char*> {};

TEST_P(GenerateLrpe, StateEqualsReadingTheWholeTextAgain) {
  Context context(Device{}, {.threads = 1});
  LanguageModel model(text_model_config({std::string("model.mixer.lrpe=") + GetParam()}).model);
  model.parameters().materialize(context, DType::float64, 5);
  std::string text = "In the beginning";
  generate(context, model, ByteTokenizer(), text, {.tokens = 20, .temperature = 0.0}, [&](uint8_t byte) {
    std::vector<int32_t> ids;
    for (const char letter : text) ids.push_back(static_cast<uint8_t>(letter));
    std::vector<double> last = last_logits(context, model, ids);
    last.resize(256);
    EXPECT_EQ(byte, sample_token(last, {.temperature = 0.0}, 0.0)) << "after " << text;
    text += static_cast<char>(byte);
  });
  EXPECT_EQ(text.size(), 36u);
}

INSTANTIATE_TEST_SUITE_P(All, GenerateLrpe,
                         ::testing::Values("{type: lrpe_rotate, base: 100}",
                                           "{type: lrpe_cosine, base: 100, act: relu, extra_tokens: 3}"));

// A model whose text a lost token, a lost state or a wrong position would change: it remembers long, and its vocabulary
// is large.
struct LargeVocabulary {
  explicit LargeVocabulary(Context& context)
      : model(testing::tiny_train_config({"model.vocab_size=1000", "model.mixer.lrpe.layers=null"}).model) {
    model.parameters().materialize(context, DType::float64, 5);
  }
  static std::vector<int32_t> prompt(size_t length) {
    Random random(length, RandomStream::test);
    std::vector<int32_t> ids(length);
    for (int32_t& id : ids) id = static_cast<int32_t>(random.next_below(1000));
    return ids;
  }

  LanguageModel model;
};

// A long prompt is read in parts.
TEST(GenerateTest, APromptOfAnyLengthIsReadWhole) {
  Context context(Device{}, {.threads = 1});
  const LargeVocabulary large(context);
  for (const size_t length : {1, 2, 1023, 1024, 1025, 1500, 2048, 2049, 3100}) {
    std::vector<int32_t> text = LargeVocabulary::prompt(length);
    generate_tokens(context, large.model, LargeVocabulary::prompt(length), {.tokens = 4, .temperature = 0.0}, 1000,
                    [&](int32_t token) {
                      const std::vector<double> logits = last_logits(context, large.model, text);
                      EXPECT_EQ(token, std::max_element(logits.begin(), logits.end()) - logits.begin()) << length;
                      text.push_back(token);
                      return true;
                    });
    EXPECT_EQ(text.size(), length + 4);
  }
}

// Token i takes the i-th number of the sequence of its seed.
TEST(GenerateTest, TokensAreDrawnWithTheOptionsOneAfterTheOther) {
  Context context(Device{}, {.threads = 1});
  const LargeVocabulary large(context);
  const std::vector<GenerateOptions> all = {
      {.tokens = 25, .seed = 11},
      {.tokens = 25, .temperature = 0.6, .seed = 12},
      {.tokens = 25, .temperature = 1.7, .top_k = 20, .seed = 13},
      {.tokens = 25, .temperature = 0.8, .top_k = 50, .top_p = 0.6, .seed = 14},
      {.tokens = 25, .top_p = 0.3, .seed = 15},
  };
  for (const GenerateOptions& options : all) {
    for (const int64_t choices : {1000, 70}) {
      std::vector<int32_t> text = LargeVocabulary::prompt(9);
      Random random(options.seed, RandomStream::sampling);
      generate_tokens(context, large.model, LargeVocabulary::prompt(9), options, choices, [&](int32_t token) {
        std::vector<double> logits = last_logits(context, large.model, text);
        logits.resize(static_cast<size_t>(choices));
        EXPECT_EQ(token, drawn(logits, options, random.next_uniform()))
            << "seed " << options.seed << ", token " << text.size();
        text.push_back(token);
        return true;
      });
      EXPECT_EQ(text.size(), 9u + 25u);
    }
  }
}

TEST(GenerateTest, TheSeedDecides) {
  Context context(Device{}, {.threads = 1});
  LanguageModel model(text_model_config().model);
  model.parameters().materialize(context, DType::float32, 5);
  const auto text = [&](uint64_t seed) {
    std::string bytes;
    generate(context, model, ByteTokenizer(), "a", {.tokens = 30, .seed = seed},
             [&](uint8_t byte) { bytes += static_cast<char>(byte); });
    return bytes;
  };
  EXPECT_EQ(text(1), text(1));
  EXPECT_NE(text(1), text(2));
  EXPECT_THROW(generate(context, model, ByteTokenizer(), "", {}, [](uint8_t) {}), Error);
}

TEST(GenerateTest, WritesWhatStandsBeforeTheStopText) {
  Context context(Device{}, {.threads = 1});
  LanguageModel model(text_model_config().model);
  model.parameters().materialize(context, DType::float32, 5);
  const auto text = [&](const std::string& stop, int64_t tokens) {
    std::string bytes;
    generate(context, model, ByteTokenizer(), "a", {.tokens = tokens, .seed = 3, .stop = stop},
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
    generate(context, model, ByteTokenizer(), std::string(prompt, 'a'), {.tokens = tokens}, [](uint8_t) {});
    return context.allocator().stats().allocated.peak;
  };
  EXPECT_EQ(peak(3), peak(60));
  EXPECT_EQ(peak(1, 2500), peak(1, 5000)) << "of a long prompt";
}

}  // namespace
}  // namespace heddle::generate_test
