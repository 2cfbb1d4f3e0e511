// What loggers hear of a run before its first step.
#pragma once

#include "core/runtime/context.h"
#include "trainers/logging/logger.h"
#include "trainers/train_config.h"

namespace heddle {

// The event with what follows from the config and the device; the rest is that of a run that starts from the beginning.
StartEvent start_event(const Context& context, const TrainConfig& config);

}  // namespace heddle
