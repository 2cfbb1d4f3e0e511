#include "trainers/train_step.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string_view>
#include <utility>

#include "core/runtime/error.h"
#include "core/runtime/host_memory.h"
#include "core/runtime/unsigned_nan.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "trainers/evaluate.h"

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

bool all_finite(Context& context, const Tensor& tensor) {
  const std::vector<double> values = read_values(context, tensor);
  return std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); });
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
      use_graph_(config.trainer.cuda_graph && config.model.dropout == 0.0 && context.backend().has_graphs()) {}

bool TrainStep::fits_staging() const {
  if (staging_.batches.size() != batches_.size()) return false;
  for (size_t i = 0; i < batches_.size(); ++i) {
    if (staging_.batches[i].tokens.shape() != Shape{batches_[i].size, batches_[i].length}) return false;
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
    staging_.batches.push_back(empty_batch(context_, batch.size, batch.length));
    bytes += 2 * batch.tokens.size() * sizeof(int32_t);
  }
  const MemoryScope scope(context_, "loss", MemoryCategory::gradient);
  staging_.upstream = Tensor::empty(context_, {}, loss_dtype);
  staging_.upstream_offset = (bytes + 15) / 16 * 16;
  staging_.loss_offset = staging_.upstream_offset + 16;
  staging_.host =
      std::make_unique<PinnedBuffer>(context_, staging_.loss_offset + batches_.size() * size_of(loss_dtype));
}

void TrainStep::stage() {
  char* host = staging_.host->as<char>();
  for (const Batch& batch : batches_) {
    for (const std::vector<int32_t>* numbers : {&batch.tokens, &batch.targets}) {
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
  const size_t loss_bytes = size_of(staging_.upstream.dtype());
  size_t loss_offset = staging_.loss_offset;
  const uint64_t step_seed = derived_seed(seed_, static_cast<uint64_t>(step_));
  uint64_t micro_batch = 0;
  for (const DeviceBatch& batch : staging_.batches) {
    for (const Tensor* numbers : {&batch.tokens, &batch.targets}) {
      copy_from_host(context_, *numbers, host);
      host += numbers->numel() * static_cast<int64_t>(sizeof(int32_t));
    }
    context_.mark("forward");
    Tape tape(context_);
    const uint64_t dropout_seed = derived_seed(step_seed, micro_batch++);
    const Variable loss =
        model_.loss(tape, model_.features(tape, batch.tokens, nullptr, {}, dropout_seed), batch.targets);
    context_.mark("backward");
    tape.backward(loss, staging_.upstream);
    if (!context_.is_meta()) {
      context_.backend().copy_to_host_async(staging_.host->as<char>() + loss_offset, loss.value.raw(), loss_bytes,
                                            context_.stream());
    }
    loss_offset += loss_bytes;
  }
  context_.mark("optimizer");
  optimizer_.apply();
}

StepResult TrainStep::step(std::vector<Batch> micro_batches, int64_t step, double learning_rate) {
  begin_step(std::move(micro_batches), step, learning_rate);
  return finish_step();
}

void TrainStep::begin_step(std::vector<Batch> micro_batches, int64_t step, double learning_rate) {
  batches_ = std::move(micro_batches);
  step_ = step;
  if (!fits_staging()) make_staging();
  stage();
  // The bias correction of the moments counts the updates that were made.
  optimizer_.set_step(step - loss_scale_.left_out, learning_rate,
                      1.0 / (static_cast<double>(batches_.size()) * loss_scale_.value));
  if (use_graph_ && ran_once_ && !graph_) {
    context_.allocator().release_cached();  // the graph has memory of its own
    graph_ = capture(context_, [&] { compute(); });
  }
  if (graph_) {
    graph_.replay();
  } else {
    compute();
    ran_once_ = true;
  }
}

StepResult TrainStep::finish_step() {
  context_.synchronize();
  if (context_.is_meta()) return {kNaN, kNaN};
  StepResult result{staged_loss(), optimizer_.gradient_norm()};
  if (!std::isfinite(result.loss)) refuse_loss(result.loss);
  result.left_out = !std::isfinite(result.gradient_norm);
  if (result.left_out && !(scale_is_dynamic_ && loss_scale_.fail())) refuse_gradient(result.gradient_norm);
  if (scale_is_dynamic_ && !result.left_out) loss_scale_.succeed();
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

void TrainStep::refuse_loss(double loss) const {
  std::string where;
  for (const Parameter& parameter : model_.parameters().all()) {
    if (where.empty() && !all_finite(context_, parameter.value)) where = "parameter " + parameter.name;
  }
  const auto observe = [&](std::string_view part, const Variable& output) {
    if (where.empty() && !all_finite(context_, output.value)) where = fmt::format("the output of {}", part);
  };
  for (const Batch& batch : batches_) {
    if (!where.empty()) break;
    Tape tape(context_, Tape::Mode::inference);
    model_.forward(tape, to_device(context_, batch).tokens, nullptr, observe);
  }
  throw NonFinite(fmt::format("step {}: the loss is {}; first not finite: {}; the step was not taken", step_,
                              unsigned_nan(loss), where.empty() ? "the loss itself" : where));
}

void TrainStep::refuse_gradient(double norm) const {
  std::string where = "the sum of squares, no single gradient";
  const auto& parameters = model_.parameters().all();
  // Backward reaches the last parameters first.
  for (auto parameter = parameters.rbegin(); parameter != parameters.rend(); ++parameter) {
    if (all_finite(context_, parameter->gradient.tensor)) continue;
    where = "the gradient of " + parameter->name;
    break;
  }
  throw NonFinite(fmt::format("step {}: the gradient norm is {}; first not finite: {}; the step was not taken", step_,
                              unsigned_nan(norm), where));
}

}  // namespace heddle
