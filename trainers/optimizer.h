// The optimizers, over the flat buffers of a model's parameters.                          docs/training.md#the-step
#pragma once

#include <cstdint>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/io/safetensors.h"
#include "core/runtime/stream.h"
#include "kernels/common/views.h"
#include "trainers/optimizer_config.h"
#include "trainers/parallel/data_parallel.h"
#include "trainers/weight_average.h"

namespace heddle {

// A step is set_step(), then backward, which fills the gradients, then apply(). What changes from step to step is read
// from pinned memory by the work that apply() gives to the device, so a captured graph of that work can be replayed
// after the next set_step().
class Optimizer {
 public:
  // The parameters must have their memory, which is an Error otherwise. What is kept of past gradients starts at zero,
  // counted as optimizer memory. `average`, of these parameters and alive as long as this, is brought up to date in
  // each step. Where several processes share the state, `parallel` says which part is that of this one; the average is
  // shared likewise. Throws Error when a group of the config matches no parameter.
  Optimizer(Context& context, ParameterSet& parameters, const OptimizerConfig& config,
            const WeightAverage* average = nullptr, DataParallel* parallel = nullptr);

  const OptimizerConfig& config() const { return config_; }

  // Prepares step number `step` (from 1, else an Error) on the host; the device must be done with the step before. The
  // gradients are multiplied by `gradient_scale` first.
  void set_step(int64_t step, double learning_rate, double gradient_scale);
  // Collective where the state is shared. Computes the norm of the gradients, then updates what is kept of them, the
  // masters, the compute copies of the parameters and the average. A norm that is not finite changes none of them, nor
  // does one of `losses`: numbers on the device, (n) of the dtype of the masters, or undefined. Gradients that no
  // backward has written since zero_grad() are zero. Throws Error before the first set_step().
  void apply(const Tensor& losses = {});
  // The norm of the scaled gradient before clipping, as apply() found it; the device must be done. Not finite when
  // apply() changed nothing. NaN on meta.
  double gradient_norm() const;

  // What is kept by parameter, views of the flat buffers: "NAME.m", the first moment (adamw, lion) or the momentum
  // (sgd, unless that is 0; muon), and "NAME.v", the second moment (adamw, and what muon leaves to it).
  std::vector<ShardedTensor> parts_of_state() const;
  // The same of a process that keeps all of it.
  std::vector<NamedTensor> state() const;

 private:
  // A matrix that Muon orthogonalizes.
  struct Matrix {
    const Parameter* parameter = nullptr;
    int64_t offset = 0;  // in the flat buffers
    ParameterRule rule;
  };

  bool has_m() const { return config_.type != OptimizerType::sgd || config_.momentum > 0.0; }
  void make_parts();
  void compute_gradient_norm(const Tensor& losses);
  void compute_norm_of(const Tensor& numbers, const Tensor& losses);
  Tensor updated(const Tensor& flat) const { return flat.slice(0, range_.begin, range_.end); }
  void update_all();
  void update_matrix(const Matrix& matrix);
  kernels::VectorView part_of(const Tensor& updated, const Matrix& matrix) const;
  kernels::VectorView compute_copy(const FlatRange& range) const;

  Context& context_;
  ParameterSet& parameters_;
  OptimizerConfig config_;
  const WeightAverage* average_;
  DataParallel* parallel_;
  FlatRange range_;  // of the flat buffers that this process updates; m and the average begin where it does
  std::vector<Matrix> matrices_;
  std::vector<int64_t> offsets_of_v_;  // by parameter; -1: it has none
  Tensor m_, v_, parts_, scalars_;
  Tensor norms_;           // (processes): of their ranges of the gradient; undefined where this process has all of it
  PinnedBuffer staged_;    // the scalars of the step as the host wrote them, then as the device returned them
  bool has_step_ = false;  // whether the scalars were set
  double gradient_scale_ = 1.0;
};

}  // namespace heddle
