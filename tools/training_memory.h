// What the memory of a training step is for, and what fits.                                        docs/memory.md
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tools/memory_report.h"
#include "trainers/step_memory.h"
#include "trainers/train_config.h"

namespace heddle {

// The peak with a batch size and a sequence length in place of the config's.
struct GridPeak {
  int64_t batch_size = 0;
  int64_t sequence_length = 0;
  StepPeak peak;
};
// The largest value of a setting with which the step fits, found by search: the next larger one does not.
struct LargestFit {
  int64_t value = 0;  // 0: not even 1 fits
  StepPeak peak;      // with it
  int64_t next = 0;   // the next larger value; 0: there is none, a config may have no more
  StepPeak above;     // with that
};
// A change of the config that saves memory, and what it brings.
struct MemorySaving {
  std::string change;     // "trainer.dtype=bfloat16"
  size_t peak_bytes = 0;  // allocated, with the batch of the config
  LargestFit batch_size;
};
struct MemoryFit {
  size_t limit_bytes = 0;
  LargestFit batch_size;                      // at the config's length
  std::optional<LargestFit> sequence_length;  // at the config's batch size; none when its layers know one length only
  std::vector<MemorySaving> savings;
};

// All that `heddle memory` says of a config.
struct TrainingMemory {
  MemoryReport report;  // of two steps; parameters, gradients and moments are counted for the layers they belong to
  DType dtype = DType::float32;
  int64_t parameters = 0;  // numbers
  int processes = 1;       // that train together: all bytes are those of the first one
  int64_t batch_size = 0;  // of all of them
  int64_t sequence_length = 0;
  LayerBytes kept;       // what each layer keeps from its forward pass until its backward pass
  std::string snapshot;  // after the steps: core/io/memory_snapshot.h
  std::vector<GridPeak> grid;
  std::optional<MemoryFit> fit;
};

// How many processes train the config together. Several are counted on meta: the first of them, without the others.
struct CountedProcesses {
  int count = 1;
};

// Takes two steps of the config on the device, without data. `grid` and `fit` stay empty.
TrainingMemory measure_training(const Device& device, const TrainConfig& config, int threads = 0,
                                const CountedProcesses& processes = {});

// For every batch size with every length; an empty list stands for the config's own value. Throws UsageError, which
// names the options of `heddle memory`, for steps of more bytes than can be counted.
std::vector<GridPeak> peak_grid(const TrainConfig& config, const std::vector<int64_t>& batch_sizes,
                                const std::vector<int64_t>& lengths, const CountedProcesses& processes = {});

// What fits when the allocator may take `limit_bytes` from the device. Each answer is a step on meta with this limit.
// Throws UsageError for more than 1 PiB.
MemoryFit find_fit(const TrainConfig& config, size_t limit_bytes, const CountedProcesses& processes = {});

}  // namespace heddle
