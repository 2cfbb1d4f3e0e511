#include "trainers/trainer.h"

#include <fmt/format.h>

#include <cmath>

#include "core/io/atomic_file.h"
#include "trainers/logging/metrics.h"
#include "trainers/logging/progress.h"
#include "trainers/model/generate.h"
#include "trainers/schedule.h"

namespace heddle {
namespace {

bool is_due(int64_t step, int64_t every, int64_t steps) { return step == steps || (every > 0 && step % every == 0); }

std::string describe(const Evaluation& evaluation, const Dataset& data) {
  std::string text = fmt::format("validation loss {:.4f}", evaluation.loss);
  if (data.is_text()) text += fmt::format(" nats/byte ({:.3f} bits/byte)", evaluation.loss / std::log(2.0));
  if (!std::isnan(evaluation.accuracy)) text += fmt::format(", accuracy {:.2f} %", 100.0 * evaluation.accuracy);
  return text;
}

class Run {
 public:
  Run(Context& context, const TrainConfig& config, const TrainOptions& options)
      : context_(context),
        config_(config),
        options_(options),
        data_(make_dataset(config)),
        train_step_(context, config),
        config_text_(config.node.dump()),
        folder_(options.folder),
        metrics_(folder_.metrics()) {}

  TrainResult run() {
    resume();
    describe_start();
    TrainResult result;
    result.step = start_;
    {
      Progress progress(options_.log, start_, steps());
      while (result.step < steps()) {
        take_step(++result.step, progress, result);
        if (result.step < steps() && options_.stop_requested()) return stop(result, progress);
      }
      describe_end(result, progress);
    }
    result.finished = true;
    result.sample = sample();
    return result;
  }

 private:
  int64_t steps() const { return config_.trainer.steps; }

  template <class... Args>
  void say(fmt::format_string<Args...> format, Args&&... args) {
    fmt::print(options_.log, "{}\n", fmt::format(format, std::forward<Args>(args)...));
    std::fflush(options_.log);
  }

  void resume() {
    const auto checkpoint =
        folder_.choose(options_.resume, config_text_, [&](const std::string& line) { say("note: {}", line); });
    write_file(folder_.config(), config_text_);
    if (!checkpoint) return;
    load_parameters(context_, *checkpoint, train_step_.model().parameters());
    load_optimizer(context_, *checkpoint, train_step_.optimizer());
    start_ = checkpoint->state.step;
    // RUN/checkpoints/step_N: the metrics of the run that the checkpoint is of.
    const auto metrics = std::filesystem::canonical(checkpoint->path).parent_path().parent_path() / "metrics.csv";
    if (std::filesystem::exists(metrics)) {
      metrics_.load(metrics, start_);
    } else {
      say("note: {} is missing; the rows up to step {} are lost", metrics.string(), start_);
    }
    metrics_.save();
    say("resumed from {}", checkpoint->path.string());
  }

  void describe_start() {
    say("{:.2f} M parameters, {}, {} on {}{}; run folder {}",
        static_cast<double>(train_step_.model().parameters().count()) / 1e6, name(config_.trainer.dtype),
        fmt::format("batch {} x {}", config_.trainer.batch_size * config_.trainer.accumulate,
                    config_.trainer.sequence_length),
        to_string(context_.device()),
        context_.device().type == DeviceType::cpu ? fmt::format(" with {} threads", context_.threads()) : "",
        folder_.path().string());
    if (start_ >= steps()) say("nothing left to do: the run is at step {} of {}", start_, steps());
  }

  std::vector<Batch> batches_of(int64_t step) const {
    const int64_t accumulate = config_.trainer.accumulate;
    std::vector<Batch> batches;
    for (int64_t micro = 0; micro < accumulate; ++micro) {
      batches.push_back(data_->training_batch((step - 1) * accumulate + micro));
    }
    return batches;
  }

  MetricsRow learn(int64_t step, int64_t tokens) {
    MetricsRow row;
    row.step = step;
    row.tokens = step * tokens;
    row.learning_rate = learning_rate(config_, step);
    try {
      if (next_batches_.empty()) next_batches_ = batches_of(step);
      train_step_.begin_step(std::move(next_batches_), step, row.learning_rate);
      next_batches_ = step < steps() ? batches_of(step + 1) : std::vector<Batch>{};
      const StepResult taken = train_step_.finish_step();
      row.loss = taken.loss;
      row.gradient_norm = taken.gradient_norm;
    } catch (const NonFinite& error) {
      metrics_.save();
      throw NonFinite(
          fmt::format("{}. A lower optimizer.lr, a longer schedule.warmup_steps or optimizer.clip_norm may "
                      "help; checkpoints are in {}",
                      error.what(), folder_.checkpoints().string()));
    }
    return row;
  }

  void take_step(int64_t step, Progress& progress, TrainResult& result) {
    const TrainerConfig& trainer = config_.trainer;
    const int64_t tokens = trainer.accumulate * trainer.batch_size * trainer.sequence_length;
    MetricsRow row = learn(step, tokens);
    progress.step(step, row.loss, tokens, context_.allocator().stats().allocated.peak);

    progress.pause();
    result.evaluation.reset();
    if (is_due(step, trainer.eval_every, steps())) {
      result.evaluation = evaluate(context_, train_step_.model(), *data_);
      row.validation_loss = result.evaluation->loss;
      row.validation_accuracy = result.evaluation->accuracy;
      progress.say(fmt::format("step {}: {}", step, describe(*result.evaluation, *data_)));
    }
    metrics_.add(row);
    if (is_due(step, trainer.checkpoint_every, steps())) {
      checkpoint(step);
    } else if (result.evaluation) {
      metrics_.save();
    }
    progress.resume();
  }

  // The metrics first: they must never end before the checkpoint does.
  void checkpoint(int64_t step) {
    metrics_.save();
    write_checkpoint(context_, folder_.checkpoints(), train_step_.model().parameters(), train_step_.optimizer(),
                     {step, config_.seed, config_text_, options_.program}, config_.trainer.keep_checkpoints);
  }

  TrainResult stop(const TrainResult& result, Progress& progress) {
    if (!is_due(result.step, config_.trainer.checkpoint_every, steps())) checkpoint(result.step);
    progress.say(
        fmt::format("stopped after step {} of {}; to go on from {}/step_{}, train again with the same config "
                    "and --resume auto",
                    result.step, steps(), folder_.checkpoints().string(), result.step));
    return result;
  }

  void describe_end(const TrainResult& result, Progress& progress) {
    if (start_ >= steps()) return;
    progress.say(fmt::format("{} steps in {}, {:.1f} k tokens/s, peak memory {}; {}", steps() - start_,
                             format_duration(progress.seconds()), progress.tokens_per_second() / 1000.0,
                             format_bytes(context_.allocator().stats().allocated.peak),
                             describe(*result.evaluation, *data_)));
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
    return text + printer.finish();
  }

  Context& context_;
  const TrainConfig& config_;
  const TrainOptions& options_;
  std::unique_ptr<Dataset> data_;
  TrainStep train_step_;
  std::vector<Batch> next_batches_;  // of the step to come, made while the device works
  std::string config_text_;          // resolved: the layers have filled in their defaults
  RunFolder folder_;
  Metrics metrics_;
  int64_t start_ = 0;
};

}  // namespace

TrainResult train(Context& context, const TrainConfig& config, const TrainOptions& options) {
  return Run(context, config, options).run();
}

}  // namespace heddle
