#include "trainers/step_memory.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/distributed/unconnected.h"
#include "core/runtime/context.h"

namespace heddle {

void take_two_steps(TrainStep& train_step, const TrainConfig& config) {
  const TrainerConfig& trainer = config.trainer;
  const int64_t processes = train_step.parallel() != nullptr ? train_step.parallel()->count() : 1;
  Batch zeros{.size = trainer.batch_size / processes, .length = trainer.sequence_length, .tokens = {}, .targets = {}};
  zeros.tokens.resize(static_cast<size_t>(zeros.size * zeros.length));
  zeros.targets = zeros.tokens;
  if (config.data.pack) zeros.segments = zeros.tokens;
  for (int64_t step = 1; step <= 2; ++step) {
    train_step.step(std::vector<Batch>(static_cast<size_t>(trainer.accumulate), zeros), step, 0.0);
  }
}

std::optional<StepPeak> step_peak(const TrainConfig& config, size_t limit_bytes, int processes) {
  Context context(Device{DeviceType::meta}, {.threads = 1, .allocator = {.limit_bytes = limit_bytes}});
  try {
    const std::unique_ptr<Communicator> communicator = make_pretended_communicator(0, processes);
    Processes others(communicator.get());
    TrainStep train_step(context, config, &others);
    take_two_steps(train_step, config);
  } catch (const OutOfMemory&) {
    if (limit_bytes == 0) throw;  // the batches are more than the host holds
    return {};
  }
  const MemoryStats stats = context.allocator().stats();
  return StepPeak{stats.allocated.peak, stats.reserved.peak};
}

}  // namespace heddle
