// The config of a checkpoint, as this version of heddle reads it.
#pragma once

#include <span>
#include <string>

#include "trainers/run/checkpoint.h"
#include "trainers/train_config.h"

namespace heddle {

// `overrides` are those of --set. Throws ConfigError, whose place is in "config of PATH" or in an override.
TrainConfig read_checkpoint_config(const Checkpoint& checkpoint, std::span<const std::string> overrides = {},
                                   const Registry& registry = built_in_registry());

// Says what differs between `config` and the config of the checkpoint; "" when they are equal. Both are written anew
// before they are compared, so it does not matter which version of heddle wrote the checkpoint. Throws as above.
std::string config_difference(const TrainConfig& config, const Checkpoint& checkpoint, const Registry& registry);

}  // namespace heddle
