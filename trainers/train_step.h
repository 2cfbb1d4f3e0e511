// A model with its optimizer: what one training step reads and changes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/runtime/graph.h"
#include "core/runtime/stream.h"
#include "trainers/data/dataset.h"
#include "trainers/loss_scale.h"
#include "trainers/model/language_model.h"
#include "trainers/optimizer.h"
#include "trainers/skipped_steps.h"
#include "trainers/train_config.h"

namespace heddle {

// A loss or gradient is not finite, and more steps in a row than trainer.skip_nonfinite were. The step has changed
// nothing.
class NonFinite : public Error {
 public:
  using Error::Error;
};

struct StepResult {
  double loss = 0.0;           // nats per token, mean over the micro-batches
  double gradient_norm = 0.0;  // before clipping; NaN when the loss is not finite
  bool left_out = false;       // the loss or the gradient is not finite, and nothing was changed but the loss scale
  std::string reason = {};  // why a step was left out by trainer.skip_nonfinite: which part made the first such number
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
  AdamW& optimizer() { return optimizer_; }
  // Which it is now, and which a run that continues had.
  const LossScale& loss_scale() const { return loss_scale_; }
  void set_loss_scale(const LossScale& loss_scale) { loss_scale_ = loss_scale; }
  const SkippedSteps& skipped() const { return skipped_; }
  void set_skipped(const SkippedSteps& skipped) { skipped_ = skipped; }

  // Takes optimizer step number `step` (from 1) on the mean gradient of the micro-batches. On meta the results are NaN.
  // A loss or gradient that is not finite changes no weight and no moment. With a dynamic loss scale such a gradient
  // leaves the step out; otherwise trainer.skip_nonfinite steps in a row are left out, then NonFinite is thrown, which
  // names the step and what made the first number that is not finite.
  StepResult step(std::vector<Batch> micro_batches, int64_t step, double learning_rate);
  // The same in two halves. Between them the device works, and the host may make the next batches.
  void begin_step(std::vector<Batch> micro_batches, int64_t step, double learning_rate);
  StepResult finish_step();

 private:
  // The batches of a step on the host and on the device: the same memory in every step.
  struct Staging {
    std::vector<DeviceBatch> batches;
    Tensor upstream;                     // the loss scale
    Tensor losses;                       // of the batches
    std::unique_ptr<PinnedBuffer> host;  // tokens and targets of all batches, the loss scale, the losses
    size_t upstream_offset = 0, loss_offset = 0;
  };

  bool fits_staging() const;
  void make_staging();
  void stage();
  // Everything that a step gives to the device.
  void compute();
  // The mean loss of this one of the batches, recorded on the tape.
  Variable record_loss(Tape& tape, size_t micro_batch, const LanguageModel::Observer& observer = {}) const;
  double staged_loss() const;
  std::string describe_non_finite(const StepResult& result);
  std::string find_first_non_finite();

  Context& context_;
  LanguageModel model_;
  AdamW optimizer_;
  uint64_t seed_;
  bool scale_is_dynamic_;
  LossScale loss_scale_;
  int64_t skip_nonfinite_;
  SkippedSteps skipped_;
  bool use_graph_;
  std::vector<Batch> batches_;  // of the step under way
  int64_t step_ = 0;
  Staging staging_;
  Graph graph_;
  bool ran_once_ = false;
};

}  // namespace heddle
