// The section `trainer.parallel` of a training config.                                 docs/config.md#trainerparallel
#pragma once

#include <cstdint>
#include <optional>

namespace heddle {

class ConfigFields;
struct TrainConfig;

// How several processes share the work. What is computed does not depend on it.
struct ParallelConfig {
  std::optional<std::int64_t> data;  // how many processes must be there; none: as many as were started
  bool shard_optimizer = true;       // each process keeps a part of the optimizer's state, instead of all of it
};

void describe(ConfigFields& fields, ParallelConfig& parallel);

// Throws ConfigError when this number of processes cannot train the config: trainer.batch_size is no multiple of it, or
// trainer.parallel.data asks for another one.
void check_processes(const TrainConfig& config, int processes);

}  // namespace heddle
