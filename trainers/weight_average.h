// The moving average of the weights.                                                    docs/training.md#weight-average
#pragma once

#include <cstdint>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/io/safetensors.h"

namespace heddle {

// An exponential moving average of the masters, in their dtype: the optimizer's kernels write
//   average = d average + (1 - d) master,   d = min(decay, (1 + t) / (10 + t))
// after update t, counted from 1. Early averages so hold little of the random weights that training began with. Source:
// tf.train.ExponentialMovingAverage with num_updates.
class WeightAverage {
 public:
  // The parameters must have their memory, and outlive this. The average starts as the masters, counted as optimizer
  // memory.
  WeightAverage(Context& context, ParameterSet& parameters, double decay);

  // The factor d of update number `step`.
  double decay(int64_t step) const;
  // As long as the masters, in their order.
  const Tensor& flat() const { return average_; }
  // Sets the average to the masters.
  void restart();
  // The average by parameter, "NAME": views of the flat buffer.
  std::vector<NamedTensor> tensors() const;

  // Exchanges the average and the masters, and writes the compute copies anew.
  void exchange();

 private:
  Context& context_;
  ParameterSet& parameters_;
  double decay_;
  Tensor average_;
};

// Writes the copies that layers compute with anew from the masters, where there are copies.
void write_compute_copies(Context& context, const ParameterSet& parameters);

// Calls work() while the parameters are the averaged ones: for an evaluation or a sample. Then the parameters and the
// average are as before, bit for bit, also when work() throws. Without an average the parameters are what they are.
template <class Work>
auto with_averaged_weights(WeightAverage* average, const Work& work) {
  if (average == nullptr) return work();
  average->exchange();
  try {
    auto result = work();
    average->exchange();
    return result;
  } catch (...) {
    average->exchange();
    throw;
  }
}

}  // namespace heddle
