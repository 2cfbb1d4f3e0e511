// A model with its optimizer: what one training step reads and changes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
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
#include "trainers/parallel/data_parallel.h"
#include "trainers/profile/step_profiler.h"
#include "trainers/skipped_steps.h"
#include "trainers/train_config.h"
#include "trainers/weight_average.h"

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
// bits as without. Of several processes each computes its part of every batch, and all take the same step.
class TrainStep {
 public:
  // Builds the model and its optimizer; the parameters start from config.seed. `processes` must outlive it; nullptr:
  // this process is alone.
  TrainStep(Context& context, const TrainConfig& config, Processes* processes = nullptr);
  TrainStep(const TrainStep&) = delete;
  TrainStep& operator=(const TrainStep&) = delete;

  Context& context() { return context_; }
  LanguageModel& model() { return model_; }
  Optimizer& optimizer() { return optimizer_; }
  // The average of the weights, which trainer.ema asks for; else null.
  WeightAverage* average() { return average_ ? &*average_ : nullptr; }
  // What the processes share; null where this one is alone.
  DataParallel* parallel() { return parallel_.get(); }
  // Which it is now, and which a run that continues had.
  const LossScale& loss_scale() const { return loss_scale_; }
  void set_loss_scale(const LossScale& loss_scale) { loss_scale_ = loss_scale; }
  const SkippedSteps& skipped() const { return skipped_; }
  void set_skipped(const SkippedSteps& skipped) { skipped_ = skipped; }

  // From the next step on the profiler records what is given to the device; nullptr: no longer. A graph is captured
  // anew, so that it holds the marks of the profiler, which must outlive its place here.
  void set_profiler(StepProfiler* profiler);
  // Whether the last step was a replay of a graph.
  bool is_captured() const { return static_cast<bool>(graph_); }

  // Takes optimizer step number `step` (from 1) on the mean gradient of the micro-batches. On meta the results are NaN.
  // A loss or gradient that is not finite changes no weight and no moment. With a dynamic loss scale such a gradient
  // leaves the step out; otherwise trainer.skip_nonfinite steps in a row are left out, then NonFinite is thrown, which
  // names the step and what made the first number that is not finite.
  //
  // Of several processes each gives its parts of the batches (Dataset::training_part), and the result is that of all.
  // `meanwhile` is called while the device computes.
  StepResult step(
      std::vector<Batch> micro_batches, int64_t step, double learning_rate,
      const std::function<void()>& meanwhile = [] {});

 private:
  // The batches of a step on the host and on the device: the same memory in every step.
  struct Staging {
    std::vector<DeviceBatch> batches;
    std::vector<int64_t> first_rows;  // of the batches, with which their masks of dropout begin
    Tensor dropout_seeds;             // int64 (batches, layers, 2); undefined in a model without dropout
    Tensor upstream;  // the loss scale; of several processes, for each batch that times this one's share of its targets
    Tensor losses;    // of the batches
    Tensor numbers;   // the losses; of several processes (processes, 2, batches): upstream and losses of each
    // Tokens, targets and segments of all batches, seeds, upstream, numbers; null on meta.
    std::unique_ptr<PinnedBuffer> host;
    size_t seeds_offset = 0, upstream_offset = 0, numbers_offset = 0;
  };

  bool fits_staging() const;
  void make_staging();
  void stage();
  // Copies what lies at this offset of the host's numbers; nothing on meta.
  void copy_staged(const Tensor& to, size_t offset);
  // Everything that a step gives to the device.
  void compute();
  // The mean loss of this one of the batches, recorded on the tape.
  Variable record_loss(Tape& tape, size_t micro_batch, const LanguageModel::Observer& observer = {}) const;
  // The same, which the profiler records if there is one.
  void compute_watched();
  double staged_loss() const;
  Tensor upstream_of(size_t micro_batch) const;
  double upstream_on_host(size_t micro_batch) const;
  std::vector<uint64_t> dropout_seeds(size_t micro_batch) const;
  std::string describe_non_finite(const StepResult& result);
  std::string find_first_non_finite();

  Context& context_;
  LanguageModel model_;
  std::unique_ptr<DataParallel> parallel_;
  std::optional<WeightAverage> average_;
  Optimizer optimizer_;
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
  StepProfiler* profiler_ = nullptr;
};

}  // namespace heddle
