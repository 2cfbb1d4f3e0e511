#include "trainers/run/init_weights.h"

#include <fmt/format.h>

#include <optional>

#include "core/io/atomic_file.h"
#include "trainers/run/model_folder.h"
#include "trainers/run/run_tokenizer.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;

std::optional<TokenizerIdentity> tokenizer_of_model(const fs::path& folder) {
  const fs::path file = folder / kTokenizerFile;
  if (!fs::is_regular_file(file)) return std::nullopt;
  return TokenizerIdentity{file.string(), digest_file(file)};
}

// Such a start may be meant, since the blocks learn less of the tokens than embedding and head do.
void note_other_tokenizer(const RunSubject& subject, const fs::path& weights,
                          const std::optional<TokenizerIdentity>& then, const Note& note) {
  const std::string difference = tokenizer_difference(subject.config.data, subject.tokenizer, weights, then);
  if (!difference.empty()) note(difference + ": embedding and head have learned other tokens");
}

}  // namespace

std::string init_weights(Context& context, const fs::path& path, const RunSubject& subject, ParameterSet& parameters,
                         const Note& note) {
  if (is_model_folder(path)) {
    read_weights(context, path, subject.config.model, parameters);
    note_other_tokenizer(subject, path, tokenizer_of_model(path), note);
    return fmt::format("those of {}", path.string());
  }
  const Checkpoint checkpoint = find_checkpoint(path, note);
  load_evaluated_parameters(context, checkpoint, parameters);
  note_other_tokenizer(subject, checkpoint.path, checkpoint.state.tokenizer, note);
  return fmt::format("{} {}", has_average(checkpoint) ? "the average of" : "those of", checkpoint.path.string());
}

}  // namespace heddle
