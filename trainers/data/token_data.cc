#include "trainers/data/token_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <optional>
#include <set>
#include <string_view>
#include <vector>

#include "core/runtime/error.h"
#include "trainers/data/permutation.h"

namespace heddle {
namespace {

// What is wrong with the files is an error at the key that names them.
TokenFiles open_files(const DatasetOptions& options, const char* key, const std::string& path) {
  try {
    return TokenFiles(path, options.data, options.vocab_size);
  } catch (const Error& error) {
    options.section.fail(key, error.what());
  }
}

void refuse_shared_files(const DatasetOptions& options, const TokenFiles& training, const TokenFiles& validation) {
  std::set<std::filesystem::path> trained;
  for (const MappedFile& file : training.files()) trained.insert(std::filesystem::weakly_canonical(file.path()));
  for (const MappedFile& file : validation.files()) {
    if (!trained.contains(std::filesystem::weakly_canonical(file.path()))) continue;
    options.section.fail("validation_path", fmt::format("{} is a file of data.path, too", file.path().string()));
  }
}

}  // namespace

TokenData::TokenData(const DatasetOptions& options)
    : Dataset(sizes_of(options)), is_text_(options.data.type == DataType::text), seed_(options.seed) {
  const std::optional<std::string>& validation_path = options.data.validation_path;
  if (validation_path) validation_files_ = open_files(options, "validation_path", *validation_path);
  if (!validation_path || !options.evaluation_only) files_ = open_files(options, "path", options.data.path);
  if (validation_path) refuse_shared_files(options, files_, validation_files_);
  split(options);
  check_parts(options);
}

void TokenData::split(const DatasetOptions& options) {
  const int64_t tokens = files_.size();
  const double fraction = options.evaluation_only ? 1.0 : options.data.validation_fraction;
  const int64_t kept = options.data.validation_path ? 0 : static_cast<int64_t>(static_cast<double>(tokens) * fraction);
  training_ = {&files_, 0, tokens - kept};
  validation_ = {&files_, tokens - kept, tokens};
  if (options.data.validation_path) validation_ = {&validation_files_, 0, validation_files_.size()};
}

void TokenData::check_parts(const DatasetOptions& options) const {
  const int64_t window = sizes().length + 1;
  const auto fail = [&](const char* key, const std::string& path, const std::string& found, const char* part) {
    options.section.fail(
        key, fmt::format("{} has {}; expected at least trainer.sequence_length + 1 = {}{}", path, found, window, part));
  };
  const bool is_split = !options.data.validation_path && !options.evaluation_only;
  const auto check_share = [&](const Part& part, const char* name) {
    if (part.tokens() >= window) return;
    fail("path", options.data.path, fmt::format("{} tokens, of which {} for {}", files_.size(), part.tokens(), name),
         " there");
  };
  if (is_split) {
    check_share(training_, "training");
    check_share(validation_, "validation");
    return;
  }
  if (!options.evaluation_only && training_.tokens() < window) {
    fail("path", options.data.path, fmt::format("{} tokens", training_.tokens()), "");
  }
  if (validation_.tokens() >= 2) return;
  options.section.fail(options.data.validation_path ? "validation_path" : "path",
                       fmt::format("{} has one token, expected at least two: one to read and one to predict",
                                   options.data.validation_path.value_or(options.data.path)));
}

DataIdentity TokenData::identity() const {
  std::call_once(is_identified_, [&] { identity_ = identify(files_.files(), validation_files_.files()); });
  return identity_;
}

void TokenData::Part::window(int64_t first, int64_t length, int32_t* tokens, int32_t* targets) const {
  const int64_t place = begin + first, count = std::min(length, end - 1 - place);
  files->read(place, count, tokens);
  files->read(place + 1, count, targets);
}

void TokenData::training_sequence(int64_t index, int32_t* tokens, int32_t* targets) const {
  const int64_t length = sizes().length;
  const int64_t windows = std::max<int64_t>(1, (training_.tokens() - length) / length);
  const int64_t places = training_.tokens() - windows * length;  // where the first window may begin
  check(places > 0, "a data set for evaluation alone has no training batches");
  const int64_t epoch = index / windows;
  const PhiloxBlock draw = philox(seed_, static_cast<uint64_t>(RandomStream::data), static_cast<uint64_t>(epoch));
  const uint64_t key = uint64_t{draw.words[0]} << 32 | draw.words[1];
  const uint64_t place = (uint64_t{draw.words[2]} << 32 | draw.words[3]) % static_cast<uint64_t>(places);
  const uint64_t shuffled = permute(static_cast<uint64_t>(index % windows), static_cast<uint64_t>(windows), key);
  training_.window(static_cast<int64_t>(place) + static_cast<int64_t>(shuffled) * length, length, tokens, targets);
}

int64_t TokenData::validation_sequences() const {
  const int64_t whole = whole_validation_windows();
  if (sizes().validation_sequences && *sizes().validation_sequences <= whole) return *sizes().validation_sequences;
  const bool has_rest = (validation_.tokens() - 1) % sizes().length != 0;
  return whole + (has_rest ? 1 : 0);
}

void TokenData::validation_sequence(int64_t index, int32_t* tokens, int32_t* targets) const {
  const int64_t sequences = validation_sequences(), windows = std::max(whole_validation_windows(), sequences);
  validation_.window(index * windows / sequences * sizes().length, sizes().length, tokens, targets);
}

}  // namespace heddle
