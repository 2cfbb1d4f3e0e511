#include "trainers/logging/logging_config.h"

#include "core/config/config_fields.h"

namespace heddle {

void describe(ConfigFields& fields, LoggingConfig& logging) {
  fields.field("csv", logging.csv);
  fields.field("tensorboard", logging.tensorboard);
  fields.field("jsonl", logging.jsonl);
  fields.field("every", logging.every, Range::positive());
}

}  // namespace heddle
