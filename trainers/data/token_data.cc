#include "trainers/data/token_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/io/file_identity.h"
#include "core/runtime/error.h"
#include "trainers/data/permutation.h"

namespace heddle {
namespace {

// What is wrong with the files is an error at the key that names them.
TokenFiles open_files(const DatasetOptions& options, const std::string& key, const std::string& path,
                      const Tokenizer* tokenizer) {
  try {
    return TokenFiles(path, options.data, options.vocab_size, tokenizer);
  } catch (const Error& error) {
    options.section.fail(key, error.what());
  }
}

std::shared_ptr<const Tokenizer> open_tokenizer(const DatasetOptions& options) {
  try {
    return tokenizer_of(options.data, options.vocab_size);
  } catch (const Error& error) {
    options.section.fail("tokenizer", error.what());
  }
}

// data.path is one source, of all sequences.
std::vector<DataSource> sources_of(const DataConfig& data) {
  return data.sources.empty() ? std::vector{DataSource{data.path, 1.0}} : data.sources;
}

// The key that names the files of sources.
const char* key_of(const DataConfig& data) { return data.sources.empty() ? "path" : "sources"; }

void refuse_shared_files(const DatasetOptions& options, const std::vector<std::unique_ptr<TokenFiles>>& sources,
                         const TokenFiles& validation) {
  std::map<FileIdentity, const TokenFiles*> trained;
  for (const auto& source : sources) {
    for (const MappedFile& file : source->files()) {
      if (trained.try_emplace(file_identity(file.path()), source.get()).first->second == source.get()) continue;
      options.section.fail("sources", fmt::format("{} is a file of two sources", file.path().string()));
    }
  }
  for (const MappedFile& file : validation.files()) {
    if (!trained.contains(file_identity(file.path()))) continue;
    options.section.fail("validation_path",
                         fmt::format("{} is a file of data.{}, too", file.path().string(), key_of(options.data)));
  }
}

// The philox stream of the windows of a source. 1 and 2 are the substreams of generated data.
uint64_t windows_stream(size_t source) {
  const uint64_t substream = source == 0 ? 0 : source + 2;
  return static_cast<uint64_t>(RandomStream::data) | substream << 32;
}

}  // namespace

TokenData::TokenData(const DatasetOptions& options)
    : Dataset(sizes_of(options)),
      tokenizer_(open_tokenizer(options)),
      odds_(source_odds(sources_of(options.data))),
      is_text_(is_bytes_of_text(options.data)),
      seed_(options.seed) {
  open(options);
  split(options);
  check_parts(options);
  share_validation(options);
}

void TokenData::open(const DatasetOptions& options) {
  const DataConfig& data = options.data;
  if (data.validation_path) {
    validation_files_ = open_files(options, "validation_path", *data.validation_path, tokenizer_.get());
  }
  if (!data.validation_path || !options.evaluation_only) {
    for (const DataSource& source : sources_of(data)) {
      sources_.push_back(
          std::make_unique<TokenFiles>(open_files(options, key_of(data), source.path, tokenizer_.get())));
    }
  }
  refuse_shared_files(options, sources_, validation_files_);
}

void TokenData::split(const DatasetOptions& options) {
  const double fraction = options.evaluation_only ? 1.0 : options.data.validation_fraction;
  const bool has_files = options.data.validation_path.has_value();
  for (const auto& source : sources_) {
    const int64_t tokens = source->size();
    const int64_t kept = has_files ? 0 : static_cast<int64_t>(static_cast<double>(tokens) * fraction);
    training_.push_back({source.get(), 0, tokens - kept});
    if (!has_files) validation_.push_back({.part = {source.get(), tokens - kept, tokens}});
  }
  if (has_files) validation_.push_back({.part = {&validation_files_, 0, validation_files_.size()}});
}

void TokenData::check_parts(const DatasetOptions& options) const {
  const DataConfig& data = options.data;
  const int64_t window = sizes().length + 1;
  const bool is_split = !data.validation_path && !options.evaluation_only;
  const std::vector<DataSource> sources = sources_of(data);
  const auto check_share = [&](const std::string& path, const Part& part, const char* name) {
    if (part.tokens() >= window) return;
    const std::string share = is_split ? fmt::format(", of which {} for {}", part.tokens(), name) : "";
    options.section.fail(key_of(data),
                         fmt::format("{} has {} tokens{}; expected at least trainer.sequence_length + 1 = {}{}", path,
                                     part.files->size(), share, window, is_split ? " there" : ""));
  };
  for (size_t i = 0; i < training_.size() && !options.evaluation_only; ++i) {
    check_share(sources[i].path, training_[i], "training");
    if (is_split) check_share(sources[i].path, validation_[i].part, "validation");
  }
  for (size_t i = 0; i < validation_.size() && !is_split; ++i) {
    if (validation_[i].part.tokens() >= 2) continue;
    options.section.fail(data.validation_path ? "validation_path" : key_of(data),
                         fmt::format("{} has one token, expected at least two: one to read and one to predict",
                                     data.validation_path.value_or(sources[i].path)));
  }
}

// Of E sequences a source gets those from floor(E W) to floor(E W'), where W and W' are the shares of the sources
// before it, without and with its own; no more than it has.
void TokenData::share_validation(const DatasetOptions& options) {
  const std::vector<DataSource> sources = sources_of(options.data);
  const bool is_shared = validation_.size() > 1;
  double total = 0.0, before = 0.0;
  for (const DataSource& source : sources) total += source.weight;
  int64_t sequences = 0, given = 0;
  for (size_t i = 0; i < validation_.size(); ++i) {
    std::optional<int64_t> most = sizes().validation_sequences;
    if (most && is_shared) {
      before += sources[i].weight;
      const bool is_last = i + 1 == validation_.size();
      const auto until = is_last ? *most : static_cast<int64_t>(static_cast<double>(*most) * (before / total));
      most = until - std::exchange(given, until);
    }
    Validation& validation = validation_[i];
    validation.begin_sequence = sequences;
    sequences += sequences_of(validation.part, most);
    validation.end_sequence = sequences;
  }
}

int64_t TokenData::sequences_of(const Part& part, std::optional<int64_t> most) const {
  const int64_t whole = part.whole_windows(sizes().length);
  if (most && *most <= whole) return *most;
  const bool has_rest = (part.tokens() - 1) % sizes().length != 0;
  return whole + (has_rest ? 1 : 0);
}

DataIdentity TokenData::identity() const {
  std::call_once(is_identified_, [&] {
    std::vector<std::span<const MappedFile>> groups;
    for (const auto& source : sources_) groups.emplace_back(source->files());
    if (groups.empty()) groups.emplace_back();
    groups.emplace_back(validation_files_.files());
    std::vector<MappedFile> models;
    if (tokenizer_ && tokenizer_->file()) models.emplace_back(*tokenizer_->file());
    groups.emplace_back(models);
    identity_ = identify(groups);
  });
  return identity_;
}

void TokenData::Part::window(int64_t first, int64_t length, int32_t* tokens, int32_t* targets) const {
  const int64_t place = begin + first, count = std::min(length, end - 1 - place);
  files->read(place, count, tokens);
  files->read(place + 1, count, targets);
}

void TokenData::training_sequence(int64_t index, int32_t* tokens, int32_t* targets) const {
  check(!training_.empty() && training_[0].tokens() > 0, "a data set for evaluation alone has no training batches");
  const SourceSequence sequence = source_of(index, odds_);
  const Part& part = training_[sequence.source];
  const int64_t length = sizes().length;
  const int64_t windows = std::max<int64_t>(1, (part.tokens() - length) / length);
  const int64_t places = part.tokens() - windows * length;  // where the first window may begin
  const int64_t epoch = sequence.index / windows;
  const PhiloxBlock draw = philox(seed_, windows_stream(sequence.source), static_cast<uint64_t>(epoch));
  const uint64_t key = uint64_t{draw.words[0]} << 32 | draw.words[1];
  const uint64_t place = (uint64_t{draw.words[2]} << 32 | draw.words[3]) % static_cast<uint64_t>(places);
  const uint64_t shuffled =
      permute(static_cast<uint64_t>(sequence.index % windows), static_cast<uint64_t>(windows), key);
  part.window(static_cast<int64_t>(place) + static_cast<int64_t>(shuffled) * length, length, tokens, targets);
}

void TokenData::validation_sequence(int64_t index, int32_t* tokens, int32_t* targets) const {
  const auto validation = std::find_if(validation_.begin(), validation_.end(),
                                       [&](const Validation& one) { return index < one.end_sequence; });
  const int64_t sequences = validation->end_sequence - validation->begin_sequence, length = sizes().length;
  const int64_t windows = std::max(validation->part.whole_windows(length), sequences);
  const int64_t window = (index - validation->begin_sequence) * windows / sequences;
  validation->part.window(window * length, length, tokens, targets);
}

}  // namespace heddle
