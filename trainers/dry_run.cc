#include "trainers/dry_run.h"

#include <memory>

#include "core/distributed/unconnected.h"
#include "trainers/profile/run_profile.h"
#include "trainers/run/checkpoint.h"
#include "trainers/run/init_weights.h"
#include "trainers/run/run_folder.h"
#include "trainers/step_memory.h"
#include "trainers/train_step.h"

namespace heddle {
namespace {

// What training would go on from, or start from, fits the config. Returns the step.
int64_t check_start(const TrainConfig& config, const DryRunOptions& options, const Registry& registry,
                    const Dataset& data, Context& context, ParameterSet& parameters) {
  const RunFolder folder(options.folder, RunFolder::Access::read);
  folder.check_config();
  const RunSubject subject{config, registry, data.identity(), data.tokenizer()};
  const auto checkpoint = folder.choose(options.resume, subject, options.note);
  folder.check_tokenizer(subject);
  if (checkpoint) {
    load_parameters(context, *checkpoint, parameters);
    return checkpoint->state.step;
  }
  if (!options.init_from.empty()) init_weights(context, options.init_from, subject, parameters, options.note);
  return 0;
}

}  // namespace

int64_t tokens_per_step(const TrainerConfig& trainer) {
  return trainer.accumulate * trainer.batch_size * trainer.sequence_length;
}

double operations_per_step(const TrainConfig& config, const ParameterSet& parameters) {
  double numbers = 0.0;
  for (const Parameter& parameter : parameters.all()) {
    const bool is_looked_up = parameter.name == "embedding.weight" && !config.model.tie_embeddings;
    const bool is_weight = parameter.shape.rank() == 2 && parameter.weight_decay;  // angles are none, and do not decay
    if (is_weight && !is_looked_up) numbers += static_cast<double>(numel(parameter.shape));
  }
  return 6.0 * numbers * static_cast<double>(tokens_per_step(config.trainer));
}

DryRun dry_run(const TrainConfig& config, const DryRunOptions& options, const Registry& registry) {
  const int processes = options.processes;
  check_config(config, registry);
  check_processes(config, processes);
  check_trace(config);
  const std::unique_ptr<Dataset> data =
      make_dataset(training_data(config, options.folder, options.resume, options.init_from));
  Context context(Device{DeviceType::meta});
  const std::unique_ptr<Communicator> communicator = make_pretended_communicator(0, processes);
  Processes pretended(communicator.get());
  TrainStep train_step(context, config, &pretended);
  data->training_batch(0);
  take_two_steps(train_step, config);
  const MemoryStats stats = context.allocator().stats();
  const ParameterSet& parameters = train_step.model().parameters();
  DryRun run;
  run.parameters = parameters.count();
  run.peak_bytes = stats.allocated.peak;
  for (int i = 0; i < kMemoryCategories; ++i) run.category_peaks[i] = stats.by_category[i].peak;
  run.tokens_per_step = tokens_per_step(config.trainer);
  run.operations_per_step = operations_per_step(config, parameters);
  run.files = data->identity().files;
  run.file_bytes = data->identity().bytes;
  run.evaluated = data->validation_sequences();
  if (!options.folder.empty()) {
    run.step = check_start(config, options, registry, *data, context, train_step.model().parameters());
  }
  return run;
}

}  // namespace heddle
