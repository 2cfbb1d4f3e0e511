#include "tools/compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <iterator>
#include <set>
#include <string_view>
#include <utility>

#include "core/config/config_difference.h"
#include "core/io/file_identity.h"
#include "core/io/temporary_folder.h"
#include "core/runtime/error.h"
#include "core/runtime/message.h"
#include "tools/benchmark_step.h"
#include "tools/compare_memory.h"
#include "tools/median.h"
#include "trainers/logging/console_logger.h"
#include "trainers/model/text_reader.h"
#include "trainers/run/run_folder.h"
#include "trainers/step_memory.h"
#include "trainers/trainer.h"

namespace heddle {
namespace {

constexpr int kTimedSteps = 3;
constexpr int kTimedTokens = 32;

// --- Configs

// Whether a key of a config says which tokens a training and its evaluation see, or in which order.
bool chooses_tokens(std::string_view key) {
  constexpr std::array<std::string_view, 7> keys = {"seed",
                                                    "model.vocab_size",
                                                    "trainer.steps",
                                                    "trainer.batch_size",
                                                    "trainer.accumulate",
                                                    "trainer.sequence_length",
                                                    "trainer.eval_batches"};
  return key.starts_with("data.") || std::find(keys.begin(), keys.end(), key) != keys.end();
}

// Whether an override of the training has a meaning for that on the recall task, which has data and a schedule of its
// own.
bool stays_in_recall(const std::string& text) {
  return !text.starts_with("data") && !text.starts_with("schedule") && !text.starts_with("trainer.sample") &&
         !text.starts_with("trainer.profile");
}

[[noreturn]] void fail_at(const ConfigNode& root, const std::string& path, const std::string& message) {
  const size_t dot = path.find('.');
  if (dot == std::string::npos) root.fail(path, message);
  root.section(path.substr(0, dot)).fail(path.substr(dot + 1), message);
}

void check_same_tokens(const std::string& first_path, const TrainConfig& first, const std::string& path,
                       const TrainConfig& config, const Registry& registry) {
  for (const ConfigDifference& difference : config_differences(to_tree(first, registry), to_tree(config, registry))) {
    if (!chooses_tokens(difference.path)) continue;
    const auto shown = [](const std::string& value) { return value.empty() ? "no value" : value; };
    fail_at(config.node, difference.path,
            fmt::format("found {} in {}, expected {} as in {}: all models are trained on the same tokens",
                        shown(difference.second), path, shown(difference.first), first_path));
  }
}

std::vector<std::string> names_of(std::span<const std::string> paths) {
  std::vector<std::string> names;
  std::set<FileIdentity> files;
  for (const std::string& path : paths) {
    if (!files.insert(file_identity(path)).second) throw UsageError(path + " is given twice");
    const std::optional<std::filesystem::path> run = run_folder_of(path);
    names.push_back(run ? std::filesystem::weakly_canonical(*run).filename().string()
                        : std::filesystem::path(path).stem().string());
  }
  const std::vector<std::string> stems = names;
  for (size_t i = 0; i < stems.size(); ++i) {
    if (std::count(stems.begin(), stems.end(), stems[i]) > 1) names[i] = paths[i];
  }
  return names;
}

// --- Training

// Of what the console says of a training, the part that has a meaning without a run folder.
class Progress : public Logger {
 public:
  explicit Progress(std::FILE* out) : console_(out) {}

  void step(const StepEvent& event) override { console_.step(event); }
  void evaluation(const EvaluationEvent& event) override { console_.evaluation(event); }
  void note(const std::string& line) override { console_.note(line); }

 private:
  ConsoleLogger console_;
};

// --- Speed

TrainingSpeed time_training(Context& context, TrainConfig config, int64_t length) {
  config = at_length(std::move(config), length);
  TrainStep train_step(context, config);
  const int64_t batch_size = config.trainer.batch_size;
  return {length, batch_size,
          static_cast<double>(batch_size * length) / seconds_per_step(train_step, config, kTimedSteps)};
}

// None when it was stopped, which may be while the context is read.
std::optional<GenerationSpeed> time_generation(Context& context, const LanguageModel& model, bool cuda_graph,
                                               int64_t length, const std::function<bool()>& stop_requested) {
  TextReader reader(context, model, cuda_graph);
  for (int64_t read = 0; read < length; read += kContextPart) {
    if (stop_requested()) return std::nullopt;
    reader.read(tokens_in_turn(model.vocab_size(), std::min(kContextPart, length - read)));
  }
  GenerationSpeed speed{.context = length, .tokens_per_second = 0.0, .state_bytes = bytes_of(context, reader.state())};
  std::vector<double> seconds;
  for (const int32_t token : tokens_in_turn(model.vocab_size(), kTimedTokens)) {
    seconds.push_back(seconds_of([&] { reader.read({&token, 1}); }));
  }
  speed.tokens_per_second = 1.0 / median(seconds);
  return speed;
}

// --- One model

class Measurement {
 public:
  Measurement(Context& context, const CompareSubject& subject, const CompareOptions& options, const Registry& registry)
      : context_(context), subject_(subject), options_(options), registry_(registry) {}

  // None when it was stopped.
  std::optional<ComparedModel> run() {
    model_.name = subject_.name;
    const std::optional<StepPeak> peak = step_peak(subject_.config);
    check(peak.has_value(), "{}: a step takes more bytes than can be counted", subject_.name);
    model_.peak_bytes = peak->allocated;
    const bool finished = measure_generation() && measure_training() && train_all();
    context_.allocator().release_cached();
    return finished ? std::optional(model_) : std::nullopt;
  }

 private:
  // Tells what comes next; false when nothing is to come.
  bool begin(const std::string& what) const {
    if (options_.stop_requested()) return false;
    context_.allocator().reset_peaks();  // of what was before: progress shows the peak
    if (options_.log != nullptr) print_message(options_.log, fmt::format("{}: {}\n", subject_.name, what));
    return true;
  }

  bool measure_generation() {
    TrainStep train_step(context_, subject_.config);
    model_.parameters = train_step.model().parameters().count();
    for (const int64_t length : options_.contexts) {
      if (!begin(fmt::format("generation after {} tokens", length))) return false;
      const auto speed = time_generation(context_, train_step.model(), subject_.config.trainer.cuda_graph, length,
                                         options_.stop_requested);
      if (!speed) return false;
      model_.generation.push_back(*speed);
    }
    return true;
  }

  bool measure_training() {
    for (const int64_t length : options_.lengths) {
      if (!begin(fmt::format("speed of training at length {}", length))) return false;
      model_.training.push_back(time_training(context_, subject_.config, length));
    }
    return true;
  }

  bool train_all() {
    for (int64_t i = 0; i < options_.seeds; ++i) {
      const auto trained = train_once("training", subject_.config, i);
      if (!trained) return false;
      model_.losses.push_back(trained->loss);
    }
    for (int64_t i = 0; subject_.recall && i < options_.seeds; ++i) {
      const auto trained = train_once("recall", *subject_.recall, i);
      if (!trained) return false;
      model_.recalls.push_back(trained->accuracy);
    }
    return true;
  }

  std::optional<Evaluation> train_once(const char* what, TrainConfig config, int64_t seed) const {
    config.seed += static_cast<uint64_t>(seed);
    if (!begin(fmt::format("{} with seed {}", what, config.seed))) return {};
    config.trainer.eval_every = 0;
    config.trainer.checkpoint_every = 0;
    config.trainer.sample.reset();
    config.trainer.hours.reset();
    config.trainer.profile.reset();  // all trainings would write one trace
    const TemporaryFolder folder("compare");
    std::optional<Progress> progress;
    TrainOptions options;
    options.folder = folder.path();
    options.is_temporary = true;
    options.log = nullptr;
    if (options_.log != nullptr) options.loggers = {&progress.emplace(options_.log)};
    options.stop_requested = options_.stop_requested;
    const TrainResult result = train(context_, config, options, registry_);
    return result.finished ? result.evaluation : std::nullopt;
  }

  Context& context_;
  const CompareSubject& subject_;
  const CompareOptions& options_;
  const Registry& registry_;
  ComparedModel model_;
};

// What a comparison cannot measure.
void check_subject(const TrainConfig& config) {
  check_can_be_read_again(config.data, config.node.section("data"));
  if (const auto length = fixed_length(config.model)) {
    config.node.section("model").fail(
        "mixer", fmt::format("found lrpe.shape, sequences of {} tokens alone, expected none: training at other lengths "
                             "and generation are timed",
                             *length));
  }
}

}  // namespace

// docs/models.md says what a model gets that looks nothing up.
std::vector<std::string> recall_overrides(int64_t steps) {
  return {"data={type: mqar, num_pairs: 8, num_queries: 8}",
          "model.vocab_size=32",
          "schedule={type: cosine, warmup_steps: 20, min_lr: 0}",
          fmt::format("trainer.steps={}", steps),
          "trainer.batch_size=32",
          "trainer.sequence_length=32",
          "trainer.accumulate=1",
          "trainer.eval_batches=8",
          "trainer.sample=null",
          "trainer.profile=null"};
}

std::vector<CompareSubject> load_subjects(std::span<const std::string> paths, const CompareOptions& options,
                                          const Registry& registry) {
  const std::vector<std::string> names = names_of(paths);
  std::vector<std::string> overrides = options.overrides;
  if (options.steps > 0) overrides.push_back(fmt::format("trainer.steps={}", options.steps));
  std::vector<std::string> with_recall;
  std::copy_if(overrides.begin(), overrides.end(), std::back_inserter(with_recall), stays_in_recall);
  for (std::string& text : recall_overrides(options.recall_steps)) with_recall.push_back(std::move(text));
  std::vector<CompareSubject> subjects;
  for (size_t i = 0; i < paths.size(); ++i) {
    CompareSubject subject{names[i], load_train_config(paths[i], overrides, registry), {}};
    check_subject(subject.config);
    if (options.recall_steps > 0) subject.recall = load_train_config(paths[i], with_recall, registry);
    subjects.push_back(std::move(subject));
    check_same_tokens(paths[0], subjects[0].config, paths[i], subjects[i].config, registry);
  }
  return subjects;
}

bool compare(Context& context, std::span<const CompareSubject> subjects, const CompareOptions& options,
             const std::function<void(const Comparison&)>& report, const Registry& registry) {
  const TrainConfig& first = subjects[0].config;
  const TrainerConfig& trainer = first.trainer;
  // What is wrong with the data, what cannot be held, and a TMPDIR where no training can write are found before
  // anything is measured.
  make_dataset(dataset_options(first));
  check_memory(context, subjects, options);
  const TemporaryFolder writable("compare");
  Comparison comparison{.device = context.device(),
                        .threads = context.threads(),
                        .is_text = is_bytes_of_text(first.data),
                        .seed = first.seed,
                        .seeds = options.seeds,
                        .steps = trainer.steps,
                        .step_tokens = trainer.batch_size * trainer.accumulate * trainer.sequence_length,
                        .recall_steps = options.recall_steps,
                        .models = {}};
  for (const CompareSubject& subject : subjects) {
    try {
      std::optional<ComparedModel> model = Measurement(context, subject, options, registry).run();
      if (!model) return false;
      comparison.models.push_back(std::move(*model));
    } catch (const ConfigError&) {
      throw;  // names the file
    } catch (const Error& error) {
      fail("{}: {}", subject.name, error.what());
    }
    report(comparison);
  }
  return true;
}

}  // namespace heddle
