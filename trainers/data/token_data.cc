#include "trainers/data/token_data.h"

#include <fmt/format.h>
#include <glob.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string_view>
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

// Extends the identity as if `file` followed the files it already covers.
void extend(DataIdentity& identity, std::string_view file) {
  FileDigest digest{.crc32 = identity.crc32};
  unsigned char size[8];
  for (size_t i = 0; i < sizeof(size); ++i) size[i] = static_cast<unsigned char>(uint64_t{file.size()} >> 8 * i);
  extend(digest, size, sizeof(size));
  extend(digest, file.data(), file.size());
  identity = {identity.files + 1, identity.bytes + file.size(), digest.crc32};
}

std::string read_all(const DatasetOptions& options, DataIdentity& identity) {
  const std::vector<std::string> files = find_files(options.data.path);
  if (files.empty()) {
    options.section.fail("path", fmt::format("found no file '{}' (looked in {})", options.data.path,
                                             std::filesystem::current_path().string()));
  }
  std::string bytes;
  for (const std::string& file : files) {
    const size_t before = bytes.size();
    try {
      bytes += read_file(file);
    } catch (const Error& error) {
      options.section.fail("path", error.what());
    }
    if (bytes.size() == before) options.section.fail("path", fmt::format("{} is empty", file));
    extend(identity, std::string_view(bytes).substr(before));
  }
  return bytes;
}

}  // namespace

TokenData::TokenData(const DatasetOptions& options)
    : Dataset(sizes_of(options)),
      bytes_(read_all(options, identity_)),
      width_(width_of(options.data)),
      seed_(options.seed) {
  const int64_t bytes = static_cast<int64_t>(bytes_.size());
  if (bytes % width_ != 0) {
    options.section.fail("path", fmt::format("{} has {} bytes, which is no whole number of tokens of {} bytes",
                                             options.data.path, bytes, width_));
  }
  tokens_ = bytes / width_;
  validation_begin_ = tokens_ - static_cast<int64_t>(static_cast<double>(tokens_) * options.data.validation_fraction);
  const int64_t needed = sizes().length + 1;
  const auto check_part = [&](const char* part, int64_t count) {
    if (count >= needed) return;
    options.section.fail(
        "path", fmt::format("{} has {} tokens, of which {} for {}; expected at least trainer.sequence_length + 1 "
                            "= {} there",
                            options.data.path, tokens_, count, part, needed));
  };
  check_part("training", validation_begin_);
  check_part("validation", tokens_ - validation_begin_);
  if (width_ > 1) check_ids(options);
}

void TokenData::check_ids(const DatasetOptions& options) const {
  for (int64_t i = 0; i < tokens_; ++i) {
    // uint32 ids above the range of int32 come out negative.
    if (token(i) >= 0 && token(i) < options.vocab_size) continue;
    options.section.fail(
        "path", fmt::format("{}: token {} is {}, expected less than model.vocab_size ({})", options.data.path, i,
                            static_cast<uint32_t>(token(i)), options.vocab_size));
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
  const std::optional<int64_t> batches = sizes().validation_batches;
  return batches && *batches <= windows / sizes().batch ? *batches * sizes().batch : windows;
}

void TokenData::validation_sequence(int64_t index, int32_t* tokens, int32_t* targets) const {
  const int64_t windows = (tokens_ - validation_begin_ - 1) / sizes().length;
  window(validation_begin_ + index * windows / validation_sequences() * sizes().length, tokens, targets);
}

}  // namespace heddle
