#include "trainers/run/start_run.h"

#include <fmt/format.h>

#include <filesystem>
#include <optional>

#include "core/runtime/error.h"
#include "trainers/parallel/same_run.h"
#include "trainers/run/checkpoint_config.h"
#include "trainers/run/init_weights.h"
#include "trainers/run/start_event.h"

namespace heddle {
namespace {

class Starter {
 public:
  Starter(const RunParts& run, TrainStep& train_step) : run_(run), train_step_(train_step) {}

  RunStart start() {
    for (const std::string& line : run_.config.notes) run_.note(line);
    check_processes_agree();
    check_one_origin();
    const RunSubject subject{run_.config, run_.registry, run_.data.identity(), run_.data.tokenizer()};
    const auto checkpoint = run_.folder.choose_together(run_.processes, run_.options.resume, subject, run_.note);
    run_.processes.together([&] { load(checkpoint, subject); });
    check_same_start(run_.processes, run_.context, start_.step, train_step_.model().parameters());
    run_.processes.together([&] {
      if (!run_.processes.is_first() || is_complete()) return;
      run_.folder.write_config(run_.config_text);
      run_.folder.write_tokenizer(subject);
    });
    const bool is_saved = checkpoint && (is_complete() || is_in_folder(*checkpoint, run_.folder.checkpoints()));
    if (run_.processes.from_first(is_saved ? "1" : "") == "1") start_.saved_step = start_.step;
    start_.event = event(checkpoint);
    return start_;
  }

 private:
  bool is_complete() const { return heddle::is_complete(run_.config.trainer, start_.evaluations, start_.step); }

  void check_processes_agree() const {
    if (run_.processes.count() == 1) return;
    const DataIdentity identity = run_.processes.together([&] { return run_.data.identity(); });
    const std::string device = heddle::to_string(run_.context.device());
    check_same_run(run_.processes,
                   {run_.options.program, run_.config_text, to_string(identity), device.substr(0, device.find(':'))});
  }

  void check_one_origin() const {
    const TrainOptions& options = run_.options;
    if (options.init_from.empty() || options.resume == "auto" || options.resume == "none") return;
    run_.processes.fail_together();
    throw UsageError("--init-from starts a new run and --resume PATH goes on with one: give one of them");
  }

  void load(const std::optional<Checkpoint>& checkpoint, const RunSubject& subject) {
    if (checkpoint) {
      if (!run_.options.init_from.empty()) {
        run_.note("--init-from is for a new run, and has no effect here: this one goes on from " +
                  checkpoint->path.string());
      }
      go_on_from(*checkpoint);
      check_steps_are_left(*checkpoint);
    } else if (!run_.options.init_from.empty()) {
      init_from(run_.options.init_from, subject);
    }
  }

  void init_from(const std::filesystem::path& path, const RunSubject& subject) {
    const std::string whose = init_weights(run_.context, path, subject, train_step_.model().parameters(), run_.note);
    if (train_step_.average() != nullptr) train_step_.average()->restart();
    run_.note("the weights are " + whose);
  }

  void go_on_from(const Checkpoint& checkpoint) {
    load_parameters(run_.context, checkpoint, train_step_.model().parameters());
    load_optimizer(run_.context, checkpoint, train_step_.optimizer());
    if (WeightAverage* average = train_step_.average()) go_on_with(checkpoint, *average);
    const CheckpointState& state = checkpoint.state;
    if (state.loss_scale) train_step_.set_loss_scale(*state.loss_scale);
    train_step_.set_skipped(state.skipped);
    start_.trained_on = trained_on(checkpoint, run_.config, run_.registry);
    start_.evaluations = evaluations_of(checkpoint);
    start_.step = state.step;
    // The process that wrote it may have been killed before it removed the older ones.
    const std::filesystem::path folder = run_.folder.checkpoints();
    if (run_.processes.is_first() && is_in_folder(checkpoint, folder)) {
      KeptCheckpoints kept = kept_checkpoints(run_.config.trainer);
      kept.note = run_.note;
      remove_older_checkpoints(folder, state, kept);
    }
  }

  // The best loss on other data is none to beat.
  EvaluationHistory evaluations_of(const Checkpoint& checkpoint) const {
    const EvaluationHistory& then = checkpoint.state.evaluations;
    if (!then.best || is_evaluated_alike(run_.config, run_.data, checkpoint, run_.registry)) return then;
    run_.note(fmt::format("the best validation loss, {:g} at step {}, was of other validation data: it starts anew",
                          then.best->loss, then.best->step));
    return {};
  }

  void go_on_with(const Checkpoint& checkpoint, WeightAverage& average) {
    if (has_average(checkpoint)) return load_average(run_.context, checkpoint, average);
    average.restart();
    run_.note(fmt::format("{} holds no average of the weights: it starts as its weights", checkpoint.path.string()));
  }

  // A new folder for a run without a step would hold nothing.
  void check_steps_are_left(const Checkpoint& checkpoint) const {
    if (!run_.processes.is_first() || !is_complete() || is_in_folder(checkpoint, run_.folder.checkpoints())) return;
    throw UsageError(fmt::format("{} is at step {}, and trainer.steps is {}: there is nothing to do in {}",
                                 checkpoint.path.string(), start_.step, run_.config.trainer.steps,
                                 run_.folder.path().string()));
  }

  StartEvent event(const std::optional<Checkpoint>& checkpoint) const {
    StartEvent event = start_event(run_.context, run_.config);
    if (checkpoint) event.checkpoint = checkpoint->path;
    event.folder = run_.folder.path();
    event.program = run_.options.program;
    event.step = start_.step;
    event.parameters = train_step_.model().parameters().count();
    event.processes = run_.processes.count();
    return event;
  }

  const RunParts& run_;
  TrainStep& train_step_;
  RunStart start_;
};

}  // namespace

bool is_complete(const TrainerConfig& trainer, const EvaluationHistory& evaluations, int64_t step) {
  const int64_t patience = trainer.stop_after_no_gain;
  return step >= trainer.steps || (patience > 0 && evaluations.without_gain >= patience);
}

RunStart start_run(const RunParts& run, TrainStep& train_step) { return Starter(run, train_step).start(); }

}  // namespace heddle
