#include "trainers/train_step.h"

#include <algorithm>
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

LanguageModel build(Context& context, const TrainConfig& config, const Processes* processes) {
  const TrainerConfig& trainer = config.trainer;
  const int parts = processes != nullptr ? processes->count() : 1;
  if (!context.is_meta()) {
    check_host_memory("the batches of a step",
                      trainer.accumulate * trainer.batch_size / parts * trainer.sequence_length, 2 * sizeof(int32_t));
  }
  LanguageModel model(config.model);
  model.parameters().materialize(context, config.trainer.dtype, config.seed, parts);
  return model;
}

std::unique_ptr<DataParallel> parallel_of(Context& context, ParameterSet& parameters, const TrainConfig& config,
                                          Processes* processes) {
  if (processes == nullptr || processes->count() == 1) return nullptr;
  const bool shard_optimizer = config.trainer.parallel.value_or(ParallelConfig{}).shard_optimizer;
  return std::make_unique<DataParallel>(context, parameters, config.optimizer, *processes, shard_optimizer);
}

std::optional<WeightAverage> average_of(Context& context, ParameterSet& parameters, const TrainerConfig& trainer,
                                        DataParallel* parallel) {
  if (!trainer.ema) return std::nullopt;
  return WeightAverage(context, parameters, *trainer.ema, parallel);
}

size_t round_up(size_t bytes) { return (bytes + 15) / 16 * 16; }

}  // namespace

TrainStep::TrainStep(Context& context, const TrainConfig& config, Processes* processes)
    : context_(context),
      model_(build(context, config, processes)),
      parallel_(parallel_of(context, model_.parameters(), config, processes)),
      average_(average_of(context, model_.parameters(), config.trainer, parallel())),
      optimizer_(context, model_.parameters(), config.optimizer, average(), parallel()),
      seed_(config.seed),
      scale_is_dynamic_(!config.trainer.loss_scale),
      loss_scale_{initial_loss_scale(config.trainer)},
      skip_nonfinite_(config.trainer.skip_nonfinite),
      use_graph_(config.trainer.cuda_graph && context.backend().has_graphs() &&
                 (parallel_ == nullptr || parallel_->can_be_captured())) {}

bool TrainStep::fits_staging() const {
  if (staging_.batches.size() != batches_.size()) return false;
  for (size_t i = 0; i < batches_.size(); ++i) {
    const DeviceBatch& staged = staging_.batches[i];
    if (staged.tokens.shape() != Shape{batches_[i].size, batches_[i].length}) return false;
    if (staged.segments.defined() != batches_[i].has_segments()) return false;
    if (staging_.first_rows[i] != batches_[i].first_row) return false;
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
    staging_.first_rows.push_back(batch.first_row);
    bytes += (2 * batch.tokens.size() + batch.segments.size()) * sizeof(int32_t);
  }
  const size_t seeds = dropout_seeds(0).size();
  if (seeds > 0) {
    const MemoryScope scope(context_, MemoryCategory::data);
    const auto batches = static_cast<int64_t>(batches_.size());
    staging_.dropout_seeds = Tensor::empty(context_, {batches, static_cast<int64_t>(seeds) / 2, 2}, DType::int64);
  }
  const MemoryScope scope(context_, "loss", MemoryCategory::gradient);
  const auto count = static_cast<int64_t>(batches_.size());
  if (parallel_ == nullptr) {
    const Tensor numbers = Tensor::empty(context_, {1 + count}, loss_dtype);
    staging_.upstream = numbers.slice(0, 0, 1);
    staging_.losses = staging_.numbers = numbers.slice(0, 1, 1 + count);
  } else {
    staging_.numbers = Tensor::empty(context_, {parallel_->count(), 2, count}, loss_dtype);
    const Tensor of_this_process = staging_.numbers.select(0, parallel_->rank());
    staging_.upstream = of_this_process.select(0, 0);
    staging_.losses = of_this_process.select(0, 1);
  }
  const auto bytes_of = [&](const Tensor& tensor) { return static_cast<size_t>(tensor.numel()) * size_of(loss_dtype); };
  staging_.seeds_offset = round_up(bytes);
  staging_.upstream_offset = staging_.seeds_offset + round_up(batches_.size() * seeds * sizeof(uint64_t));
  staging_.numbers_offset = staging_.upstream_offset + round_up(bytes_of(staging_.upstream));
  if (context_.is_meta()) return;
  staging_.host = std::make_unique<PinnedBuffer>(context_, staging_.numbers_offset + bytes_of(staging_.numbers));
}

Tensor TrainStep::upstream_of(size_t micro_batch) const {
  return staging_.upstream.select(0, parallel_ == nullptr ? 0 : static_cast<int64_t>(micro_batch));
}

// The mean over the targets of a batch is that over the targets of each process, weighted with their share.
double TrainStep::upstream_on_host(size_t micro_batch) const {
  const Batch& batch = batches_[micro_batch];
  if (parallel_ == nullptr || batch.counted_by_all == 0) return loss_scale_.value;
  return loss_scale_.value * static_cast<double>(counted_targets(batch)) / static_cast<double>(batch.counted_by_all);
}

std::vector<uint64_t> TrainStep::dropout_seeds(size_t micro_batch) const {
  return model_.dropout_seeds(derived_seed(derived_seed(seed_, static_cast<uint64_t>(step_)), micro_batch));
}

void TrainStep::stage() {
  if (staging_.host == nullptr) return;
  char* host = staging_.host->as<char>();
  for (const Batch& batch : batches_) {
    for (const std::vector<int32_t>* numbers : {&batch.tokens, &batch.targets, &batch.segments}) {
      if (numbers->empty()) continue;  // without segments, whose data() may be null
      std::memcpy(host, numbers->data(), numbers->size() * sizeof(int32_t));
      host += numbers->size() * sizeof(int32_t);
    }
  }
  char* seeds = staging_.host->as<char>() + staging_.seeds_offset;
  for (size_t i = 0; i < batches_.size(); ++i) {
    const std::vector<uint64_t> of_batch = dropout_seeds(i);
    if (of_batch.empty()) break;
    std::memcpy(seeds, of_batch.data(), of_batch.size() * sizeof(uint64_t));
    seeds += of_batch.size() * sizeof(uint64_t);
  }
  const DType dtype = staging_.upstream.dtype();
  char* upstream = staging_.host->as<char>() + staging_.upstream_offset;
  for (int64_t i = 0; i < staging_.upstream.numel(); ++i) {
    write_number(upstream + static_cast<size_t>(i) * size_of(dtype), dtype, upstream_on_host(static_cast<size_t>(i)));
  }
}

void TrainStep::copy_staged(const Tensor& to, size_t offset) {
  if (staging_.host != nullptr) copy_from_host(context_, to, staging_.host->as<char>() + offset);
}

void TrainStep::compute() {
  model_.parameters().zero_grad();
  copy_staged(staging_.upstream, staging_.upstream_offset);
  if (staging_.dropout_seeds.defined()) copy_staged(staging_.dropout_seeds, staging_.seeds_offset);
  size_t offset = 0;
  for (size_t i = 0; i < staging_.batches.size(); ++i) {
    const DeviceBatch& batch = staging_.batches[i];
    for (const Tensor* numbers : {&batch.tokens, &batch.targets, &batch.segments}) {
      if (!numbers->defined()) continue;
      copy_staged(*numbers, offset);
      offset += static_cast<size_t>(numbers->numel()) * sizeof(int32_t);
    }
    context_.mark("forward");
    Tape tape(context_);
    const Variable loss = record_loss(tape, i);
    context_.mark("backward");
    if (parallel_ != nullptr && i + 1 == staging_.batches.size()) parallel_->gradients().watch(tape);
    tape.backward(loss, upstream_of(i));
    copy(context_, staging_.losses.select(0, static_cast<int64_t>(i)), loss.value);
  }
  if (parallel_ != nullptr) {
    parallel_->gradients().finish();
    parallel_->gather_rows(staging_.numbers);
  }
  if (!context_.is_meta()) {
    copy_to_host_async(context_, staging_.numbers, staging_.host->as<char>() + staging_.numbers_offset);
  }
  context_.mark("optimizer");
  optimizer_.apply(staging_.numbers.reshape({staging_.numbers.numel()}));
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
  DropoutMasks masks{.first_sequence = batches_[micro_batch].first_row};
  if (staging_.dropout_seeds.defined()) {
    masks.seeds = staging_.dropout_seeds.select(0, static_cast<int64_t>(micro_batch));
  }
  return model_.loss(tape, model_.features(tape, {batch.tokens, batch.segments}, nullptr, observer, masks),
                     batch.targets);
}

StepResult TrainStep::step(std::vector<Batch> micro_batches, int64_t step, double learning_rate,
                           const std::function<void()>& meanwhile) {
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
  meanwhile();
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
    if (parallel_ != nullptr) parallel_->processes().fail_together();
    const std::string before = fmt::format(", nor were the {} before it (trainer.skip_nonfinite)", skipped_.in_a_row);
    throw NonFinite(result.reason + "; the step was not taken" + (skip_nonfinite_ > 0 ? before : ""));
  }
  ++skipped_.in_a_row;
  ++skipped_.total;
  return result;
}

double TrainStep::staged_loss() const {
  const DType dtype = staging_.upstream.dtype();
  const char* numbers = staging_.host->as<char>() + staging_.numbers_offset;
  const auto number = [&](size_t index) { return read_number(numbers + index * size_of(dtype), dtype); };
  const size_t count = batches_.size();
  double sum = 0.0;
  if (parallel_ == nullptr) {
    for (size_t i = 0; i < count; ++i) sum += number(i) / static_cast<double>(count);
    return sum;
  }
  for (size_t i = 0; i < count; ++i) {
    for (size_t rank = 0; rank < static_cast<size_t>(parallel_->count()); ++rank) {
      const double share = number(2 * rank * count + i) / loss_scale_.value;
      if (share > 0.0) sum += share * number((2 * rank + 1) * count + i) / static_cast<double>(count);
    }
  }
  return sum;
}

std::string TrainStep::describe_non_finite(const StepResult& result) {
  const bool of_loss = !std::isfinite(result.loss);
  std::string first = find_first_non_finite();
  if (parallel_ != nullptr) {
    const std::vector<std::string> of_all = parallel_->processes().gather(first);
    const auto found =
        std::find_if(of_all.begin(), of_all.end(), [](const std::string& text) { return !text.empty(); });
    if (found != of_all.end()) first = fmt::format("on process {}, {}", found - of_all.begin(), *found);
  }
  if (first.empty()) first = "each gradient is finite, but not their norm";
  return fmt::format("{} is {} at step {}: {}", of_loss ? "loss" : "gradient norm",
                     unsigned_nan(of_loss ? result.loss : result.gradient_norm), step_, first);
}

// Computes the batches of the step again, without a graph, and looks at every number on the way. The weights are those
// that the step had. "" when all are finite.
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
      tape.backward(loss, upstream_of(i));
    }
  } catch (const FoundNonFinite& found) {
    return found.what;
  } catch (const OutOfMemory&) {
    return "there is no memory to find out which number was the first";
  }
  return "";
}

}  // namespace heddle
