#include "trainers/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/io/disk_space.h"
#include "core/runtime/error.h"
#include "core/runtime/unsigned_nan.h"
#include "trainers/data/read_ahead.h"
#include "trainers/gemm_cache.h"
#include "trainers/logging/console_logger.h"
#include "trainers/logging/file_loggers.h"
#include "trainers/logging/write_clock.h"
#include "trainers/out_of_memory.h"
#include "trainers/parallel/requests.h"
#include "trainers/profile/run_profile.h"
#include "trainers/run/checkpoint_config.h"
#include "trainers/run/run_folder.h"
#include "trainers/run/sample_text.h"
#include "trainers/run/start_run.h"
#include "trainers/run/stopwatch.h"
#include "trainers/schedule.h"

namespace heddle {
namespace {

// What a program may have forgotten.
void check_options(const TrainOptions& options) {
  check(!options.folder.empty(), "TrainOptions::folder is empty, expected a run folder");
  check(std::find(options.loggers.begin(), options.loggers.end(), nullptr) == options.loggers.end(),
        "TrainOptions::loggers holds nullptr");
  check(options.stop_requested && options.checkpoint_requested, "TrainOptions::{} is empty, expected a function",
        options.stop_requested ? "checkpoint_requested" : "stop_requested");
}

bool is_due(int64_t step, int64_t every, int64_t steps) { return step == steps || (every > 0 && step % every == 0); }

class Run {
 public:
  Run(Context& context, const TrainConfig& config, const TrainOptions& options, const Registry& registry,
      Processes& processes)
      : context_(context),
        config_(config),
        options_(options),
        registry_(registry),
        processes_(processes),
        data_(processes.together([&] { return make_data(config, options, registry, processes); })),
        made_step_(processes.together([&] { return std::make_unique<TrainStep>(context, config, &processes); })),
        train_step_(*made_step_),
        config_text_(to_yaml(config, registry)),
        opened_folder_(processes.together([&] { return open_folder(options, processes); })),
        folder_(*opened_folder_) {
    processes.together([&] {
      if (processes.is_first()) make_loggers();
    });
    if (config.trainer.search_gemm && context.device().type == DeviceType::cuda) {
      gemm_cache_.emplace(context, gemm_cache_file(), note_);
    }
  }

  // What one process throws alone ends the others, before anything here is destroyed: that may wait for the device,
  // which waits for them.
  TrainResult run() {
    if (processes_.count() == 1) return train();
    try {
      return train();
    } catch (const OutOfMemory& error) {
      if (!context_.allocator().is_recording() || !processes_.is_first()) end_others(error);
      try {
        fail_with_snapshot(context_, folder_.path(), error);
      } catch (const OutOfMemory& written) {
        end_others(written);
      }
    } catch (const std::exception& error) {
      end_others(error);
    }
  }

 private:
  // Throws the exception that is being handled.
  [[noreturn]] void end_others(const std::exception& error) {
    if (!processes_.failed_together()) processes_.communicator().abort(error.what());
    throw;
  }

  void make_loggers() {
    file_loggers_ = make_file_loggers(config_.logging, folder_.path(), note_);
    for (const auto& logger : file_loggers_) loggers_.push_back(logger.get());
    check_trace(config_);
    if (config_.trainer.profile) profile_.emplace(context_, train_step_, *config_.trainer.profile);
    if (options_.log != nullptr) loggers_.push_back(&console_.emplace(options_.log));
    loggers_.insert(loggers_.end(), options_.loggers.begin(), options_.loggers.end());
  }

  TrainResult train() {
    start();
    TrainResult result;
    result.step = start_;
    while (!is_complete(result.step) && !must_stop(result)) take_step(++result.step, result);
    save_last(result.step);
    result.finished = is_complete(result.step);
    end(result);
    if (result.finished && config_.trainer.sample) {
      result.sample = sample(result.step, true);
      result.finished = !processes_.any(stopped_in_sample_);
    }
    flush_loggers_at_last();
    return result;
  }

  // Whether the run ends before its last step.
  bool must_stop(TrainResult& result) {
    result.out_of_time = is_out_of_time(result.step);
    return result.out_of_time || requests_.stop();
  }

  static std::unique_ptr<Dataset> make_data(const TrainConfig& config, const TrainOptions& options,
                                            const Registry& registry, const Processes& processes) {
    check_config(config, registry);
    check_processes(config, processes.count());
    return make_dataset(training_data(config, options.folder, options.resume, options.init_from));
  }

  static std::unique_ptr<RunFolder> open_folder(const TrainOptions& options, const Processes& processes) {
    const auto access = processes.is_first() ? RunFolder::Access::write : RunFolder::Access::read;
    return std::make_unique<RunFolder>(options.folder, access);
  }

  int64_t steps() const { return config_.trainer.steps; }
  int64_t sequences_of_step() const { return config_.trainer.accumulate * config_.trainer.batch_size; }
  int64_t tokens_of_step() const { return sequences_of_step() * config_.trainer.sequence_length; }
  std::filesystem::path checkpoint_path(int64_t step) const { return folder_.checkpoints() / checkpoint_name(step); }

  bool is_complete(int64_t step) const { return heddle::is_complete(config_.trainer, evaluations_, step); }

  // Whether the hours of this start are over. Each start takes a step at least, or a run might never end.
  bool is_out_of_time(int64_t step) const { return step > start_ && requests_.is_time_over(); }
  bool is_time_over() const {
    const auto hours = config_.trainer.hours;
    return hours && clock_.running_seconds() >= *hours * 3600.0;
  }

  template <class Event>
  void tell(void (Logger::*hear)(const Event&), const Event& event) {
    for (Logger* logger : loggers_) (logger->*hear)(event);
  }
  // Throws NoSpace when one of them had no room; the next call makes up for what is not written.
  void flush_loggers() {
    unwritten_.clear();
    for (Logger* logger : loggers_) {
      try {
        logger->flush();
      } catch (const NoSpace& error) {
        if (unwritten_.empty()) unwritten_ = error.what();
      }
    }
    if (!unwritten_.empty()) throw NoSpace(unwritten_);
  }
  // Where nothing has to wait for the files of the loggers, a full disk is no reason to end. It is noted once.
  void flush_loggers_if_there_is_room() {
    const bool is_known = !unwritten_.empty();
    try {
      flush_loggers();
    } catch (const NoSpace&) {
      if (!is_known) note_(unwritten_ + "; its lines are kept, and written when there is room");
    }
  }
  // Before the training ends.
  void flush_loggers_at_last() {
    try {
      flush_loggers();
    } catch (const NoSpace&) {
      note_(unwritten_ + ": its last lines are missing");
    }
  }

  void start() {
    RunStart begun = start_run(
        {context_, config_, options_, registry_, processes_, *data_, config_text_, folder_, note_}, train_step_);
    start_ = begun.step;
    saved_step_ = begun.saved_step;
    trained_on_ = begun.trained_on;
    evaluations_ = begun.evaluations;
    tell(&Logger::start, begun.event);
    if (config_.trainer.profile && config_.trainer.profile->last <= start_) {
      note_(fmt::format("trainer.profile: nothing is measured, since step {} was taken before this start",
                        config_.trainer.profile->last));
    }
    clock_.start();
  }

  // Those of the steps that are left, from the first sequence that was not used on.
  ReadAheadOptions batches_left() const {
    return {.first_sequence = trained_on_.sequences,
            .steps = steps() - start_,
            .micro_batches = config_.trainer.accumulate,
            .batch_size = config_.trainer.batch_size,
            .rank = processes_.rank(),
            .processes = processes_.count()};
  }

  // Trains on the batches of this step.
  StepEvent learn(int64_t step) {
    StepEvent event{
        .step = step, .steps = steps(), .tokens = tokens_of_step(), .learning_rate = learning_rate(config_, step)};
    try {
      if (!batches_) batches_.emplace(*data_, batches_left());
      const StepResult taken =
          train_step_.step(batches_->next(), step, event.learning_rate, [this] { requests_.exchange(); });
      if (gemm_cache_) gemm_cache_->save();
      trained_on_.sequences += sequences_of_step();
      trained_on_.tokens += tokens_of_step();
      event.total_tokens = trained_on_.tokens;
      event.loss = taken.loss;
      event.gradient_norm = taken.gradient_norm;
      event.skipped_steps = train_step_.skipped().total;
      if (!taken.reason.empty()) {
        note_(fmt::format("{}; the step is left out, {} of at most {} in a row (trainer.skip_nonfinite)", taken.reason,
                          train_step_.skipped().in_a_row, config_.trainer.skip_nonfinite));
      } else if (taken.left_out) {
        note_(fmt::format("step {} was left out, since its gradient overflowed; trainer.loss_scale is {:g} now", step,
                          train_step_.loss_scale().value));
      }
    } catch (const NonFinite& error) {
      flush_loggers_at_last();
      throw NonFinite(fmt::format("{}. {}", error.what(), advice()));
    }
    return event;
  }

  // What a user may do about numbers that are not finite.
  std::string advice() const {
    const bool may_scale = config_.trainer.dtype == DType::float16 && config_.trainer.loss_scale;
    const auto where_checkpoints_are = [&]() -> std::string {
      if (options_.is_temporary) return "nothing is kept of this training, a run of heddle train keeps checkpoints";
      const bool has_checkpoints = !list_checkpoints(folder_.checkpoints()).empty();
      return has_checkpoints ? "checkpoints are in " + folder_.checkpoints().string() : "there is no checkpoint yet";
    };
    return fmt::format("A lower optimizer.lr, a longer schedule.warmup_steps or optimizer.clip_norm may help{}; {}",
                       may_scale ? ", and in float16 trainer.loss_scale: dynamic" : "", where_checkpoints_are());
  }

  // One step, with all that is due after it.
  void take_step(int64_t step, TrainResult& result) {
    const TrainerConfig& trainer = config_.trainer;
    if (profile_) profile_->before(step, stopwatch_.seconds());
    stopwatch_.start();
    StepEvent event = learn(step);
    stopwatch_.stop();
    event.seconds = stopwatch_.seconds();
    event.elapsed = clock_.running_seconds();
    const MemoryStats memory = context_.allocator().stats();
    event.peak_bytes = memory.allocated.peak;
    for (size_t i = 0; i < kMemoryCategories; ++i) event.category_peaks[i] = memory.by_category[i].peak;
    tell(&Logger::step, event);
    if (const auto profiled = profile_ ? profile_->after(step) : std::nullopt) tell(&Logger::profile, *profiled);

    result.evaluation.reset();
    bool is_best = false;
    if (is_due(step, trainer.eval_every, steps())) {
      result.evaluation = with_averaged_weights(
          train_step_.average(), [&] { return evaluate(context_, train_step_.model(), *data_, processes_); });
      const EvaluationEvent event = evaluation_event(step, *result.evaluation);
      tell(&Logger::evaluation, event);
      is_best = evaluations_.add({step, event.loss, event.accuracy, event.bits_per_byte}) && trainer.keep_best;
    }
    const bool is_asked_for = requests_.checkpoint();
    if (is_complete(step)) return;  // run() saves it
    if (is_due(step, trainer.checkpoint_every, steps()) || is_best || is_asked_for) save_if_there_is_room(step);
    const bool has_sample = trainer.sample && trainer.sample->every > 0 && step % trainer.sample->every == 0;
    if (has_sample) sample(step, false);
    if (saved_step_ == step || result.evaluation || has_sample || write_clock_.is_due()) {
      flush_loggers_if_there_is_room();
    }
  }

  EvaluationEvent evaluation_event(int64_t step, const Evaluation& evaluation) const {
    return {.step = step,
            .loss = evaluation.loss,
            .accuracy = evaluation.accuracy,
            .is_text = data_->is_text(),
            .bits_per_byte = evaluation.bits_per_byte()};
  }

  // Writes a checkpoint of this step unless there is one. The files of the loggers come first: they must never end
  // before the checkpoint does.
  void save(int64_t step) {
    if (saved_step_ == step) return;
    processes_.together([this] { flush_loggers(); });
    CheckpointState state{step, config_.seed, config_text_, options_.program};
    state.trained_on = trained_on_;
    state.data = data_->identity();
    state.tokenizer = tokenizer_identity(config_.data, data_->tokenizer());
    state.evaluations = evaluations_;
    state.skipped = train_step_.skipped();
    if (!config_.trainer.loss_scale) state.loss_scale = train_step_.loss_scale();
    KeptCheckpoints kept = kept_checkpoints(config_.trainer);
    kept.note = [this](const std::string& line) {
      if (unremoved_.insert(line).second) note_(line);
    };
    const auto path =
        write_checkpoint(context_, folder_.checkpoints(), train_step_.model().parameters(), train_step_.optimizer(),
                         state, kept, train_step_.average(), train_step_.parallel());
    saved_step_ = step;
    tell(&Logger::checkpoint, {.step = step, .path = path});
  }

  // What a user reads after an error of a full disk. A damaged checkpoint may be there of a later step.
  std::string newest_saved(int64_t step) const {
    std::vector<CheckpointFolder> all = list_checkpoints(folder_.checkpoints());
    std::erase_if(all, [&](const CheckpointFolder& checkpoint) { return checkpoint.step > step; });
    return all.empty() ? "there is no checkpoint yet"
                       : fmt::format("the newest checkpoint is {}", all.back().path.string());
  }

  // On the way, a full disk is no reason to end: what is written next makes up for what is not written now.
  void save_if_there_is_room(int64_t step) {
    try {
      save(step);
    } catch (const NoSpace& error) {
      processes_.go_on();
      note_(fmt::format("step {} is not saved: {}; {}, and the next that is due is tried again", step, error.what(),
                        newest_saved(step)));
    }
  }

  void save_last(int64_t step) {
    try {
      save(step);
    } catch (const NoSpace& error) {
      throw NoSpace(
          fmt::format("step {}, the last, is not saved: {}; {}; make room and train again with the same config", step,
                      error.what(), newest_saved(step)));
    }
  }

  void end(const TrainResult& result) {
    const int64_t skipped = train_step_.skipped().total;
    if (skipped > 0) {
      note_(fmt::format("{} of {} steps were left out, since their numbers were not finite", skipped, result.step));
    }
    if (result.evaluation && !std::isfinite(result.evaluation->loss)) {
      note_(fmt::format("the validation loss after step {} is {}{}", result.step, unsigned_nan(result.evaluation->loss),
                        skipped == 0 ? ", though the losses of the steps were finite" : ""));
    }
    if (result.out_of_time) note_(fmt::format("the time is over (trainer.hours {:g})", *config_.trainer.hours));
    if (result.finished && result.step < steps()) {
      const auto& best = evaluations_.best;
      note_(fmt::format("{} in {} evaluations (stop_after_no_gain)",
                        best ? fmt::format("the validation loss is not better than at step {}", best->step)
                             : "no validation loss was finite",
                        evaluations_.without_gain));
    }
    EndEvent event;
    event.finished = result.finished;
    event.start = start_;
    event.step = result.step;
    event.steps = steps();
    event.tokens = (result.step - start_) * tokens_of_step();
    event.total_tokens = trained_on_.tokens;
    event.best = evaluations_.best;
    event.seconds = stopwatch_.seconds();
    event.elapsed = clock_.running_seconds();
    event.peak_bytes = context_.allocator().stats().allocated.peak;
    event.checkpoint = checkpoint_path(result.step);
    if (result.evaluation) event.evaluation = evaluation_event(result.step, *result.evaluation);
    tell(&Logger::end, event);
    if (result.finished && config_.trainer.sample) flush_loggers_if_there_is_room();  // its text takes a while
  }

  std::string sample(int64_t step, bool is_last) {
    const auto stop = [&] { return is_last && (stopped_in_sample_ = options_.stop_requested()); };
    const std::string text = with_averaged_weights(train_step_.average(), [&] {
      if (!processes_.is_first()) return std::string();
      return sample_text(context_, train_step_.model(), *data_->tokenizer(), config_, stop);
    });
    tell(&Logger::sample, {.step = step, .text = text, .is_last = is_last});
    return text;
  }

  Context& context_;
  const TrainConfig& config_;
  const TrainOptions& options_;
  const Registry& registry_;
  Processes& processes_;
  std::unique_ptr<Dataset> data_;
  std::unique_ptr<TrainStep> made_step_;
  TrainStep& train_step_;
  std::string config_text_;
  std::unique_ptr<RunFolder> opened_folder_;
  RunFolder& folder_;
  const Note note_ = [this](const std::string& line) { tell(&Logger::note, line); };
  std::vector<std::unique_ptr<Logger>> file_loggers_;
  std::optional<ConsoleLogger> console_;
  std::vector<Logger*> loggers_;
  WriteClock write_clock_;           // of their files
  std::set<std::string> unremoved_;  // what was said of old checkpoints that cannot be removed
  std::string unwritten_;            // why one of their files lacks lines; empty: none does
  Stopwatch stopwatch_;              // of the steps alone
  Stopwatch clock_;                  // of everything since the start
  Requests requests_{processes_, options_.stop_requested, options_.checkpoint_requested,
                     [this] { return is_time_over(); }};
  std::optional<GemmCache> gemm_cache_;
  std::optional<RunProfile> profile_;
  TrainedOn trained_on_;
  EvaluationHistory evaluations_;
  int64_t start_ = 0;        // steps that were done before
  int64_t saved_step_ = -1;  // of the newest checkpoint in the folder
  bool stopped_in_sample_ = false;
  std::optional<ReadAhead> batches_;  // from the first step on
};

}  // namespace

TrainResult train(Context& context, const TrainConfig& config, const TrainOptions& options, const Registry& registry) {
  check_options(options);
  Processes processes(options.communicator);
  try {
    return Run(context, config, options, registry, processes).run();
  } catch (const OutOfMemory& error) {
    if (!context.allocator().is_recording() || processes.count() > 1) throw;
    fail_with_snapshot(context, options.folder, error);
  }
}

}  // namespace heddle
