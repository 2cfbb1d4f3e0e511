#include "trainers/parallel/shards.h"

#include <algorithm>
#include <cstddef>

#include "core/runtime/error.h"

namespace heddle {

FlatRange intersection(const FlatRange& a, const FlatRange& b) {
  const int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

std::vector<int64_t> shard_bounds(const ParameterSet& parameters, const OptimizerConfig& config, int processes) {
  const int64_t total = parameters.master().numel(), of_each = total / processes;
  std::vector<FlatRange> matrices;
  size_t index = 0;
  for (const Parameter& parameter : parameters.all()) {
    const int64_t begin = parameters.offset(index++);
    if (!rule_of(parameter, config).is_orthogonalized) continue;
    constexpr int64_t kAlignment = ParameterSet::kAlignment;
    matrices.push_back({begin, begin + (numel(parameter.shape) + kAlignment - 1) / kAlignment * kAlignment});
  }
  std::vector<int64_t> bounds{0};
  for (int64_t rank = 1; rank < processes; ++rank) {
    int64_t bound = rank * of_each;
    for (const FlatRange& matrix : matrices) {
      if (bound <= matrix.begin || bound >= matrix.end) continue;
      bound = bound - matrix.begin < matrix.end - bound ? matrix.begin : matrix.end;
      break;
    }
    bounds.push_back(std::max(bound, bounds.back()));
  }
  bounds.push_back(total);
  return bounds;
}

std::vector<int64_t> bounds_within(std::span<const int64_t> bounds, const FlatRange& range) {
  std::vector<int64_t> within;
  for (const int64_t bound : bounds) within.push_back(std::clamp(bound, range.begin, range.end) - range.begin);
  return within;
}

std::vector<NamedTensor> whole_tensors(std::span<const ShardedTensor> tensors) {
  std::vector<NamedTensor> whole;
  for (const ShardedTensor& tensor : tensors) {
    check(tensor.is_whole(), "{} is shared by {} processes, expected one", tensor.name, tensor.bounds.size() - 1);
    whole.push_back({tensor.name, tensor.part.reshape(tensor.shape)});
  }
  return whole;
}

}  // namespace heddle
