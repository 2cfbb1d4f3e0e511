#include "trainers/parallel/data_parallel.h"

#include <cstddef>

#include "core/runtime/error.h"
#include "core/tensor/transfer.h"

namespace heddle {

DataParallel::DataParallel(Context& context, ParameterSet& parameters, const OptimizerConfig& optimizer,
                           Processes& processes, bool shard_optimizer)
    : context_(context),
      parameters_(parameters),
      processes_(processes),
      bounds_(shard_optimizer ? shard_bounds(parameters, optimizer, processes.count()) : std::vector<int64_t>{}),
      gradients_(context, parameters, processes.communicator(), {.bounds = bounds_}) {}

void DataParallel::gather(const Tensor& values, const std::vector<int64_t>& bounds) {
  processes_.communicator().all_gather(values, bounds, context_.stream());
}

void DataParallel::gather_rows(const Tensor& numbers) {
  gather(numbers.reshape({numbers.numel()}), equal_bounds(numbers.numel(), count()));
}

void DataParallel::gather_values() {
  if (is_sharded()) gather(parameters_.value(), bounds_);
}

FlatRange updated_range(const DataParallel* parallel, const ParameterSet& parameters) {
  check(parameters.master().defined(), "the parameters have no memory yet: materialize() comes first");
  if (parallel == nullptr || !parallel->is_sharded()) return {0, parameters.master().numel()};
  const auto rank = static_cast<size_t>(parallel->rank());
  return {parallel->bounds()[rank], parallel->bounds()[rank + 1]};
}

ShardedTensor part_of_parameter(const DataParallel* parallel, const ParameterSet& parameters, size_t index,
                                const std::string& name, const Tensor& flat, int64_t begin_in_flat) {
  const Shape& shape = parameters.all()[index].shape;
  const FlatRange range{parameters.offset(index), parameters.offset(index) + numel(shape)};
  const FlatRange mine = intersection(range, updated_range(parallel, parameters));
  ShardedTensor tensor;
  tensor.name = name;
  tensor.shape = shape;
  tensor.dtype = flat.dtype();
  tensor.begin = mine.begin - range.begin;
  if (parallel != nullptr && parallel->is_sharded()) tensor.bounds = bounds_within(parallel->bounds(), range);
  if (mine.size() > 0 || tensor.is_whole()) tensor.part = flat.slice(0, begin_in_flat, begin_in_flat + mine.size());
  return tensor;
}

}  // namespace heddle
