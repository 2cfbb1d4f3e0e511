#include "trainers/trainer.h"

#include <fmt/format.h>

#include <chrono>

#include "core/io/atomic_file.h"
#include "trainers/logging/console_logger.h"
#include "trainers/logging/csv_logger.h"
#include "trainers/model/generate.h"
#include "trainers/run/run_folder.h"
#include "trainers/schedule.h"

namespace heddle {
namespace {

bool is_due(int64_t step, int64_t every, int64_t steps) { return step == steps || (every > 0 && step % every == 0); }

// Adds up the time between start() and stop().
class Stopwatch {
 public:
  void start() { started_ = Clock::now(); }
  void stop() { seconds_ += std::chrono::duration<double>(Clock::now() - started_).count(); }
  double seconds() const { return seconds_; }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point started_;
  double seconds_ = 0.0;
};

class Run {
 public:
  Run(Context& context, const TrainConfig& config, const TrainOptions& options, const Registry& registry)
      : context_(context),
        config_(config),
        options_(options),
        registry_(registry),
        data_(make_dataset(dataset_options(config))),
        train_step_(context, config),
        config_text_(to_yaml(config, registry)),
        folder_(options.folder),
        csv_(folder_.metrics(), note_),
        console_(options.log),
        loggers_{&csv_, &console_} {
    loggers_.insert(loggers_.end(), options.loggers.begin(), options.loggers.end());
  }

  TrainResult run() {
    start();
    TrainResult result;
    result.step = start_;
    while (result.step < steps()) {
      take_step(++result.step, result);
      if (result.step == steps() || !options_.stop_requested()) continue;
      if (!is_due(result.step, config_.trainer.checkpoint_every, steps())) checkpoint(result.step);
      end(result);
      return result;
    }
    result.finished = true;
    end(result);
    result.sample = sample();
    return result;
  }

 private:
  int64_t steps() const { return config_.trainer.steps; }
  int64_t tokens_of_step() const {
    return config_.trainer.accumulate * config_.trainer.batch_size * config_.trainer.sequence_length;
  }
  std::filesystem::path checkpoint_path(int64_t step) const {
    return folder_.checkpoints() / fmt::format("step_{}", step);
  }

  template <class Event>
  void tell(void (Logger::*hear)(const Event&), const Event& event) {
    for (Logger* logger : loggers_) (logger->*hear)(event);
  }
  void flush_loggers() {
    for (Logger* logger : loggers_) logger->flush();
  }

  // Loads the checkpoint to continue from, if there is one.
  void start() {
    const auto checkpoint = folder_.choose(options_.resume, config_, registry_, note_);
    write_file(folder_.config(), config_text_);
    StartEvent event;
    if (checkpoint) {
      load_parameters(context_, *checkpoint, train_step_.model().parameters());
      load_optimizer(context_, *checkpoint, train_step_.optimizer());
      start_ = checkpoint->state.step;
      event.checkpoint = checkpoint->path;
    }
    event.folder = folder_.path();
    event.step = start_;
    event.steps = steps();
    event.parameters = train_step_.model().parameters().count();
    event.dtype = config_.trainer.dtype;
    event.batch_size = config_.trainer.batch_size * config_.trainer.accumulate;
    event.sequence_length = config_.trainer.sequence_length;
    event.device = context_.device();
    event.threads = context_.threads();
    tell(&Logger::start, event);
  }

  std::vector<Batch> batches_of(int64_t step) const {
    const int64_t accumulate = config_.trainer.accumulate, batch_size = config_.trainer.batch_size;
    std::vector<Batch> batches;
    for (int64_t micro = 0; micro < accumulate; ++micro) {
      batches.push_back(data_->training_batch(((step - 1) * accumulate + micro) * batch_size));
    }
    return batches;
  }

  // Trains on the batches of this step, and makes those of the next while the device works.
  StepEvent learn(int64_t step) {
    StepEvent event{.step = step,
                    .steps = steps(),
                    .tokens = tokens_of_step(),
                    .total_tokens = step * tokens_of_step(),
                    .learning_rate = learning_rate(config_, step)};
    try {
      if (next_batches_.empty()) next_batches_ = batches_of(step);
      train_step_.begin_step(std::move(next_batches_), step, event.learning_rate);
      next_batches_ = step < steps() ? batches_of(step + 1) : std::vector<Batch>{};
      const StepResult taken = train_step_.finish_step();
      event.loss = taken.loss;
      event.gradient_norm = taken.gradient_norm;
    } catch (const NonFinite& error) {
      flush_loggers();
      throw NonFinite(
          fmt::format("{}. A lower optimizer.lr, a longer schedule.warmup_steps or optimizer.clip_norm may "
                      "help; checkpoints are in {}",
                      error.what(), folder_.checkpoints().string()));
    }
    return event;
  }

  // One step, with the evaluation and the checkpoint that are due after it.
  void take_step(int64_t step, TrainResult& result) {
    const TrainerConfig& trainer = config_.trainer;
    stopwatch_.start();
    StepEvent event = learn(step);
    stopwatch_.stop();
    event.seconds = stopwatch_.seconds();
    event.peak_bytes = context_.allocator().stats().allocated.peak;
    tell(&Logger::step, event);

    result.evaluation.reset();
    if (is_due(step, trainer.eval_every, steps())) {
      result.evaluation = evaluate(context_, train_step_.model(), *data_);
      tell(&Logger::evaluation, evaluation_event(step, *result.evaluation));
    }
    if (is_due(step, trainer.checkpoint_every, steps())) {
      checkpoint(step);
    } else if (result.evaluation) {
      flush_loggers();
    }
  }

  EvaluationEvent evaluation_event(int64_t step, const Evaluation& evaluation) const {
    return {.step = step, .loss = evaluation.loss, .accuracy = evaluation.accuracy, .is_text = data_->is_text()};
  }

  // The files of the loggers come first: they must never end before the checkpoint does.
  void checkpoint(int64_t step) {
    flush_loggers();
    const auto path =
        write_checkpoint(context_, folder_.checkpoints(), train_step_.model().parameters(), train_step_.optimizer(),
                         {step, config_.seed, config_text_, options_.program}, config_.trainer.keep_checkpoints);
    tell(&Logger::checkpoint, {.step = step, .path = path});
  }

  void end(const TrainResult& result) {
    EndEvent event;
    event.finished = result.finished;
    event.start = start_;
    event.step = result.step;
    event.steps = steps();
    event.tokens = (result.step - start_) * tokens_of_step();
    event.seconds = stopwatch_.seconds();
    event.peak_bytes = context_.allocator().stats().allocated.peak;
    event.checkpoint = checkpoint_path(result.step);
    if (result.evaluation) event.evaluation = evaluation_event(result.step, *result.evaluation);
    tell(&Logger::end, event);
  }

  std::string sample() {
    if (!config_.trainer.sample) return "";
    const SampleConfig& sample = *config_.trainer.sample;
    GenerateOptions options;
    options.tokens = sample.tokens;
    options.temperature = sample.temperature;
    options.seed = config_.seed;
    Utf8Printer printer;
    std::string text = sample.prompt;
    generate(context_, train_step_.model(), sample.prompt, options, [&](uint8_t byte) { text += printer.add(byte); });
    text += printer.finish();
    tell(&Logger::sample, {.step = steps(), .text = text});
    return text;
  }

  Context& context_;
  const TrainConfig& config_;
  const TrainOptions& options_;
  const Registry& registry_;
  std::unique_ptr<Dataset> data_;
  TrainStep train_step_;
  std::vector<Batch> next_batches_;  // of the step to come, made while the device works
  std::string config_text_;
  RunFolder folder_;
  const Note note_ = [this](const std::string& line) { tell(&Logger::note, line); };
  CsvLogger csv_;
  ConsoleLogger console_;
  std::vector<Logger*> loggers_;
  Stopwatch stopwatch_;
  int64_t start_ = 0;  // steps that were done before
};

}  // namespace

TrainResult train(Context& context, const TrainConfig& config, const TrainOptions& options, const Registry& registry) {
  return Run(context, config, options, registry).run();
}

}  // namespace heddle
