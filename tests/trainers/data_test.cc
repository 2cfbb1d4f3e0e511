#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <ios>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "core/tensor/transfer.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"
#include "trainers/data/dataset.h"
#include "trainers/data/permutation.h"

namespace heddle::data_test {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::TempFolder;

TrainConfig text_config(const std::string& path, int64_t length, const std::string& fraction = "0.1") {
  return testing::tiny_train_config({"data={type: text, path: \"" + path + "\", validation_fraction: " + fraction + "}",
                                     "model.vocab_size=256", "trainer.batch_size=3",
                                     "trainer.sequence_length=" + std::to_string(length)});
}

void write(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

// 1000 tokens of which each window of a few tells its place: the decimal digits of 0 .. 999, one byte a digit.
std::string counted_text() {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += fmt::format("{:03d},", i);
  return text;
}

TEST(PermutationTest, EveryIndexOnce) {
  for (const uint64_t size : {1, 2, 3, 5, 16, 17, 1000, 5001, 65536, 65537, 300007}) {
    std::vector<bool> images(size);
    uint64_t fixed = 0, rising = 0;
    for (uint64_t i = 0, before = 0; i < size; ++i) {
      const uint64_t image = permute(i, size, 42);
      ASSERT_LT(image, size);
      ASSERT_FALSE(images[image]) << image << " twice";
      images[image] = true;
      fixed += image == i ? 1 : 0;
      rising += image > before ? 1 : 0;
      before = image;
    }
    if (size < 1000) continue;
    EXPECT_LT(fixed, 10u) << size;  // about one is expected
    EXPECT_NEAR(static_cast<double>(rising) / static_cast<double>(size), 0.5, 0.06) << size;
  }
  for (uint64_t i = 0; i < 1000; ++i) {
    const uint64_t size = (uint64_t{1} << 40) + 7;
    EXPECT_LT(permute(i, size, 42), size);
    EXPECT_GT(permute(i, size, 42), size >> 20);
  }
  int fixed = 0;
  for (uint64_t i = 0; i < 1000; ++i) fixed += permute(i, 1000, 1) == permute(i, 1000, 2) ? 1 : 0;
  EXPECT_LT(fixed, 20);  // about one is expected of two random orders
}

// Beyond what can be listed: samples have images of their own, spread over the whole range.
TEST(PermutationTest, HugeSizes) {
  for (const uint64_t size : {(uint64_t{1} << 31) + 11, (uint64_t{1} << 32) + 1, (uint64_t{1} << 47) - 5}) {
    std::set<uint64_t> images;
    std::vector<int> tenths(10);
    for (uint64_t i = 0; i < 20000; ++i) {
      const uint64_t image = permute(i * (size / 20000), size, 9);
      ASSERT_LT(image, size);
      images.insert(image);
      ++tenths[image / (size / 10 + 1)];
    }
    EXPECT_EQ(images.size(), 20000u) << size;
    for (const int count : tenths) EXPECT_NEAR(count, 2000, 250) << size;
  }
}

// Where the windows of tokens begin that are their own positions.
std::vector<int64_t> window_begins(const Dataset& data, int64_t first, int64_t count) {
  std::vector<int64_t> begins;
  while (static_cast<int64_t>(begins.size()) < count) {
    const Batch batch = data.training_batch(first + static_cast<int64_t>(begins.size()));
    for (int64_t row = 0; row < batch.size; ++row) begins.push_back(batch.tokens[row * batch.length]);
  }
  begins.resize(static_cast<size_t>(count));
  return begins;
}

TEST(TokenDataTest, EachOfManyWindowsComesOnceAnEpochInAnotherOrder) {
  constexpr int64_t kTokens = 90000, kLength = 7, kTraining = 81000;
  const int64_t windows = (kTraining - kLength) / kLength;
  const TempFolder folder;
  const std::string positions = testing::write_positions((folder / "positions").string(), kTokens, "0.1");
  const auto order = [&](const std::string& seed, int64_t epoch) {
    const auto data = make_dataset(dataset_options(testing::tiny_train_config(
        {positions, "model.vocab_size=90000", "trainer.sequence_length=7", "trainer.batch_size=100", "seed=" + seed})));
    return window_begins(*data, epoch * windows, windows);
  };
  ASSERT_GT(windows, 10000);
  const std::vector<std::vector<int64_t>> orders = {order("7", 0), order("7", 1), order("7", 2), order("7", 40),
                                                    order("8", 0)};
  std::set<int64_t> shifts;
  for (size_t i = 0; i < orders.size(); ++i) {
    const std::set<int64_t> different(orders[i].begin(), orders[i].end());
    EXPECT_EQ(different.size(), static_cast<size_t>(windows));
    const int64_t shift = *different.begin();
    shifts.insert(shift);
    EXPECT_EQ(*different.rbegin(), shift + (windows - 1) * kLength);
    EXPECT_LT(*different.rbegin() + kLength, kTraining) << "the last target is a token of the validation part";
    for (size_t other = 0; other < i; ++other) {
      int64_t same = 0;
      for (size_t place = 0; place < orders[i].size(); ++place) {
        same += orders[i][place] / kLength == orders[other][place] / kLength ? 1 : 0;
      }
      EXPECT_LT(same, 20) << "of two random orders one place or two agree";
    }
  }
  EXPECT_GT(shifts.size(), 2u) << "each epoch has a start of its own, one of " << kTraining - windows * kLength;
}

// The parts end and begin where docs/model.md says, whatever the sizes; training predicts its last token, not the next.
TEST(TokenDataTest, NoTokenIsTrainedOnAndValidated) {
  const TempFolder folder;
  for (const auto& [tokens, length, fraction] : std::vector<std::tuple<uint32_t, int64_t, double>>{
           {100, 1, 0.05}, {101, 7, 0.37}, {997, 16, 0.25}, {64, 15, 0.5}, {400, 19, 0.9}, {1003, 50, 0.051}}) {
    const std::string positions =
        testing::write_positions((folder / "positions").string(), tokens, std::to_string(fraction));
    const auto data = make_dataset(dataset_options(
        testing::tiny_train_config({positions, "model.vocab_size=" + std::to_string(tokens), "trainer.batch_size=10",
                                    "trainer.eval_batches=all", "trainer.sequence_length=" + std::to_string(length)})));
    std::set<int32_t> trained, validated;
    const auto add = [&](const Batch& batch, std::set<int32_t>& to) {
      for (size_t i = 0; i < batch.tokens.size(); ++i) {
        if (batch.targets[i] == kIgnoredTarget) continue;
        to.insert({batch.tokens[i], batch.targets[i]});
        ASSERT_EQ(batch.targets[i], batch.tokens[i] + 1);
      }
    };
    for (int64_t first = 0; first < 6000; first += 10) add(data->training_batch(first), trained);
    for (int64_t first = 0; first < data->validation_sequences(); first += 10) {
      add(data->validation_batch(first), validated);
    }
    const auto kept = static_cast<int32_t>(std::floor(tokens * fraction));
    const auto all = static_cast<int32_t>(tokens);
    EXPECT_EQ(*trained.begin(), 0) << tokens;
    EXPECT_EQ(*trained.rbegin(), all - kept - 1) << tokens;
    EXPECT_EQ(*validated.begin(), all - kept) << tokens;
    EXPECT_EQ(*validated.rbegin(), all - 1) << tokens;
    EXPECT_EQ(trained.size() + validated.size(), tokens);
  }
}

TEST(TokenDataTest, TargetsAreTheNextTokens) {
  const TempFolder folder;
  const fs::path path = folder / "text";
  write(path, counted_text());
  const auto data = make_dataset(dataset_options(text_config(path.string(), 64)));
  EXPECT_TRUE(data->is_text());
  for (const Batch& batch : {data->training_batch(5), data->validation_batch(3)}) {
    ASSERT_EQ(batch.tokens.size(), 3u * 64u);
    for (int64_t row = 0; row < 3; ++row) {
      const std::string tokens(batch.tokens.begin() + row * 64, batch.tokens.begin() + (row + 1) * 64);
      const std::string targets(batch.targets.begin() + row * 64, batch.targets.begin() + (row + 1) * 64);
      EXPECT_EQ(tokens.substr(1), targets.substr(0, 63));
      EXPECT_NE(counted_text().find(tokens + targets.back()), std::string::npos);
    }
  }
}

TEST(TokenDataTest, AnEpochShowsEachWindowOnceInItsOwnOrder) {
  const TempFolder folder;
  const fs::path path = folder / "text";
  write(path, counted_text());
  const auto data = make_dataset(dataset_options(text_config(path.string(), 40)));
  // 3600 training tokens: 89 windows of 40, three a batch.
  std::vector<size_t> begins;
  for (int64_t index = 0; index < 60; ++index) {
    const Batch batch = data->training_batch(3 * index);
    for (int64_t row = 0; row < 3; ++row) {
      const std::string tokens(batch.tokens.begin() + row * 40, batch.tokens.begin() + (row + 1) * 40);
      begins.push_back(counted_text().find(tokens));
      EXPECT_LE(begins.back() + 41, 3600u) << "a window of the validation part";
    }
  }
  for (int epoch = 0; epoch < 2; ++epoch) {
    std::set<size_t> different(begins.begin() + epoch * 89, begins.begin() + (epoch + 1) * 89);
    EXPECT_EQ(different.size(), 89u);
    for (size_t begin : different) EXPECT_EQ(begin % 40, *different.begin() % 40);
    EXPECT_FALSE(std::is_sorted(begins.begin() + epoch * 89, begins.begin() + epoch * 89 + 20));
  }
}

// Whatever the batch size, the sequences have the same numbers.
TEST(DatasetTest, ABatchIsItsSequences) {
  const TempFolder folder;
  write(folder / "text", counted_text());
  const std::vector<std::string> sections = {"data={type: text, path: '" + (folder / "text").string() + "'}",
                                             "data={type: copy, length: 6}",
                                             "data={type: mqar, num_pairs: 4, num_queries: 3}"};
  for (const std::string& data : sections) {
    const auto of_size = [&](int64_t batch_size) {
      return make_dataset(dataset_options(testing::tiny_train_config(
          {data, "model.vocab_size=256", "trainer.batch_size=" + std::to_string(batch_size)})));
    };
    const auto fives = of_size(5), ones = of_size(1);
    for (const int64_t first : {0, 3, 1001}) {
      const Batch batch = fives->training_batch(first);
      ASSERT_EQ(batch.size, 5);
      std::vector<int32_t> tokens, targets;
      for (int64_t row = 0; row < 5; ++row) {
        const Batch one = ones->training_batch(first + row);
        tokens.insert(tokens.end(), one.tokens.begin(), one.tokens.end());
        targets.insert(targets.end(), one.targets.begin(), one.targets.end());
      }
      EXPECT_EQ(batch.tokens, tokens) << data;
      EXPECT_EQ(batch.targets, targets) << data;
    }
  }
}

TEST(DatasetTest, TheIdentityTellsOtherData) {
  const TempFolder folder;
  const std::string text = counted_text();
  write(folder / "a.txt", text);
  const auto identity = [&](const std::string& pattern) {
    return make_dataset(dataset_options(text_config((folder / pattern).string(), 8)))->identity();
  };
  const DataIdentity one = identity("a.txt");
  EXPECT_EQ(one.files, 1);
  EXPECT_EQ(one.bytes, text.size());
  EXPECT_EQ(identity("?.txt"), one);
  std::string changed = text;
  changed[2000] = 'x';
  write(folder / "changed", changed);
  EXPECT_NE(identity("changed"), one);
  write(folder / "appended", text + "y");
  EXPECT_NE(identity("appended"), one);

  // The same bytes cut into files in another place are other files.
  const auto cut = [&](size_t place) {
    write(folder / "a.txt", text.substr(0, place));
    write(folder / "b.txt", text.substr(place));
    return identity("*.txt");
  };
  const DataIdentity two = cut(1000);
  EXPECT_EQ(two.files, 2);
  EXPECT_EQ(two.bytes, text.size());
  EXPECT_NE(two, one);
  EXPECT_NE(cut(1001), two);
  EXPECT_EQ(cut(1000), two);
  EXPECT_EQ(make_dataset(dataset_options(testing::tiny_train_config()))->identity(), DataIdentity{});
}

TEST(TokenDataTest, BatchesDependOnSeedAndIndexAlone) {
  const TempFolder folder;
  const fs::path path = folder / "text";
  write(path, counted_text());
  TrainConfig config = text_config(path.string(), 64);
  const auto first = make_dataset(dataset_options(config)), second = make_dataset(dataset_options(config));
  first->training_batch(0);
  EXPECT_EQ(first->training_batch(9).tokens, second->training_batch(9).tokens);
  config.seed = 8;
  EXPECT_NE(first->training_batch(9).tokens, make_dataset(dataset_options(config))->training_batch(9).tokens);
  EXPECT_EQ(first->validation_batch(1).tokens, make_dataset(dataset_options(config))->validation_batch(1).tokens);
}

// The tokens of all validation sequences and the token after them, by the targets that count.
std::vector<std::string> validation_texts(const Dataset& data) {
  std::vector<std::string> texts;
  for (int64_t first = 0; first < data.validation_sequences();) {
    const Batch batch = data.validation_batch(first);
    for (int64_t row = 0; row < batch.size; ++row) {
      std::string text(1, static_cast<char>(batch.tokens[row * batch.length]));
      for (int64_t n = row * batch.length; n < (row + 1) * batch.length; ++n) {
        if (batch.targets[n] != kIgnoredTarget) text += static_cast<char>(batch.targets[n]);
      }
      texts.push_back(text);
    }
    first += batch.size;
  }
  return texts;
}

TEST(TokenDataTest, ValidationWindowsAreSpreadEvenly) {
  const TempFolder folder;
  const fs::path path = folder / "text";
  write(path, counted_text());
  TrainConfig config =
      text_config(path.string(), 20);  // 400 tokens for validation: 19 windows and a rest of 19 targets
  config.trainer.eval_batches = 2;
  const auto data = make_dataset(dataset_options(config));
  ASSERT_EQ(data->validation_sequences(), 6);
  EXPECT_EQ(data->validation_batch(0).size, 3);
  EXPECT_EQ(data->validation_batch(4).size, 2);
  const std::vector<std::string> texts = validation_texts(*data);
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(texts[i], counted_text().substr(3600 + i * 19 / 6 * 20, 21)) << i;

  // Micro-batches count, too.
  config.trainer.accumulate = 3;
  EXPECT_EQ(make_dataset(dataset_options(config))->validation_sequences(), 18);
  config.trainer.batch_size = 1;
  EXPECT_EQ(make_dataset(dataset_options(config))->validation_sequences(), 6);
  EXPECT_EQ(validation_texts(*make_dataset(dataset_options(config))), texts);
}

TEST(TokenDataTest, AllValidationTokensAreReadOnce) {
  const TempFolder folder;
  const fs::path path = folder / "text";
  write(path, counted_text());
  for (const int64_t length : {20, 40, 57, 133, 399}) {
    TrainConfig config = text_config(path.string(), length);
    for (const std::optional<int64_t> batches : {std::optional<int64_t>(), {int64_t{1} << 62}, {134}}) {
      config.trainer.eval_batches = batches;
      const auto data = make_dataset(dataset_options(config));
      EXPECT_EQ(data->validation_sequences(), (399 + length - 1) / length);
      std::string text = counted_text().substr(3600, 1);
      for (const std::string& window : validation_texts(*data)) {
        EXPECT_EQ(window[0], text.back());
        text += window.substr(1);
      }
      EXPECT_EQ(text, counted_text().substr(3600));
    }
  }
}

TEST(TokenDataTest, ValidationFilesLeaveAllOfPathToTraining) {
  const TempFolder folder;
  const std::string text = counted_text();
  write(folder / "train_0", text.substr(0, 1000));
  write(folder / "train_1", text.substr(1000, 1000));
  write(folder / "test", text.substr(2000, 50));
  const std::string train = (folder / "train_*").string(), test = (folder / "test").string();
  const auto config = [&](const std::string& data, const std::vector<std::string>& more = {}) {
    std::vector<std::string> overrides = {"data={type: text, " + data + "}", "model.vocab_size=256",
                                          "trainer.eval_batches=all"};
    overrides.insert(overrides.end(), more.begin(), more.end());
    return testing::tiny_train_config(overrides);
  };
  const TrainConfig both = config("path: '" + train + "', validation_path: '" + test + "'");
  const auto data = make_dataset(dataset_options(both));
  EXPECT_EQ(data->identity().files, 3);
  EXPECT_EQ(data->identity().bytes, 2050u);
  std::string validation = text.substr(2000, 1);
  for (const std::string& window : validation_texts(*data)) validation += window.substr(1);
  EXPECT_EQ(validation, text.substr(2000, 50));
  // Training reaches the first and the last token of its files, and none of the others.
  std::vector<bool> reached(2000);
  for (int64_t first = 0; first < 12000; first += 4) {
    const Batch batch = data->training_batch(first);
    for (int64_t row = 0; row < batch.size; ++row) {
      const auto begin = batch.tokens.begin() + row * batch.length;
      const size_t place = text.find(std::string(begin, begin + batch.length) +
                                     static_cast<char>(batch.targets[(row + 1) * batch.length - 1]));
      ASSERT_LE(place + static_cast<size_t>(batch.length), 1999u);
      reached[place] = reached[place + static_cast<size_t>(batch.length)] = true;
    }
  }
  EXPECT_TRUE(reached[0] && reached[1999]);

  // What is written reads back, without a share of the training text.
  const std::string yaml = to_yaml(both);
  EXPECT_THAT(yaml, HasSubstr("validation_path: "));
  EXPECT_THAT(yaml, ::testing::Not(HasSubstr("validation_fraction")));
  EXPECT_EQ(to_yaml(read_train_config(parse_config(yaml))), yaml);

  const auto config_error = [&](const std::string& data) -> std::string {
    try {
      make_dataset(dataset_options(config(data)));
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(config_error("path: a, validation_path: b, validation_fraction: 0.1"),
              HasSubstr("data.validation_fraction: found a share of data.path beside data.validation_path"));
  EXPECT_THAT(config_error("path: a, validation_path: ''"), HasSubstr("data.validation_path: found an empty path"));
  EXPECT_THAT(config_error("path: '" + train + "', validation_path: '" + test + "x'"),
              HasSubstr("data.validation_path: found no file"));
  EXPECT_THAT(config_error("path: '" + train + "', validation_path: '" + (folder / "train_0").string() + "'"),
              HasSubstr("train_0 is a file of data.path, too"));
  write(folder / "one", "1");
  EXPECT_THAT(config_error("path: '" + train + "', validation_path: '" + (folder / "one").string() + "'"),
              HasSubstr("one has one token, expected at least two"));
  EXPECT_THAT(config_error("path: '" + (folder / "one").string() + "', validation_path: '" + test + "'"),
              HasSubstr("one has 1 tokens; expected at least trainer.sequence_length + 1 = 17"));
  EXPECT_EQ(config_error("path: '" + train + "', validation_path: '" + test + "', validation_fraction: null"),
            "accepted");
}

TEST(TokenDataTest, ADataSetForEvaluationReadsTheWholeFile) {
  const TempFolder folder;
  write(folder / "text", counted_text().substr(0, 100));
  write(folder / "short", "ab");
  const auto data = [&](const std::string& section) {
    DatasetOptions options = dataset_options(testing::tiny_train_config(
        {"data={type: text, " + section + "}", "model.vocab_size=256", "trainer.eval_batches=all"}));
    options.evaluation_only = true;
    return make_dataset(options);
  };
  const auto text = [](const Dataset& data) {
    std::string all(1, static_cast<char>(data.validation_batch(0).tokens[0]));
    for (const std::string& window : validation_texts(data)) all += window.substr(1);
    return all;
  };
  const auto whole = data("path: '" + (folder / "text").string() + "'");
  EXPECT_EQ(text(*whole), counted_text().substr(0, 100));
  EXPECT_EQ(text(*data("path: '" + (folder / "short").string() + "'")), "ab");
  // data.path need not be there.
  EXPECT_EQ(text(*data("path: none, validation_path: '" + (folder / "text").string() + "'")),
            counted_text().substr(0, 100));
  EXPECT_THROW(whole->training_batch(0), Error);
  EXPECT_EQ(whole->identity(), make_dataset(dataset_options(text_config((folder / "text").string(), 8)))->identity());
}

// Sequence i is drawn from the numbers i 2^24 .. of substream 1 for training and 2 for validation.
TEST(GeneratedDataTest, TrainingAndValidationHaveNumbersOfTheirOwn) {
  const TrainConfig config = testing::tiny_train_config();
  const auto data = make_dataset(dataset_options(config));
  const auto first_symbol = [&](uint32_t substream, uint64_t index) {
    Random random(config.seed, RandomStream::data, substream);
    random.seek(index << 24);
    std::vector<int32_t> symbols;
    for (int i = 0; i < 6; ++i) symbols.push_back(static_cast<int32_t>(1 + random.next_below(7)));
    return symbols;
  };
  for (int64_t first = 0; first < 8; first += 4) {
    const Batch training = data->training_batch(first), validation = data->validation_batch(first);
    for (int64_t row = 0; row < 4; ++row) {
      const auto symbols = [&](const Batch& batch) {
        return std::vector<int32_t>(batch.tokens.begin() + row * 16, batch.tokens.begin() + row * 16 + 6);
      };
      const auto index = static_cast<uint64_t>(first + row);
      EXPECT_EQ(symbols(training), first_symbol(1, index));
      EXPECT_EQ(symbols(validation), first_symbol(2, index));
    }
  }
}

TEST(GeneratedDataTest, NoSequenceComesTwice) {
  for (const std::string data : {"data={type: copy, length: 8}", "data={type: mqar, num_pairs: 4, num_queries: 4}"}) {
    const auto made = make_dataset(dataset_options(testing::tiny_train_config(
        {data, "model.vocab_size=500", "trainer.batch_size=100", "trainer.eval_batches=10"})));
    std::set<std::vector<int32_t>> sequences;
    for (int64_t first = 0; first < 1000; first += 100) {
      for (const Batch& batch : {made->training_batch(first), made->validation_batch(first)}) {
        for (int64_t row = 0; row < batch.size; ++row) {
          const auto begin = batch.tokens.begin() + row * batch.length;
          sequences.emplace(begin, begin + batch.length);
        }
      }
    }
    EXPECT_EQ(sequences.size(), 2000u) << data;
  }
}

TEST(TokenDataTest, FilesOfAGlobAreReadInOrder) {
  const TempFolder folder;
  write(folder / "b.txt", std::string(50, 'b'));
  write(folder / "a.txt", std::string(50, 'a'));
  const auto data = make_dataset(dataset_options(text_config((folder / "*.txt").string(), 8, "0.3")));
  const Batch validation = data->validation_batch(0);
  EXPECT_THAT(validation.tokens, ::testing::Each('b'));
}

std::string refusal(const TrainConfig& config) {
  try {
    make_dataset(dataset_options(config));
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(TokenDataTest, BadFilesAreNamed) {
  const TempFolder folder;
  EXPECT_THAT(refusal(text_config((folder / "none").string(), 8)), HasSubstr("found no file"));
  EXPECT_THAT(refusal(text_config((folder / "*.md").string(), 8)), HasSubstr("*.md"));
  EXPECT_THAT(refusal(text_config(folder.path().string(), 8)), HasSubstr("it is a folder"));
  write(folder / "empty", "");
  EXPECT_THAT(refusal(text_config((folder / "empty").string(), 8)), HasSubstr("empty is empty"));
  write(folder / "short", std::string(20, 'x'));
  EXPECT_THAT(refusal(text_config((folder / "short").string(), 8)),
              HasSubstr("short has 20 tokens, of which 2 for validation; expected at least "
                        "trainer.sequence_length + 1 = 9"));
}

TEST(TokenDataTest, IdsAreLittleEndianAndChecked) {
  const TempFolder folder;
  const fs::path path = folder / "ids";
  std::string bytes;
  for (int i = 0; i < 100; ++i) bytes += {static_cast<char>(i), static_cast<char>(1)};
  write(path, bytes);
  const auto config = [&](const std::string& vocabulary, const std::string& width) {
    return testing::tiny_train_config(
        {"data={type: tokens, path: \"" + path.string() + "\", token_width: " + width + ", validation_fraction: 0.3}",
         "model.vocab_size=" + vocabulary});
  };
  const auto data = make_dataset(dataset_options(config("400", "uint16")));
  EXPECT_FALSE(data->is_text());
  EXPECT_EQ(data->validation_batch(0).tokens[0], 256 + 70);
  EXPECT_THAT(refusal(config("300", "uint16")), HasSubstr("token 44 is 300, expected less than model.vocab_size"));
  write(path, bytes + "x");
  EXPECT_THAT(refusal(config("400", "uint16")), HasSubstr("no whole number of tokens"));
}

TEST(RecallDataTest, EveryAnswerWasShown) {
  const TrainConfig config = testing::tiny_train_config(
      {"data={type: mqar, num_pairs: 4, num_queries: 3}", "model.vocab_size=20", "trainer.sequence_length=24"});
  const auto data = make_dataset(dataset_options(config));
  const Batch batch = data->training_batch(3);
  for (int64_t row = 0; row < batch.size; ++row) {
    const int32_t* tokens = batch.tokens.data() + row * 24;
    const int32_t* targets = batch.targets.data() + row * 24;
    std::map<int32_t, int32_t> value_of;
    for (int i = 0; i < 4; ++i) {
      EXPECT_TRUE(tokens[2 * i] >= 1 && tokens[2 * i] < 10);
      EXPECT_TRUE(tokens[2 * i + 1] >= 10 && tokens[2 * i + 1] < 20);
      EXPECT_TRUE(value_of.emplace(tokens[2 * i], tokens[2 * i + 1]).second) << "a key came twice";
    }
    std::set<int32_t> asked;
    for (int n = 0; n < 24; ++n) {
      if (targets[n] == kIgnoredTarget) continue;
      EXPECT_GE(n, 8);
      EXPECT_EQ(targets[n], value_of.at(tokens[n]));
      EXPECT_EQ(targets[n], tokens[n + 1]);
      EXPECT_TRUE(asked.insert(tokens[n]).second);
    }
    EXPECT_EQ(asked.size(), 3u);
  }
  EXPECT_EQ(data->training_batch(3).tokens, batch.tokens);
  EXPECT_NE(data->training_batch(4).tokens, batch.tokens);
  EXPECT_NE(data->validation_batch(3).tokens, batch.tokens);
}

// Every key, every value, every pair and every place for a query has its turn.
TEST(RecallDataTest, NothingIsLeftOut) {
  const auto data = make_dataset(dataset_options(
      testing::tiny_train_config({"data={type: mqar, num_pairs: 4, num_queries: 1}", "model.vocab_size=21",
                                  "trainer.sequence_length=24", "trainer.batch_size=500"})));
  const Batch batch = data->training_batch(0);
  std::set<int32_t> keys, values, asked, places;
  for (int64_t row = 0; row < batch.size; ++row) {
    const int32_t* tokens = batch.tokens.data() + row * 24;
    const int32_t* targets = batch.targets.data() + row * 24;
    for (int32_t i = 0; i < 4; ++i) {
      keys.insert(tokens[2 * i]);
      values.insert(tokens[2 * i + 1]);
    }
    const auto place = static_cast<int32_t>(
        std::find_if(targets, targets + 24, [](int32_t target) { return target != kIgnoredTarget; }) - targets);
    places.insert(place);
    for (int32_t i = 0; i < 4; ++i) {
      if (tokens[2 * i] == tokens[place]) asked.insert(i);
    }
  }
  const auto range = [](int32_t first, int32_t last, int32_t step) {
    std::set<int32_t> all;
    for (int32_t i = first; i < last; i += step) all.insert(i);
    return all;
  };
  EXPECT_EQ(keys, range(1, 10, 1));
  EXPECT_EQ(values, range(10, 21, 1));
  EXPECT_EQ(asked, range(0, 4, 1));
  EXPECT_EQ(places, range(8, 24, 2));
}

TEST(CopyDataTest, TheRepeatIsTheTarget) {
  const auto data = make_dataset(dataset_options(testing::tiny_train_config()));
  const Batch batch = data->validation_batch(0);
  for (int64_t row = 0; row < batch.size; ++row) {
    const int32_t* tokens = batch.tokens.data() + row * 16;
    const int32_t* targets = batch.targets.data() + row * 16;
    for (int i = 0; i < 6; ++i) {
      EXPECT_GT(tokens[i], 0);
      EXPECT_EQ(targets[i], kIgnoredTarget);
      EXPECT_EQ(targets[6 + i], tokens[i]);
      if (i < 5) {
        EXPECT_EQ(tokens[7 + i], tokens[i]);
      }
    }
    EXPECT_EQ(tokens[6], 0);
    for (int n = 12; n < 16; ++n) EXPECT_EQ(targets[n], kIgnoredTarget);
  }
}

TEST(DeviceBatchTest, CountsAsData) {
  Context context;
  const DeviceBatch batch =
      to_device(context, make_dataset(dataset_options(testing::tiny_train_config()))->training_batch(0));
  EXPECT_EQ(batch.tokens.shape(), (Shape{4, 16}));
  EXPECT_EQ(batch.tokens.dtype(), DType::int32);
  const auto stats = context.allocator().stats();
  EXPECT_EQ(stats.by_category[static_cast<int>(MemoryCategory::data)].current, stats.allocated.current);
}

}  // namespace
}  // namespace heddle::data_test
