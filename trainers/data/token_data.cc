#include "trainers/data/token_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string_view>
#include <vector>

#include "core/runtime/error.h"
#include "trainers/data/permutation.h"

namespace heddle {
namespace {

// What is wrong with the files is an error at the key that names them.
TokenFiles open_files(const DatasetOptions& options, const std::string& key, const std::string& path) {
  try {
    return TokenFiles(path, options.data, options.vocab_size);
  } catch (const Error& error) {
    options.section.fail(key, error.what());
  }
}

}  // namespace

TokenData::TokenData(const DatasetOptions& options)
    : Dataset(sizes_of(options)),
      files_(open_files(options, "path", options.data.path)),
      is_text_(options.data.type == DataType::text),
      seed_(options.seed) {
  const int64_t tokens = files_.size();
  validation_begin_ = tokens - static_cast<int64_t>(static_cast<double>(tokens) * options.data.validation_fraction);
  const int64_t needed = sizes().length + 1;
  const auto check_part = [&](const char* part, int64_t count) {
    if (count >= needed) return;
    options.section.fail(
        "path", fmt::format("{} has {} tokens, of which {} for {}; expected at least trainer.sequence_length + 1 "
                            "= {} there",
                            options.data.path, tokens, count, part, needed));
  };
  check_part("training", validation_begin_);
  check_part("validation", tokens - validation_begin_);
}

void TokenData::window(int64_t begin, int32_t* tokens, int32_t* targets) const {
  files_.read(begin, sizes().length, tokens);
  files_.read(begin + 1, sizes().length, targets);
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
  const int64_t windows = (files_.size() - validation_begin_ - 1) / sizes().length;
  const std::optional<int64_t> batches = sizes().validation_batches;
  return batches && *batches <= windows / sizes().batch ? *batches * sizes().batch : windows;
}

void TokenData::validation_sequence(int64_t index, int32_t* tokens, int32_t* targets) const {
  const int64_t windows = (files_.size() - validation_begin_ - 1) / sizes().length;
  window(validation_begin_ + index * windows / validation_sequences() * sizes().length, tokens, targets);
}

}  // namespace heddle
