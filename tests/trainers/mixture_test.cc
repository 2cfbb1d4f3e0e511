#include "trainers/data/mixture.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/config/config_error.h"
#include "core/io/atomic_file.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"
#include "trainers/data/dataset.h"

namespace heddle::mixture_test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<DataSource> with_weights(const std::vector<double>& weights) {
  std::vector<DataSource> sources;
  for (const double weight : weights) sources.push_back({fmt::format("{}", sources.size()), weight});
  return sources;
}

// Each source has its own sequences 0, 1, 2, .. without a gap, and its share of every prefix.
TEST(MixtureTest, SourcesHaveTheirShareAndAllOfTheirSequencesInOrder) {
  for (const std::vector<double>& weights :
       {std::vector<double>{1}, {1, 1}, {0.7, 0.2, 0.1}, {1e-3, 5, 2, 1e-3}, {3e300, 1e300}, {1e-300, 3e-300}}) {
    const std::vector<uint64_t> odds = source_odds(with_weights(weights));
    EXPECT_EQ(odds.back(), kCertain);
    double total = 0.0;
    for (const double weight : weights) total += weight / weights[0];
    std::vector<int64_t> taken(weights.size());
    for (int64_t index = 0; index < 20000; ++index) {
      const SourceSequence sequence = source_of(index, odds);
      ASSERT_EQ(sequence.index, taken[sequence.source]++) << index;
      for (size_t i = 0; i < weights.size(); ++i) {
        const double share = weights[i] / weights[0] / total;
        const double rounding = 1e-9 * static_cast<double>(index + 1);  // of the odds and of `share`
        ASSERT_LE(std::abs(static_cast<double>(taken[i]) - share * static_cast<double>(index + 1)),
                  static_cast<double>(i + 1) + rounding)
            << index << " " << i;
      }
    }
  }
}

TEST(MixtureTest, TheFormulaHoldsForAnyNumberOfSequences) {
  const std::vector<uint64_t> odds = source_odds(with_weights({2, 1}));
  const int64_t far = (int64_t{1} << 62) + 12345;
  const uint64_t p = odds[0];  // 2/3 of 2^32, rounded
  EXPECT_EQ(p, 2863311531u);
  // floor(far p / 2^32), by hand: far = 2^62 + 12345.
  const auto taken = static_cast<int64_t>((p << 30) + (12345 * p >> 32));
  const SourceSequence at = source_of(far, odds);
  EXPECT_EQ(at, (at.source == 0 ? SourceSequence{0, taken} : SourceSequence{1, far - taken}));
  EXPECT_EQ(source_of(0, odds), (SourceSequence{1, 0}));
  EXPECT_EQ(source_of(1, odds), (SourceSequence{0, 0}));
  EXPECT_EQ(source_of(2, odds), (SourceSequence{0, 1}));
}

class SourcesTest : public ::testing::Test {
 protected:
  SourcesTest() {
    // Bytes tell the source and, with 7 digits, the place.
    for (const char name : {'a', 'b', 'c'}) {
      std::string text;
      for (int i = 0; i < 500; ++i) text += fmt::format("{}{:07d}", name, i);
      write_file(folder_ / std::string(1, name), text);
    }
  }
  std::string path(const std::string& name) const { return fmt::format("'{}'", (folder_ / name).string()); }
  std::string sources(double a, double b, double c) const {
    return fmt::format("sources: [{{path: {}, weight: {}}}, {{path: {}, weight: {}}}, {{path: {}, weight: {}}}]",
                       path("a"), a, path("b"), b, path("c"), c);
  }
  static TrainConfig config(const std::string& data, const std::vector<std::string>& more = {}) {
    std::vector<std::string> overrides = {"data={type: text, " + data + "}", "model.vocab_size=256"};
    overrides.insert(overrides.end(), more.begin(), more.end());
    return testing::tiny_train_config(overrides);
  }
  static std::string refusal(const std::string& data) {
    try {
      make_dataset(dataset_options(config(data)));
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "accepted";
  }
  static std::vector<std::string> texts(const Batch& batch) {
    std::vector<std::string> all;
    for (int64_t row = 0; row < batch.size; ++row) {
      std::string& text = all.emplace_back();
      for (int64_t n = 0; n < batch.length; ++n) {
        text += static_cast<char>(batch.tokens[static_cast<size_t>(row * batch.length + n)]);
      }
    }
    return all;
  }
  // The source of a window of 16 bytes.
  static char source_of_text(const std::string& text) { return text[text.find_first_of("abc")]; }

  testing::TempFolder folder_;
};

// Batches of any size give the same sequences, each from the source of the formula; what a source gives is what it
// gives alone, with its own order.
TEST_F(SourcesTest, SequencesComeFromTheSourcesOfTheFormula) {
  const std::vector<uint64_t> odds = source_odds(with_weights({5, 3, 2}));
  const auto data = make_dataset(dataset_options(config(sources(5, 3, 2), {"trainer.batch_size=5"})));
  const auto ones = make_dataset(dataset_options(config(sources(5, 3, 2), {"trainer.batch_size=1"})));
  const auto alone = make_dataset(dataset_options(config("path: " + path("a"), {"trainer.batch_size=1"})));
  int from_b = 0;
  for (int64_t first = 0; first < 1500; first += 5) {
    const Batch batch = data->training_batch(first);
    for (int64_t row = 0; row < 5; ++row) {
      const std::string text = texts(batch)[static_cast<size_t>(row)];
      const SourceSequence sequence = source_of(first + row, odds);
      ASSERT_EQ(source_of_text(text), "abc"[sequence.source]);
      from_b += sequence.source == 1;
      ASSERT_EQ(text, texts(ones->training_batch(first + row))[0]);
      if (sequence.source == 0) {
        ASSERT_EQ(text, texts(alone->training_batch(sequence.index))[0]);
      }
    }
  }
  EXPECT_EQ(from_b, 450);
}

TEST_F(SourcesTest, SourcesHaveOrdersOfTheirOwn) {
  write_file(folder_ / "twin", read_file(folder_ / "a"));
  const auto data = make_dataset(dataset_options(
      config(fmt::format("sources: [{{path: {}, weight: 1}}, {{path: {}, weight: 1}}]", path("a"), path("twin")))));
  const std::vector<std::string> first = texts(data->training_batch(0));
  EXPECT_NE(first[0], first[1]);
  EXPECT_NE(first[2], first[3]);
}

// The end of each source is for evaluation: in proportion to the weights, or all of it.
TEST_F(SourcesTest, EachSourceKeepsItsEndForEvaluation) {
  const std::string data = sources(6, 3, 1) + ", validation_fraction: 0.1";
  const auto count = [&](const std::vector<std::string>& more) {
    const auto made = make_dataset(dataset_options(config(data, more)));
    std::vector<int> counts(3);
    for (int64_t first = 0; first < made->validation_sequences();) {
      const Batch batch = made->validation_batch(first);
      for (const std::string& text : texts(batch)) {
        ++counts[static_cast<size_t>(source_of_text(text) - 'a')];
        EXPECT_GE(std::stoi(text.substr(text.find_first_of("abc") + 1, 7)), 450) << "that is training text";
      }
      first += batch.size;
    }
    return counts;
  };
  // 400 bytes of each: 24 whole windows of 16, and a rest.
  EXPECT_THAT(count({"trainer.batch_size=5", "trainer.eval_batches=4"}), ElementsAre(12, 6, 2));
  EXPECT_THAT(count({"trainer.eval_batches=20"}), ElementsAre(25, 24, 8));
  EXPECT_THAT(count({"trainer.eval_batches=all"}), ElementsAre(25, 25, 25));
}

TEST_F(SourcesTest, TheIdentityIsThatOfAllSources) {
  const auto identity = [&] { return make_dataset(dataset_options(config(sources(1, 1, 1))))->identity(); };
  const DataIdentity before = identity();
  EXPECT_EQ(before.files, 3);
  EXPECT_EQ(before.bytes, 3u * 4000);
  for (const char* name : {"a", "b", "c"}) {
    const std::string text = read_file(folder_ / name);
    std::string changed = text;
    changed[1234] ^= 1;
    write_file(folder_ / name, changed);
    EXPECT_NE(identity(), before) << name;
    write_file(folder_ / name, text);
  }
  EXPECT_EQ(identity(), before);
}

TEST_F(SourcesTest, WhatCannotBeMeantIsRefused) {
  EXPECT_THAT(refusal(sources(1, 1, 1) + ", path: " + path("a")), HasSubstr("data.path"));
  EXPECT_THAT(refusal("sources: []"), HasSubstr("data.sources: found an empty list"));
  EXPECT_THAT(refusal("sources: " + path("a")), HasSubstr("expected a list of maps"));
  EXPECT_THAT(refusal("sources: [{path: " + path("a") + "}]"), HasSubstr("missing key 'weight' in data.sources.0"));
  EXPECT_THAT(refusal("sources: [{weight: 1}]"), HasSubstr("missing key 'path' in data.sources.0"));
  EXPECT_THAT(refusal("sources: [{path: '', weight: 1}]"), HasSubstr("found an empty path"));
  EXPECT_THAT(refusal("sources: [{path: " + path("a") + ", weight: 1, wieght: 2}]"), HasSubstr("unknown key 'wieght'"));
  for (const char* weight : {"0", "-1", ".nan", "nan", ".inf", "x", "1e999"}) {
    EXPECT_THAT(refusal("sources: [{path: " + path("a") + ", weight: " + weight + "}]"),
                HasSubstr("data.sources.0.weight: found '"))
        << weight;
  }
  EXPECT_THAT(refusal(sources(1, 1e-12, 1)), HasSubstr("too little beside the others"));
  EXPECT_THAT(refusal(sources(1, 1, 1e-12)), HasSubstr("too little beside the others"));
  EXPECT_THAT(refusal(sources(1e-308, 1e-308, 1e308)), HasSubstr("too little beside the others"));
  EXPECT_THAT(refusal(fmt::format("sources: [{{path: {}, weight: 1}}, {{path: '{}', weight: 1}}]", path("a"),
                                  (folder_ / "?").string())),
              HasSubstr("a is a file of two sources"));
  EXPECT_THAT(refusal(sources(1, 1, 1) + ", validation_path: " + path("b")),
              HasSubstr("b is a file of data.sources, too"));
  std::filesystem::create_hard_link(folder_ / "a", folder_ / "hard");
  EXPECT_THAT(
      refusal(fmt::format("sources: [{{path: {}, weight: 1}}, {{path: {}, weight: 1}}]", path("a"), path("hard"))),
      HasSubstr("hard is a file of two sources"));
  EXPECT_THAT(refusal(sources(1, 1, 1) + ", validation_path: " + path("hard")),
              HasSubstr("hard is a file of data.sources, too"));
  write_file(folder_ / "c", "short");
  EXPECT_THAT(refusal(sources(1, 1, 1)), HasSubstr("c has 5 tokens"));
  EXPECT_EQ(refusal(fmt::format("sources: [{{path: {}, weight: 1}}], validation_path: {}", path("a"), path("c"))),
            "accepted");
}

TEST_F(SourcesTest, WhatIsWrittenReadsBack) {
  const std::string yaml = to_yaml(config(sources(0.5, 3, 1e-3)));
  EXPECT_THAT(yaml, HasSubstr("weight: 0.001"));
  EXPECT_EQ(to_yaml(read_train_config(parse_config(yaml))), yaml);
  // One value of a source is overridden, the others stay.
  const TrainConfig other = config(sources(0.5, 3, 1e-3), {"data.sources.1.weight=4"});
  EXPECT_EQ(other.data.sources[1].weight, 4);
  EXPECT_EQ(other.data.sources[1].path, (folder_ / "b").string());
  EXPECT_EQ(other.data.sources[0].weight, 0.5);
}

}  // namespace
}  // namespace heddle::mixture_test
