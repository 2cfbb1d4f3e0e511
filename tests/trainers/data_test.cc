#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <ios>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "core/tensor/transfer.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"
#include "trainers/data/dataset.h"
#include "trainers/data/permutation.h"

namespace heddle {
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
  for (uint64_t size : {1, 2, 3, 5, 16, 17, 1000}) {
    std::set<uint64_t> images;
    for (uint64_t i = 0; i < size; ++i) images.insert(permute(i, size, 42));
    EXPECT_EQ(images.size(), size);
    EXPECT_LT(*images.rbegin(), size);
  }
  int fixed = 0;
  for (uint64_t i = 0; i < 1000; ++i) fixed += permute(i, 1000, 1) == permute(i, 1000, 2) ? 1 : 0;
  EXPECT_LT(fixed, 20);  // about one is expected of two random orders
}

TEST(TokenDataTest, TargetsAreTheNextTokens) {
  const TempFolder folder;
  const fs::path path = folder / "text";
  write(path, counted_text());
  const auto data = make_dataset(dataset_options(text_config(path.string(), 64)));
  EXPECT_TRUE(data->is_text());
  for (const Batch& batch : {data->training_batch(5), data->validation_batch(1)}) {
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

TEST(TokenDataTest, ShortValidationDataIsUsedOnce) {
  const TempFolder folder;
  const fs::path path = folder / "text";
  write(path, counted_text());
  const auto data =
      make_dataset(dataset_options(text_config(path.string(), 100)));  // 400 tokens for validation: 3 windows
  EXPECT_EQ(data->validation_batches(), 1);
  const auto longer =
      make_dataset(dataset_options(text_config(path.string(), 80)));  // 4 windows in two batches of three
  ASSERT_EQ(longer->validation_batches(), 2);
  const Batch last = longer->validation_batch(1);
  EXPECT_NE(last.targets[0], kIgnoredTarget);
  EXPECT_THAT(std::vector<int32_t>(last.targets.begin() + 80, last.targets.end()), ::testing::Each(kIgnoredTarget));
}

TEST(TokenDataTest, AllValidationWindowsAreReadOnce) {
  const TempFolder folder;
  const fs::path path = folder / "text";
  write(path, counted_text());
  TrainConfig config = text_config(path.string(), 40);  // 400 tokens for validation: 9 windows, three a batch
  config.trainer.eval_batches.reset();
  const auto all = make_dataset(dataset_options(config));
  config.trainer.eval_batches = int64_t{1} << 62;
  const auto most = make_dataset(dataset_options(config));
  ASSERT_EQ(all->validation_batches(), 3);
  ASSERT_EQ(most->validation_batches(), 3);
  std::string text;
  for (int64_t index = 0; index < 3; ++index) {
    const Batch batch = all->validation_batch(index);
    EXPECT_EQ(batch.targets, most->validation_batch(index).targets);
    text.append(batch.tokens.begin(), batch.tokens.end());
  }
  EXPECT_EQ(text, counted_text().substr(3600, 360));
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
  EXPECT_NE(data->validation_batch(3 % data->validation_batches()).tokens, batch.tokens);
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
}  // namespace heddle
