// A model with its optimizer: what one training step reads and changes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/runtime/graph.h"
#include "core/runtime/stream.h"
#include "trainers/data/dataset.h"
#include "trainers/loss_scale.h"
#include "trainers/model/language_model.h"
#include "trainers/optimizer.h"
#include "trainers/train_config.h"
#include "trainers/weight_average.h"

namespace heddle {

// A loss or gradient is not finite. Thrown before the step has changed anything.
class NonFinite : public Error {
 public:
  using Error::Error;
};

struct StepResult {
  double loss = 0.0;           // nats per token, mean over the micro-batches
  double gradient_norm = 0.0;  // before clipping
  bool left_out = false;       // the gradient is not finite, and nothing was changed but the loss scale
};

// On a GPU with graphs the second step is captured and from then on replayed (trainer.cuda_graph: auto), with the same
// bits as without. A model with dropout is not: each step has another seed, and a graph would repeat one mask.
class TrainStep {
 public:
  // Builds the model and its optimizer; the parameters start from config.seed.
  TrainStep(Context& context, const TrainConfig& config);
  TrainStep(const TrainStep&) = delete;
  TrainStep& operator=(const TrainStep&) = delete;

  LanguageModel& model() { return model_; }
  Optimizer& optimizer() { return optimizer_; }
  // The average of the weights, which trainer.ema asks for; else null.
  WeightAverage* average() { return average_ ? &*average_ : nullptr; }
  // Which it is now, and which a run that continues had.
  const LossScale& loss_scale() const { return loss_scale_; }
  void set_loss_scale(const LossScale& loss_scale) { loss_scale_ = loss_scale; }

  // Takes optimizer step number `step` (from 1) on the mean gradient of the micro-batches. On meta the results are NaN.
  // With a dynamic loss scale a gradient that is not finite leaves the step out. Throws NonFinite, which names the step
  // and the first part of the model whose numbers are not finite.
  StepResult step(std::vector<Batch> micro_batches, int64_t step, double learning_rate);
  // The same in two halves. Between them the device works, and the host may make the next batches.
  void begin_step(std::vector<Batch> micro_batches, int64_t step, double learning_rate);
  StepResult finish_step();

 private:
  // The batches of a step on the host and on the device: the same memory in every step.
  struct Staging {
    std::vector<DeviceBatch> batches;
    Tensor upstream;                     // the loss scale
    std::unique_ptr<PinnedBuffer> host;  // tokens and targets of all batches, the loss scale, the losses
    size_t upstream_offset = 0, loss_offset = 0;
  };

  bool fits_staging() const;
  void make_staging();
  void stage();
  // Everything that a step gives to the device.
  void compute();
  double staged_loss() const;
  [[noreturn]] void refuse_loss(double loss) const;
  [[noreturn]] void refuse_gradient(double norm) const;

  Context& context_;
  LanguageModel model_;
  std::optional<WeightAverage> average_;
  Optimizer optimizer_;
  uint64_t seed_;
  bool scale_is_dynamic_;
  LossScale loss_scale_;
  bool use_graph_;
  std::vector<Batch> batches_;  // of the step under way
  int64_t step_ = 0;
  Staging staging_;
  Graph graph_;
  bool ran_once_ = false;
};

}  // namespace heddle
