// The section `logging` of a training config: which files tell how the run goes.               docs/config.md#logging
#pragma once

#include <algorithm>
#include <cstdint>

#include "trainers/logging/logger.h"

namespace heddle {

class ConfigFields;

struct LoggingConfig {
  bool csv = true;           // metrics.csv
  bool tensorboard = false;  // events.out.tfevents.*
  bool jsonl = false;        // log.jsonl
  std::int64_t every = 1;    // steps from one that is written to the next

  // Whether the files hold this step: the first, the last, every N-th. It does not depend on where a run was continued.
  bool holds(const StepEvent& event) const {
    return event.step == 1 || event.step == event.steps || event.step % every == 0;
  }
  // The last step up to this one that the files hold, whatever the last of the run is; 0: none.
  std::int64_t last_held(std::int64_t step) const {
    return step < every ? std::min<std::int64_t>(step, 1) : step - step % every;
  }
};

// Reads or writes the section.
void describe(ConfigFields& fields, LoggingConfig& logging);

}  // namespace heddle
