#include "trainers/parallel/parallel_config.h"

#include <fmt/format.h>

#include "core/config/config_fields.h"
#include "trainers/train_config.h"

namespace heddle {

void describe(ConfigFields& fields, ParallelConfig& parallel) {
  fields.number_or_word("data", parallel.data, "auto", Range::positive());
  fields.field("shard_optimizer", parallel.shard_optimizer);
}

void check_processes(const TrainConfig& config, int processes) {
  const ConfigNode trainer = config.node.section("trainer");
  if (const auto& parallel = config.trainer.parallel; parallel && parallel->data && *parallel->data != processes) {
    trainer.section("parallel")
        .fail("data", fmt::format("found {}, but the number of processes is {}", *parallel->data, processes));
  }
  if (config.trainer.batch_size % processes == 0) return;
  trainer.fail("batch_size",
               fmt::format("found {}, expected a multiple of {}, the number of processes: it is the batch "
                           "of all of them",
                           config.trainer.batch_size, processes));
}

}  // namespace heddle
