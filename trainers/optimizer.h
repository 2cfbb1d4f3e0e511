// AdamW over the flat buffers of a model's parameters.                               docs/training.md#the-step
#pragma once

#include <vector>

#include "core/autograd/parameter.h"
#include "core/io/safetensors.h"
#include "core/runtime/stream.h"
#include "trainers/train_config.h"

namespace heddle {

// A step: set_step(), backward fills the gradients, apply(). All that apply() gives to the device reads what changes
// from step to step from pinned memory, so a captured graph of it can be replayed after the next set_step(). Parameters
// past ParameterSet::decay_end() get no weight decay.
class AdamW {
 public:
  // The parameters must have their memory. The moments start at zero, counted as optimizer memory.
  AdamW(Context& context, ParameterSet& parameters, const OptimizerConfig& config);

  // What step `step` (from 1) needs, on the host; the device must be done with the step before. The gradients are
  // multiplied by `gradient_scale` first.
  void set_step(int64_t step, double learning_rate, double gradient_scale);
  // The norm of the gradients, then moments, masters, and the compute copies of the parameters: unless the norm is not
  // finite, which changes nothing.
  void apply();
  // Of the scaled gradient, before clipping, as apply() found it; the device must be done. NaN on meta.
  double gradient_norm() const;

  // The moments by parameter: "NAME.m" and "NAME.v", views of the flat buffers.
  std::vector<NamedTensor> state() const;

 private:
  Context& context_;
  ParameterSet& parameters_;
  OptimizerConfig config_;
  Tensor m_, v_, scalars_;
  PinnedBuffer staged_;  // the scalars of the step, and behind them what came back
  double gradient_scale_ = 1.0;
};

}  // namespace heddle
