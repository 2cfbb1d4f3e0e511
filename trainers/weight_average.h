// The moving average of the weights.                                                    docs/training.md#weight-average
#pragma once

#include <cstdint>
#include <vector>

#include "core/autograd/parameter.h"
#include "trainers/parallel/data_parallel.h"

namespace heddle {

// An exponential moving average of the masters, in their dtype: the optimizer's kernels write
//   average = d average + (1 - d) master,   d = min(decay, (1 + t) / (10 + t))
// after update t, counted from 1. Early averages so hold little of the random weights that training began with. Source:
// tf.train.ExponentialMovingAverage with num_updates.
class WeightAverage {
 public:
  // The parameters must have their memory, and outlive this. The average starts as the masters, counted as optimizer
  // memory. Of several processes that share the optimizer's state each keeps the average of what it updates.
  WeightAverage(Context& context, ParameterSet& parameters, double decay, DataParallel* parallel = nullptr);

  // The factor d of update number `step`.
  double decay(int64_t step) const;
  // That of the masters that this process updates, in their order.
  const Tensor& flat() const { return average_; }
  // Sets the average to the masters.
  void restart();
  // The average by parameter, "NAME": views of the flat buffer.
  std::vector<ShardedTensor> parts() const;
  // The same of a process that keeps all of it.
  std::vector<NamedTensor> tensors() const { return whole_tensors(parts()); }

  // Exchanges the average and the masters, and writes the compute copies anew. Collective where the state is shared.
  void exchange();
  // Whether exchange() is collective.
  bool is_shared() const { return parallel_ != nullptr && parallel_->is_sharded(); }

 private:
  Context& context_;
  ParameterSet& parameters_;
  double decay_;
  DataParallel* parallel_;
  FlatRange range_;  // of the masters
  Tensor average_;
};

// Writes the copies that layers compute with anew from the masters, where there are copies.
void write_compute_copies(Context& context, const ParameterSet& parameters);
void write_compute_copies(Context& context, const ParameterSet& parameters, const FlatRange& range);

// Calls work() while the parameters are the averaged ones: for an evaluation or a sample. Then the parameters and the
// average are as before, bit for bit, also when work() throws. Without an average the parameters are what they are.
// Where the state is shared this is collective, and after an exception the weights stay averaged: the other processes
// may be elsewhere.
template <class Work>
auto with_averaged_weights(WeightAverage* average, const Work& work) {
  if (average == nullptr) return work();
  average->exchange();
  try {
    auto result = work();
    average->exchange();
    return result;
  } catch (...) {
    if (!average->is_shared()) average->exchange();
    throw;
  }
}

}  // namespace heddle
