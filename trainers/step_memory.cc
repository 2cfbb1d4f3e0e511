#include "trainers/step_memory.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/distributed/unconnected.h"
#include "core/runtime/checked.h"
#include "core/runtime/context.h"

namespace heddle {

void take_two_steps(TrainStep& train_step, const TrainConfig& config) {
  const TrainerConfig& trainer = config.trainer;
  const int64_t processes = train_step.parallel() != nullptr ? train_step.parallel()->count() : 1;
  Batch zeros{.size = trainer.batch_size / processes, .length = trainer.sequence_length, .tokens = {}, .targets = {}};
  zeros.packed = config.data.pack;
  if (!train_step.context().is_meta()) {
    zeros.tokens.resize(static_cast<size_t>(zeros.size * zeros.length));
    zeros.targets = zeros.tokens;
    if (zeros.packed) zeros.segments = zeros.tokens;
  }
  for (int64_t step = 1; step <= 2; ++step) {
    train_step.step(std::vector<Batch>(static_cast<size_t>(trainer.accumulate), zeros), step, 0.0);
  }
}

// Of more tokens than these the bytes of a step might not be counted.
constexpr int64_t kMostTokens = int64_t{1} << 44;

std::optional<StepPeak> step_peak(const TrainConfig& config, size_t limit_bytes, int processes) {
  const TrainerConfig& trainer = config.trainer;
  const auto tokens = checked_product({trainer.accumulate, trainer.batch_size, trainer.sequence_length});
  if (!tokens || *tokens > kMostTokens) return {};
  const size_t limit = limit_bytes > 0 ? std::min(limit_bytes, kMostCountedBytes) : kMostCountedBytes;
  Context context(Device{DeviceType::meta}, {.threads = 1, .allocator = {.limit_bytes = limit}});
  try {
    const std::unique_ptr<Communicator> communicator = make_pretended_communicator(0, processes);
    Processes others(communicator.get());
    TrainStep train_step(context, config, &others);
    take_two_steps(train_step, config);
  } catch (const OutOfMemory&) {
    return {};
  }
  const MemoryStats stats = context.allocator().stats();
  return StepPeak{stats.allocated.peak, stats.reserved.peak};
}

}  // namespace heddle
