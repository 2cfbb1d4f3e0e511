#include "trainers/data/token_data.h"

#include <fmt/format.h>
#include <glob.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "trainers/data/permutation.h"

namespace heddle {
namespace {

int64_t width_of(const DataConfig& data) {
  if (data.type == DataType::text) return 1;
  return data.token_width == TokenWidth::uint16 ? 2 : 4;
}

// The file of this name, or the files that the pattern matches, sorted by name.
std::vector<std::string> find_files(const std::string& pattern) {
  if (std::filesystem::exists(pattern)) return {pattern};
  std::vector<std::string> files;
  glob_t matches{};
  if (glob(pattern.c_str(), 0, nullptr, &matches) == 0) {
    files.assign(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
  }
  globfree(&matches);
  std::sort(files.begin(), files.end());
  return files;
}

std::string read_all(const TrainConfig& config) {
  const ConfigNode node = config.node.section("data");
  const std::vector<std::string> files = find_files(config.data.path);
  if (files.empty()) {
    node.fail("path", fmt::format("found no file '{}' (looked in {})", config.data.path,
                                  std::filesystem::current_path().string()));
  }
  std::string bytes;
  for (const std::string& file : files) {
    try {
      const std::string contents = read_file(file);
      if (contents.empty()) node.fail("path", fmt::format("{} is empty", file));
      bytes += contents;
    } catch (const Error& error) {
      node.fail("path", error.what());
    }
  }
  return bytes;
}

}  // namespace

TokenData::TokenData(const TrainConfig& config)
    : Dataset({config.trainer.batch_size, config.trainer.sequence_length, config.trainer.eval_batches}),
      bytes_(read_all(config)),
      width_(width_of(config.data)),
      seed_(config.seed) {
  const ConfigNode node = config.node.section("data");
  const int64_t bytes = static_cast<int64_t>(bytes_.size());
  if (bytes % width_ != 0) {
    node.fail("path", fmt::format("{} has {} bytes, which is no whole number of tokens of {} bytes", config.data.path,
                                  bytes, width_));
  }
  tokens_ = bytes / width_;
  validation_begin_ = tokens_ - static_cast<int64_t>(static_cast<double>(tokens_) * config.data.validation_fraction);
  const int64_t needed = sizes().length + 1;
  const auto check_part = [&](const char* part, int64_t count) {
    if (count >= needed) return;
    node.fail("path", fmt::format("{} has {} tokens, of which {} for {}; expected at least trainer.sequence_length + 1 "
                                  "= {} there",
                                  config.data.path, tokens_, count, part, needed));
  };
  check_part("training", validation_begin_);
  check_part("validation", tokens_ - validation_begin_);
  if (width_ > 1) check_ids(config);
}

void TokenData::check_ids(const TrainConfig& config) const {
  for (int64_t i = 0; i < tokens_; ++i) {
    // uint32 ids above the range of int32 come out negative.
    if (token(i) >= 0 && token(i) < config.model.vocab_size) continue;
    config.node.section("data").fail(
        "path", fmt::format("{}: token {} is {}, expected less than model.vocab_size ({})", config.data.path, i,
                            static_cast<uint32_t>(token(i)), config.model.vocab_size));
  }
}

int32_t TokenData::token(int64_t position) const {
  uint32_t value = 0;
  std::memcpy(&value, bytes_.data() + position * width_, static_cast<size_t>(width_));
  return static_cast<int32_t>(value);
}

void TokenData::window(int64_t begin, int32_t* tokens, int32_t* targets) const {
  for (int64_t n = 0; n < sizes().length; ++n) {
    tokens[n] = token(begin + n);
    targets[n] = token(begin + n + 1);
  }
}

void TokenData::training_sequence(int64_t index, int32_t* tokens, int32_t* targets) const {
  const int64_t length = sizes().length;
  const int64_t windows = std::max<int64_t>(1, (validation_begin_ - length) / length);
  const int64_t places = validation_begin_ - windows * length;  // where the first window may begin
  const int64_t epoch = index / windows;
  const PhiloxBlock draw = philox(seed_, static_cast<uint64_t>(RandomStream::data), static_cast<uint64_t>(epoch));
  const uint64_t key = uint64_t{draw.words[0]} << 32 | draw.words[1];
  const uint64_t place = (uint64_t{draw.words[2]} << 32 | draw.words[3]) % static_cast<uint64_t>(places);
  const uint64_t shuffled = permute(static_cast<uint64_t>(index % windows), static_cast<uint64_t>(windows), key);
  window(static_cast<int64_t>(place) + static_cast<int64_t>(shuffled) * length, tokens, targets);
}

int64_t TokenData::validation_sequences() const {
  const int64_t windows = (tokens_ - validation_begin_ - 1) / sizes().length;
  return std::min(windows, sizes().validation_batches * sizes().batch);
}

void TokenData::validation_sequence(int64_t index, int32_t* tokens, int32_t* targets) const {
  const int64_t windows = (tokens_ - validation_begin_ - 1) / sizes().length;
  window(validation_begin_ + index * windows / validation_sequences() * sizes().length, tokens, targets);
}

}  // namespace heddle
