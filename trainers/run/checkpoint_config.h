// The config of a checkpoint, as this version of heddle reads it.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "trainers/data/dataset.h"
#include "trainers/run/checkpoint.h"
#include "trainers/train_config.h"

namespace heddle {

// `overrides` are those of --set. Throws ConfigError, whose place is in "config of PATH" or in an override.
TrainConfig read_checkpoint_config(const Checkpoint& checkpoint, std::span<const std::string> overrides = {},
                                   const Registry& registry = built_in_registry());

// Those of its checkpoints that a run keeps.
KeptCheckpoints kept_checkpoints(const TrainerConfig& trainer);

// How much data the run of a checkpoint has used. Checkpoints of earlier versions do not say it; then it follows from
// their step and their config, or from `config` when theirs cannot be read.
TrainedOn trained_on(const Checkpoint& checkpoint, const TrainConfig& config, const Registry& registry);

// Says which values differ between `config` and the config of the checkpoint: "optimizer.lr is 0.01, the checkpoint's
// 0.003; trainer.steps is 50, the checkpoint's 40"; "" when they are equal. Values are compared, not texts: the order
// of keys, how a number is written, and whether a default is written out make no difference. Neither does the name of
// the tokenizer's file, where `tokenizer` is that of the checkpoint. Throws as above.
std::string config_difference(const TrainConfig& config, const Checkpoint& checkpoint, const Registry& registry,
                              const std::optional<TokenizerIdentity>& tokenizer = {});

// Whether losses of the run of the checkpoint can be compared with those of `config` on these data: both are of the
// same sequences. A config of the checkpoint that cannot be read is taken for one that evaluates them alike.
bool is_evaluated_alike(const TrainConfig& config, const Dataset& data, const Checkpoint& checkpoint,
                        const Registry& registry);

}  // namespace heddle
