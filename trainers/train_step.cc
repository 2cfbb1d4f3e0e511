#include "trainers/train_step.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "core/runtime/error.h"
#include "core/runtime/host_memory.h"
#include "core/runtime/unsigned_nan.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "trainers/evaluate.h"
#include "trainers/non_finite.h"

namespace heddle {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

LanguageModel build(Context& context, const TrainConfig& config) {
  const TrainerConfig& trainer = config.trainer;
  check_host_memory("the batches of a step", trainer.accumulate * trainer.batch_size * trainer.sequence_length,
                    2 * sizeof(int32_t));
  LanguageModel model(config.model);
  model.parameters().materialize(context, config.trainer.dtype, config.seed);
  return model;
}

std::optional<WeightAverage> average_of(Context& context, ParameterSet& parameters, const TrainerConfig& trainer) {
  if (!trainer.ema) return std::nullopt;
  return WeightAverage(context, parameters, *trainer.ema);
}

}  // namespace

TrainStep::TrainStep(Context& context, const TrainConfig& config)
    : context_(context),
      model_(build(context, config)),
      average_(average_of(context, model_.parameters(), config.trainer)),
      optimizer_(context, model_.parameters(), config.optimizer, average()),
      seed_(config.seed),
      scale_is_dynamic_(!config.trainer.loss_scale),
      loss_scale_{initial_loss_scale(config.trainer)},
      skip_nonfinite_(config.trainer.skip_nonfinite),
      use_graph_(config.trainer.cuda_graph && config.model.dropout == 0.0 && context.backend().has_graphs()) {}

bool TrainStep::fits_staging() const {
  if (staging_.batches.size() != batches_.size()) return false;
  for (size_t i = 0; i < batches_.size(); ++i) {
    const DeviceBatch& staged = staging_.batches[i];
    if (staged.tokens.shape() != Shape{batches_[i].size, batches_[i].length}) return false;
    if (staged.segments.defined() == batches_[i].segments.empty()) return false;
  }
  return true;
}

void TrainStep::make_staging() {
  graph_ = Graph();
  ran_once_ = false;
  staging_ = Staging();
  const DType loss_dtype = model_.parameters().master().dtype();
  size_t bytes = 0;
  for (const Batch& batch : batches_) {
    staging_.batches.push_back(empty_batch(context_, batch));
    bytes += (2 * batch.tokens.size() + batch.segments.size()) * sizeof(int32_t);
  }
  const MemoryScope scope(context_, "loss", MemoryCategory::gradient);
  const auto count = static_cast<int64_t>(batches_.size());
  const Tensor numbers = Tensor::empty(context_, {1 + count}, loss_dtype);
  staging_.upstream = numbers.select(0, 0);
  staging_.losses = numbers.slice(0, 1, 1 + count);
  staging_.upstream_offset = (bytes + 15) / 16 * 16;
  staging_.loss_offset = staging_.upstream_offset + 16;
  staging_.host =
      std::make_unique<PinnedBuffer>(context_, staging_.loss_offset + batches_.size() * size_of(loss_dtype));
}

void TrainStep::stage() {
  char* host = staging_.host->as<char>();
  for (const Batch& batch : batches_) {
    for (const std::vector<int32_t>* numbers : {&batch.tokens, &batch.targets, &batch.segments}) {
      if (numbers->empty()) continue;  // without segments, whose data() may be null
      std::memcpy(host, numbers->data(), numbers->size() * sizeof(int32_t));
      host += numbers->size() * sizeof(int32_t);
    }
  }
  write_number(staging_.host->as<char>() + staging_.upstream_offset, staging_.upstream.dtype(), loss_scale_.value);
}

void TrainStep::compute() {
  model_.parameters().zero_grad();
  const char* host = staging_.host->as<char>();
  copy_from_host(context_, staging_.upstream, host + staging_.upstream_offset);
  for (size_t i = 0; i < staging_.batches.size(); ++i) {
    const DeviceBatch& batch = staging_.batches[i];
    for (const Tensor* numbers : {&batch.tokens, &batch.targets, &batch.segments}) {
      if (!numbers->defined()) continue;
      copy_from_host(context_, *numbers, host);
      host += numbers->numel() * static_cast<int64_t>(sizeof(int32_t));
    }
    context_.mark("forward");
    Tape tape(context_);
    const Variable loss = record_loss(tape, i);
    context_.mark("backward");
    tape.backward(loss, staging_.upstream);
    copy(context_, staging_.losses.select(0, static_cast<int64_t>(i)), loss.value);
  }
  if (!context_.is_meta()) {
    copy_to_host_async(context_, staging_.losses, staging_.host->as<char>() + staging_.loss_offset);
  }
  context_.mark("optimizer");
  optimizer_.apply(staging_.losses);
  context_.backend().name_phase("");
}

void TrainStep::set_profiler(StepProfiler* profiler) {
  profiler_ = profiler;
  graph_ = Graph();
}

void TrainStep::compute_watched() {
  if (profiler_ == nullptr) return compute();
  profiler_->record([&] { compute(); });
}

Variable TrainStep::record_loss(Tape& tape, size_t micro_batch, const LanguageModel::Observer& observer) const {
  const DeviceBatch& batch = staging_.batches[micro_batch];
  const uint64_t dropout_seed = derived_seed(derived_seed(seed_, static_cast<uint64_t>(step_)), micro_batch);
  return model_.loss(tape, model_.features(tape, {batch.tokens, batch.segments}, nullptr, observer, dropout_seed),
                     batch.targets);
}

StepResult TrainStep::step(std::vector<Batch> micro_batches, int64_t step, double learning_rate) {
  batches_ = std::move(micro_batches);
  step_ = step;
  if (!fits_staging()) make_staging();
  stage();
  // The bias correction of the moments counts the updates that were made.
  optimizer_.set_step(step - loss_scale_.left_out - skipped_.total, learning_rate,
                      1.0 / (static_cast<double>(batches_.size()) * loss_scale_.value));
  if (use_graph_ && ran_once_ && !graph_) {
    context_.allocator().release_cached();  // the graph has memory of its own
    graph_ = capture(context_, [&] { compute_watched(); });
  }
  if (graph_) {
    graph_.replay();
  } else {
    compute_watched();
    ran_once_ = true;
  }
  context_.synchronize();
  if (context_.is_meta()) return {.loss = kNaN, .gradient_norm = kNaN};
  StepResult result{.loss = staged_loss(), .gradient_norm = optimizer_.gradient_norm()};
  result.left_out = !std::isfinite(result.gradient_norm);
  if (!result.left_out) {
    skipped_.in_a_row = 0;
    if (scale_is_dynamic_) loss_scale_.succeed();
    return result;
  }
  if (scale_is_dynamic_ && std::isfinite(result.loss) && loss_scale_.fail()) return result;
  result.reason = describe_non_finite(result);
  if (skipped_.in_a_row == skip_nonfinite_) {
    const std::string before = fmt::format(", nor were the {} before it (trainer.skip_nonfinite)", skipped_.in_a_row);
    throw NonFinite(result.reason + "; the step was not taken" + (skip_nonfinite_ > 0 ? before : ""));
  }
  ++skipped_.in_a_row;
  ++skipped_.total;
  return result;
}

double TrainStep::staged_loss() const {
  const DType dtype = staging_.upstream.dtype();
  const char* losses = staging_.host->as<char>() + staging_.loss_offset;
  const double count = static_cast<double>(batches_.size());
  double sum = 0.0;
  for (size_t i = 0; i < batches_.size(); ++i) sum += read_number(losses + i * size_of(dtype), dtype) / count;
  return sum;
}

std::string TrainStep::describe_non_finite(const StepResult& result) {
  const bool of_loss = !std::isfinite(result.loss);
  return fmt::format("{} is {} at step {}: {}", of_loss ? "loss" : "gradient norm",
                     unsigned_nan(of_loss ? result.loss : result.gradient_norm), step_, find_first_non_finite());
}

// Computes the batches of the step again, without a graph, and looks at every number on the way. The weights are those
// that the step had.
std::string TrainStep::find_first_non_finite() {
  for (const Parameter& parameter : model_.parameters().all()) {
    const auto value = first_non_finite(context_, parameter.value);
    if (value) return fmt::format("parameter {} was not finite before ({})", parameter.name, unsigned_nan(*value));
  }
  graph_ = Graph();  // its memory is needed; the next step captures another one
  context_.allocator().release_cached();
  model_.parameters().zero_grad();
  try {
    for (size_t i = 0; i < batches_.size(); ++i) {
      Tape tape(context_);
      watch_for_non_finite(tape);
      const Variable loss = record_loss(tape, i, non_finite_observer(context_));
      tape.backward(loss, staging_.upstream);
    }
  } catch (const FoundNonFinite& found) {
    return found.what;
  } catch (const OutOfMemory&) {
    return "there is no memory to find out which number was the first";
  }
  return "each gradient is finite, but not their norm";
}

}  // namespace heddle
