// Which part of the flat buffers each process updates.                                   docs/distributed.md#sharding
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/io/safetensors.h"
#include "trainers/optimizer_config.h"

namespace heddle {

// A part of a flat buffer: the elements begin .. end - 1.
struct FlatRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};
// What both have in common; empty, and begin is that of one of them, when there is nothing.
FlatRange intersection(const FlatRange& a, const FlatRange& b);

// processes + 1 places of the flat buffers, multiples of ParameterSet::kAlignment: process r updates [bounds[r],
// bounds[r + 1]). The parts are equal, except that a matrix that the optimizer orthogonalizes belongs to one process
// whole. The parameters were materialized for as many parts.
std::vector<int64_t> shard_bounds(const ParameterSet& parameters, const OptimizerConfig& config, int processes);

// The bounds within a range, counted from its beginning.
std::vector<int64_t> bounds_within(std::span<const int64_t> bounds, const FlatRange& range);

// A tensor of which each process may have a part.
struct ShardedTensor {
  std::string name;
  Shape shape;
  DType dtype = DType::float32;
  std::vector<int64_t> bounds;  // by process, in elements of the tensor; empty: each process has all of it
  int64_t begin = 0;            // of the part of this process
  Tensor part;                  // of one dimension; undefined where this process has none of it

  bool is_whole() const { return bounds.empty(); }
};

// The tensors of a process that has all of each. Throws Error when it has not.
std::vector<NamedTensor> whole_tensors(std::span<const ShardedTensor> tensors);

}  // namespace heddle
