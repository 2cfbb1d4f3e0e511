// AdamW over the flat buffers of a model's parameters.                               docs/training.md#the-step
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/io/safetensors.h"
#include "core/runtime/stream.h"

namespace heddle {

class ConfigFields;

enum class OptimizerType { adamw };

// AdamW with decoupled weight decay.
struct OptimizerConfig {
  OptimizerType type = OptimizerType::adamw;
  double lr = 1e-3;  // the highest learning rate
  std::array<double, 2> betas = {0.9, 0.95};
  double eps = 1e-8;
  double weight_decay = 0.1;
  double clip_norm = 1.0;  // largest norm of all gradients together; 0: no clipping
};

// Reads or writes the section `optimizer` of a training config.
void describe(ConfigFields& fields, OptimizerConfig& optimizer);

// A step is set_step(), then backward, which fills the gradients, then apply(). What changes from step to step is read
// from pinned memory by the work that apply() gives to the device, so a captured graph of that work can be replayed
// after the next set_step(). Parameters past ParameterSet::decay_end() get no weight decay.
class AdamW {
 public:
  // The parameters must have their memory. The moments start at zero, counted as optimizer memory.
  AdamW(Context& context, ParameterSet& parameters, const OptimizerConfig& config);

  // Prepares step number `step` (from 1) on the host; the device must be done with the step before. The gradients are
  // multiplied by `gradient_scale` first.
  void set_step(int64_t step, double learning_rate, double gradient_scale);
  // Computes the norm of the gradients, then updates the moments, the masters and the compute copies of the parameters.
  // A norm that is not finite changes none of them, nor does one of `losses`: numbers on the device, (n) of the dtype
  // of the masters, or undefined.
  void apply(const Tensor& losses = {});
  // The norm of the scaled gradient before clipping, as apply() found it; the device must be done. Not finite when
  // apply() changed nothing. NaN on meta.
  double gradient_norm() const;

  // The moments by parameter: "NAME.m" and "NAME.v", views of the flat buffers.
  std::vector<NamedTensor> state() const;

 private:
  Context& context_;
  ParameterSet& parameters_;
  OptimizerConfig config_;
  Tensor m_, v_, scalars_;
  PinnedBuffer staged_;  // the scalars of the step as the host wrote them, then as the device returned them
  double gradient_scale_ = 1.0;
};

}  // namespace heddle
