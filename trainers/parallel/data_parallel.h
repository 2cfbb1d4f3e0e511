// Training of one model by several processes, each on a part of every batch.                      docs/distributed.md
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/runtime/stream.h"
#include "trainers/optimizer_config.h"
#include "trainers/parallel/gradient_reduction.h"
#include "trainers/parallel/processes.h"
#include "trainers/parallel/shards.h"

namespace heddle {

// What a process knows of its part. There is none of it in a process that is alone.
//
// With sharding this process keeps the optimizer's state, and updates the masters, of one range of the flat buffers. In
// float32 all masters are what the layers compute with, and those of other ranges come from the processes that updated
// them. In 16 bits the compute copies do, and the masters of other ranges are out of date.
class DataParallel {
 public:
  // All must outlive it. The parameters must have their memory, for processes.count() parts.
  DataParallel(Context& context, ParameterSet& parameters, const OptimizerConfig& optimizer, Processes& processes,
               bool shard_optimizer);

  Processes& processes() const { return processes_; }
  int rank() const { return processes_.rank(); }
  int count() const { return processes_.count(); }
  bool is_sharded() const { return !bounds_.empty(); }
  // Of the flat buffers by process; empty without sharding.
  const std::vector<int64_t>& bounds() const { return bounds_; }

  GradientReduction& gradients() { return gradients_; }
  // In place: row r of `numbers` (processes, ...) becomes that of process r.
  void gather_rows(const Tensor& numbers);
  // After an update of this process's range: gives it to the others, and gets theirs. Nothing without sharding.
  void gather_values();
  bool can_be_captured() const { return processes_.communicator().can_be_captured(); }

 private:
  void gather(const Tensor& values, const std::vector<int64_t>& bounds);

  Context& context_;
  ParameterSet& parameters_;
  Processes& processes_;
  std::vector<int64_t> bounds_;
  GradientReduction gradients_;
};

// The range that this process updates: all of it for nullptr and without sharding. Throws Error when the parameters
// have no memory yet.
FlatRange updated_range(const DataParallel* parallel, const ParameterSet& parameters);

// The part of this process of the tensor that belongs to parameter `index`, as its master does. `flat` holds the
// elements of the updated range, or a part of them, of which those of this parameter begin at `begin_in_flat`.
ShardedTensor part_of_parameter(const DataParallel* parallel, const ParameterSet& parameters, size_t index,
                                const std::string& name, const Tensor& flat, int64_t begin_in_flat);

}  // namespace heddle
