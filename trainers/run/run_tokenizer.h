// The tokenizer of a run: a run on pieces of sentencepiece keeps a copy of their model, RUN/tokenizer.model, and its
// checkpoints say which one it is. docs/training.md#tokenizer
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "trainers/data/tokenizer.h"
#include "trainers/run/checkpoint.h"
#include "trainers/train_config.h"

namespace heddle {

// In a run folder, and in the folder of an exported model.
inline constexpr const char* kTokenizerFile = "tokenizer.model";

// The copy that a run keeps, of a run folder, its folder `checkpoints` or one of its checkpoints; nothing where there
// is none, as in runs of earlier versions.
std::optional<std::filesystem::path> kept_tokenizer(const std::filesystem::path& run_or_checkpoint);

// What tells the tokenizer of these data from others; nothing for bytes and for data without a tokenizer (nullptr).
std::optional<TokenizerIdentity> tokenizer_identity(const DataConfig& data, const Tokenizer* tokenizer);

// "data/kjv.model (230112 bytes, crc32 0089abcd)"
std::string to_string(const TokenizerIdentity& tokenizer);

// Whether both are there and the same file but for its name.
bool is_same(const std::optional<TokenizerIdentity>& a, const std::optional<TokenizerIdentity>& b);

// Names both when `tokenizer` is another one than `then`, that of the weights in this folder; "" when it is not. Data
// without a tokenizer fit, and so do weights that do not say theirs.
std::string tokenizer_difference(const DataConfig& data, const Tokenizer* tokenizer,
                                 const std::filesystem::path& weights, const std::optional<TokenizerIdentity>& then);

// Throws UsageError for that difference from a checkpoint: its weights mean nothing for other tokens.
void check_tokenizer(const DataConfig& data, const Tokenizer* tokenizer, const Checkpoint& checkpoint);

// The options of the data set that is trained on, in the run folder `folder`, as TrainOptions say (trainers/trainer.h).
// A data.tokenizer that is gone is read from the copy of this run, or else of that which it goes on with or starts
// from.
DatasetOptions training_data(const TrainConfig& config, const std::filesystem::path& folder, const std::string& resume,
                             const std::filesystem::path& init_from);

// The value of data.tokenizer with which the model of a checkpoint is used. It is the run's copy, where there is one,
// unless `config`, which is that of the checkpoint with what a user has changed, names another file than that of the
// checkpoint does. Throws UsageError, or Error for the copy itself, when the file is another one than it was in
// training; a file that is gone is left to who opens it.
std::optional<std::string> tokenizer_of_run(const TrainConfig& config, const Checkpoint& checkpoint,
                                            const Registry& registry);

}  // namespace heddle
