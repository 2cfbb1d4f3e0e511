#include "trainers/trainer.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>

#include "core/io/atomic_file.h"
#include "trainers/logging/console_logger.h"
#include "trainers/logging/csv_logger.h"
#include "trainers/model/generate.h"
#include "trainers/out_of_memory.h"
#include "trainers/run/checkpoint_config.h"
#include "trainers/run/model_folder.h"
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
  // The seconds since start(), while it runs.
  double running_seconds() const { return std::chrono::duration<double>(Clock::now() - started_).count(); }

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
        loggers_{&csv_} {
    if (options.log != nullptr) loggers_.push_back(&console_.emplace(options.log));
    loggers_.insert(loggers_.end(), options.loggers.begin(), options.loggers.end());
  }

  TrainResult run() {
    start();
    TrainResult result;
    result.step = start_;
    while (!is_complete(result.step)) {
      if (options_.stop_requested()) {
        save(result.step);
        end(result);
        return result;
      }
      take_step(++result.step, result);
    }
    save(result.step);
    result.finished = true;
    end(result);
    if (config_.trainer.sample) result.sample = sample(result.step, true);
    result.finished = !stopped_in_sample_;
    return result;
  }

 private:
  int64_t steps() const { return config_.trainer.steps; }
  int64_t sequences_of_step() const { return config_.trainer.accumulate * config_.trainer.batch_size; }
  int64_t tokens_of_step() const { return sequences_of_step() * config_.trainer.sequence_length; }
  std::filesystem::path checkpoint_path(int64_t step) const {
    return folder_.checkpoints() / fmt::format("step_{}", step);
  }

  // Whether no further step is to be taken: all are done, or the validation loss does not get better any more.
  bool is_complete(int64_t step) const {
    const int64_t patience = config_.trainer.stop_after_no_gain;
    return step >= steps() || (patience > 0 && evaluations_.without_gain >= patience);
  }

  template <class Event>
  void tell(void (Logger::*hear)(const Event&), const Event& event) {
    for (Logger* logger : loggers_) (logger->*hear)(event);
  }
  void flush_loggers() {
    for (Logger* logger : loggers_) logger->flush();
  }

  // Loads the checkpoint to continue from, or the weights to start from, if there are any. Nothing in the folder is
  // changed before all of it is known to fit.
  void start() {
    for (const std::string& line : config_.notes) note_(line);
    folder_.check_config();
    if (!options_.init_from.empty() && options_.resume != "auto" && options_.resume != "none") {
      throw UsageError("--init-from starts a new run and --resume PATH goes on with one: give one of them");
    }
    const auto checkpoint = folder_.choose(options_.resume, {config_, registry_, data_->identity()}, note_);
    StartEvent event;
    if (checkpoint) {
      go_on_from(*checkpoint);
      event.checkpoint = checkpoint->path;
    } else if (!options_.init_from.empty()) {
      note_(fmt::format("the weights are those of {}", init_from(options_.init_from).string()));
    }
    if (!is_complete(start_)) folder_.write_config(config_text_);
    event.folder = folder_.path();
    event.step = start_;
    event.steps = steps();
    event.parameters = train_step_.model().parameters().count();
    event.dtype = config_.trainer.dtype;
    event.batch_size = sequences_of_step();
    event.sequence_length = config_.trainer.sequence_length;
    event.checkpoint_every = config_.trainer.checkpoint_every;
    event.device = context_.device();
    event.threads = context_.threads();
    tell(&Logger::start, event);
    clock_.start();
  }

  // Loads the weights of a run, a checkpoint or an exported model, and returns where they were.
  std::filesystem::path init_from(const std::filesystem::path& path) {
    ParameterSet& parameters = train_step_.model().parameters();
    if (is_model_folder(path)) {
      read_weights(context_, path, config_.model, parameters);
      return path;
    }
    const Checkpoint weights = find_checkpoint(path, note_);
    load_parameters(context_, weights, parameters);
    return weights.path;
  }

  void go_on_from(const Checkpoint& checkpoint) {
    load_parameters(context_, checkpoint, train_step_.model().parameters());
    load_optimizer(context_, checkpoint, train_step_.optimizer());
    const CheckpointState& state = checkpoint.state;
    if (state.loss_scale) train_step_.set_loss_scale(*state.loss_scale);
    trained_on_ = trained_on(checkpoint, config_, registry_);
    evaluations_ = state.evaluations;
    start_ = state.step;
    std::error_code ignored;
    const bool is_here = std::filesystem::equivalent(checkpoint.path.parent_path(), folder_.checkpoints(), ignored);
    if (is_here || is_complete(start_)) saved_step_ = start_;
  }

  // The batches of a step before which so many sequences were used.
  std::vector<Batch> batches_from(int64_t sequences) const {
    std::vector<Batch> batches;
    for (int64_t micro = 0; micro < config_.trainer.accumulate; ++micro) {
      batches.push_back(data_->training_batch(sequences + micro * config_.trainer.batch_size));
    }
    return batches;
  }

  // Trains on the batches of this step, and makes those of the next while the device works.
  StepEvent learn(int64_t step) {
    StepEvent event{
        .step = step, .steps = steps(), .tokens = tokens_of_step(), .learning_rate = learning_rate(config_, step)};
    try {
      if (next_batches_.empty()) next_batches_ = batches_from(trained_on_.sequences);
      train_step_.begin_step(std::move(next_batches_), step, event.learning_rate);
      trained_on_.sequences += sequences_of_step();
      trained_on_.tokens += tokens_of_step();
      next_batches_ = step < steps() ? batches_from(trained_on_.sequences) : std::vector<Batch>{};
      const StepResult taken = train_step_.finish_step();
      event.total_tokens = trained_on_.tokens;
      event.loss = taken.loss;
      event.gradient_norm = taken.gradient_norm;
      if (taken.left_out) {
        note_(fmt::format("step {} was left out, since its gradient overflowed; trainer.loss_scale is {:g} now", step,
                          train_step_.loss_scale().value));
      }
    } catch (const NonFinite& error) {
      flush_loggers();
      throw NonFinite(fmt::format("{}. {}", error.what(), advice()));
    }
    return event;
  }

  // What a user may do about numbers that are not finite.
  std::string advice() const {
    const bool may_scale = config_.trainer.dtype == DType::float16 && config_.trainer.loss_scale;
    const bool has_checkpoints = !list_checkpoints(folder_.checkpoints()).empty();
    return fmt::format(
        "A lower optimizer.lr, a longer schedule.warmup_steps or optimizer.clip_norm may help{}; {}",
        may_scale ? ", and in float16 trainer.loss_scale: dynamic" : "",
        has_checkpoints ? "checkpoints are in " + folder_.checkpoints().string() : "there is no checkpoint yet");
  }

  // One step, with all that is due after it.
  void take_step(int64_t step, TrainResult& result) {
    const TrainerConfig& trainer = config_.trainer;
    stopwatch_.start();
    StepEvent event = learn(step);
    stopwatch_.stop();
    event.seconds = stopwatch_.seconds();
    event.elapsed = clock_.running_seconds();
    event.peak_bytes = context_.allocator().stats().allocated.peak;
    tell(&Logger::step, event);

    result.evaluation.reset();
    bool is_best = false;
    if (is_due(step, trainer.eval_every, steps())) {
      result.evaluation = evaluate(context_, train_step_.model(), *data_);
      tell(&Logger::evaluation, evaluation_event(step, *result.evaluation));
      is_best = evaluations_.add(step, result.evaluation->loss) && trainer.keep_best;
    }
    const bool is_asked_for = options_.checkpoint_requested();
    if (is_due(step, trainer.checkpoint_every, steps()) || is_best || is_asked_for) {
      save(step);
    } else if (result.evaluation) {
      flush_loggers();
    }
    if (trainer.sample && trainer.sample->every > 0 && step % trainer.sample->every == 0 && !is_complete(step)) {
      sample(step, false);
    }
  }

  EvaluationEvent evaluation_event(int64_t step, const Evaluation& evaluation) const {
    return {.step = step, .loss = evaluation.loss, .accuracy = evaluation.accuracy, .is_text = data_->is_text()};
  }

  // Writes a checkpoint of this step unless there is one. The files of the loggers come first: they must never end
  // before the checkpoint does.
  void save(int64_t step) {
    if (saved_step_ == step) return;
    flush_loggers();
    CheckpointState state{step, config_.seed, config_text_, options_.program};
    state.trained_on = trained_on_;
    state.data = data_->identity();
    state.evaluations = evaluations_;
    if (!config_.trainer.loss_scale) state.loss_scale = train_step_.loss_scale();
    const auto path =
        write_checkpoint(context_, folder_.checkpoints(), train_step_.model().parameters(), train_step_.optimizer(),
                         state, {config_.trainer.keep_checkpoints, config_.trainer.keep_best});
    saved_step_ = step;
    tell(&Logger::checkpoint, {.step = step, .path = path});
  }

  void end(const TrainResult& result) {
    if (result.finished && result.step < steps()) {
      note_(fmt::format("the validation loss is not better than at step {} in {} evaluations (stop_after_no_gain)",
                        evaluations_.best->step, evaluations_.without_gain));
    }
    EndEvent event;
    event.finished = result.finished;
    event.start = start_;
    event.step = result.step;
    event.steps = steps();
    event.tokens = (result.step - start_) * tokens_of_step();
    event.seconds = stopwatch_.seconds();
    event.elapsed = clock_.running_seconds();
    event.peak_bytes = context_.allocator().stats().allocated.peak;
    event.checkpoint = checkpoint_path(result.step);
    if (result.evaluation) event.evaluation = evaluation_event(result.step, *result.evaluation);
    tell(&Logger::end, event);
  }

  std::string sample(int64_t step, bool is_last) {
    const SampleConfig& sample = *config_.trainer.sample;
    GenerateOptions options;
    options.tokens = sample.tokens;
    options.temperature = sample.temperature;
    options.seed = config_.seed;
    if (is_last) options.stop_requested = [this] { return stopped_in_sample_ = options_.stop_requested(); };
    Utf8Printer printer;
    std::string text = sample.prompt;
    generate(context_, train_step_.model(), sample.prompt, options, [&](uint8_t byte) { text += printer.add(byte); });
    text += printer.finish();
    tell(&Logger::sample, {.step = step, .text = text, .is_last = is_last});
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
  std::optional<ConsoleLogger> console_;
  std::vector<Logger*> loggers_;
  Stopwatch stopwatch_;  // of the steps alone
  Stopwatch clock_;      // of everything since the start
  TrainedOn trained_on_;
  EvaluationHistory evaluations_;
  int64_t start_ = 0;        // steps that were done before
  int64_t saved_step_ = -1;  // of the newest checkpoint in the folder
  bool stopped_in_sample_ = false;
};

}  // namespace

TrainResult train(Context& context, const TrainConfig& config, const TrainOptions& options, const Registry& registry) {
  try {
    return Run(context, config, options, registry).run();
  } catch (const OutOfMemory& error) {
    if (!context.allocator().is_recording()) throw;
    fail_with_snapshot(context, options.folder, error);
  }
}

}  // namespace heddle
