#include "trainers/run/run_tokenizer.h"

#include <fmt/format.h>

#include <system_error>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/runtime/error.h"
#include "trainers/data/find_files.h"
#include "trainers/run/checkpoint_config.h"
#include "trainers/shell_argument.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;

bool is_file(const std::optional<std::string>& tokenizer) { return tokenizer && *tokenizer != kByteTokenizer; }

// The path of the file; nothing where there is none.
std::optional<std::string> found(const std::string& path) {
  try {
    return find_file(path);
  } catch (const Error&) {
    return std::nullopt;
  }
}

// Says which two tokenizers are not the same.
std::string difference(const fs::path& weights, const std::string& now, const TokenizerIdentity& then) {
  return fmt::format("the tokenizer is not that of {}: now {}, then {}", weights.string(), now, to_string(then));
}

}  // namespace

std::optional<fs::path> kept_tokenizer(const fs::path& run_or_checkpoint) {
  constexpr const char* kCheckpoints = "checkpoints";
  std::error_code unknown;
  // As it is named, and behind all links: `checkpoints` may be a link, and so may a checkpoint.
  for (fs::path place :
       {fs::absolute(run_or_checkpoint).lexically_normal(), fs::weakly_canonical(run_or_checkpoint, unknown)}) {
    if (!place.has_filename()) place = place.parent_path();
    std::vector<fs::path> folders = {place};
    if (place.filename() == kCheckpoints) folders.push_back(place.parent_path());
    if (place.parent_path().filename() == kCheckpoints) folders.push_back(place.parent_path().parent_path());
    for (const fs::path& folder : folders) {
      if (fs::is_regular_file(folder / kTokenizerFile, unknown)) return folder / kTokenizerFile;
    }
  }
  return std::nullopt;
}

std::optional<TokenizerIdentity> tokenizer_identity(const DataConfig& data, const Tokenizer* tokenizer) {
  if (tokenizer == nullptr || !tokenizer->file()) return std::nullopt;
  TokenizerIdentity identity{.name = *data.tokenizer, .digest = {}};
  extend(identity.digest, tokenizer->model().data(), tokenizer->model().size());
  return identity;
}

std::string to_string(const TokenizerIdentity& tokenizer) {
  return fmt::format("{} ({} bytes, crc32 {:08x})", tokenizer.name, tokenizer.digest.bytes, tokenizer.digest.crc32);
}

bool is_same(const std::optional<TokenizerIdentity>& a, const std::optional<TokenizerIdentity>& b) {
  return a && b && a->digest == b->digest;
}

std::string tokenizer_difference(const DataConfig& data, const Tokenizer* tokenizer, const fs::path& weights,
                                 const std::optional<TokenizerIdentity>& then) {
  const std::optional<TokenizerIdentity> now = tokenizer_identity(data, tokenizer);
  if (tokenizer == nullptr || !then || is_same(now, then)) return "";
  return difference(weights, now ? to_string(*now) : kByteTokenizer, *then);
}

void check_tokenizer(const DataConfig& data, const Tokenizer* tokenizer, const Checkpoint& checkpoint) {
  const std::string found = tokenizer_difference(data, tokenizer, checkpoint.path, checkpoint.state.tokenizer);
  if (found.empty()) return;
  const auto copy = kept_tokenizer(checkpoint.path);
  throw UsageError(
      fmt::format("{}. {}, or start a new run from these weights by --init-from {}", found,
                  copy ? "Go on with the copy that the run keeps by " + shell_set("data.tokenizer", copy->string())
                       : "Go on with that one",
                  shell_argument(checkpoint.path.string())));
}

DatasetOptions training_data(const TrainConfig& config, const fs::path& folder, const std::string& resume,
                             const fs::path& init_from) {
  DatasetOptions options = dataset_options(config);
  std::optional<std::string>& tokenizer = options.data.tokenizer;
  if (!is_file(tokenizer) || found(*tokenizer)) return options;
  for (const fs::path& run : {folder, fs::path(resume), init_from}) {
    const auto copy = run.empty() ? std::nullopt : kept_tokenizer(run);
    if (!copy) continue;
    tokenizer = copy->string();
    break;
  }
  return options;
}

std::optional<std::string> tokenizer_of_run(const TrainConfig& config, const Checkpoint& checkpoint,
                                            const Registry& registry) {
  std::optional<std::string> tokenizer = config.data.tokenizer;
  const bool is_given = tokenizer != read_checkpoint_config(checkpoint, {}, registry).data.tokenizer;
  if (!is_given && is_file(tokenizer)) {
    if (const auto copy = kept_tokenizer(checkpoint.path)) tokenizer = copy->string();
  }
  const std::optional<TokenizerIdentity>& then = checkpoint.state.tokenizer;
  if (!tokenizer || !then) return tokenizer;
  std::string now = *tokenizer;
  if (is_file(tokenizer)) {
    const auto file = found(*tokenizer);
    if (!file) return tokenizer;
    const FileDigest digest = digest_file(*file);
    if (digest == then->digest) return tokenizer;
    now = to_string(TokenizerIdentity{*tokenizer, digest});
  }
  const std::string reason = difference(checkpoint.path, now, *then);
  if (is_given) throw UsageError("--set data.tokenizer: " + reason);
  throw Error(reason);
}

}  // namespace heddle
