#include "tools/training_memory.h"

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/distributed/unconnected.h"
#include "core/io/memory_snapshot.h"
#include "core/runtime/checked.h"
#include "core/runtime/error.h"

namespace heddle {
namespace {

// "blocks.3.mixer" of "blocks.3.mixer.weight".
std::string layer_of(const std::string& name) { return name.substr(0, name.rfind('.')); }

size_t bytes_of(const Tensor& tensor) { return static_cast<size_t>(tensor.numel()) * size_of(tensor.dtype()); }

// Which part of the flat buffers belongs to which layer.
LayerBytes parts_of_flat_buffers(TrainStep& train_step) {
  LayerBytes parts;
  const auto add = [&](const std::string& layer, MemoryCategory category, size_t bytes) {
    parts[layer][static_cast<size_t>(category)] += bytes;
  };
  for (const Parameter& parameter : train_step.model().parameters().all()) {
    const std::string layer = layer_of(parameter.name);
    add(layer, MemoryCategory::parameter, bytes_of(parameter.master));
    if (parameter.value.dtype() != parameter.master.dtype()) {
      add(layer, MemoryCategory::parameter, bytes_of(parameter.value));
    }
    add(layer, MemoryCategory::gradient, bytes_of(parameter.gradient.tensor));
  }
  for (const ShardedTensor& moment : train_step.optimizer().parts_of_state()) {
    if (!moment.part.defined()) continue;
    add(layer_of(layer_of(moment.name)), MemoryCategory::optimizer, bytes_of(moment.part));
  }
  if (const WeightAverage* average = train_step.average()) {
    for (const ShardedTensor& average_of : average->parts()) {
      if (average_of.part.defined()) {
        add(layer_of(average_of.name), MemoryCategory::optimizer, bytes_of(average_of.part));
      }
    }
  }
  return parts;
}

// Moves the parts from what belongs to no layer to their layers; all sums stay the same.
void move_to_layers(LayerBytes& layers, const LayerBytes& parts) {
  for (const auto& [layer, bytes] : parts) {
    for (size_t i = 0; i < bytes.size(); ++i) {
      layers[""][i] -= bytes[i];
      layers[layer][i] += bytes[i];
    }
  }
}

int64_t& batch_size(TrainConfig& config) { return config.trainer.batch_size; }
int64_t& sequence_length(TrainConfig& config) { return config.trainer.sequence_length; }

// A number of the config that is searched for. It is a multiple of `unit`, and a config may have at most `most`.
struct Setting {
  int64_t& (*of)(TrainConfig&);
  int64_t unit, most;
};
Setting batch_size_for(const CountedProcesses& processes) {
  return {batch_size, processes.count, std::numeric_limits<int64_t>::max() / processes.count * processes.count};
}
constexpr Setting kSequenceLength = {sequence_length, 1, std::numeric_limits<int32_t>::max()};

// The peak without a limit. `names` are what the user has set the batch size and the length by.
StepPeak countable_peak(const TrainConfig& config, const CountedProcesses& processes,
                        const std::pair<std::string, std::string>& names = {"trainer.batch_size",
                                                                            "trainer.sequence_length"}) {
  const int64_t batch = config.trainer.batch_size, length = config.trainer.sequence_length;
  if (checked_product({batch, length})) {
    if (const auto peak = step_peak(config, 0, processes.count)) return *peak;
  }
  throw UsageError(fmt::format("{} {} with {} {}: found a step of more bytes than can be counted, expected fewer",
                               names.first, batch, names.second, length));
}

// The largest value of `setting` with which the step fits. Doubles until it does not fit, then halves the interval
// between what fits and what does not.
LargestFit find_largest(TrainConfig config, const Setting& setting, size_t limit_bytes,
                        const CountedProcesses& processes) {
  LargestFit largest;
  const auto fits = [&](int64_t value) {
    setting.of(config) = value;
    const std::optional<StepPeak> peak = step_peak(config, limit_bytes, processes.count);
    if (peak) largest.value = value, largest.peak = *peak;
    return peak.has_value();
  };
  int64_t too_large = setting.unit;
  while (fits(too_large)) {
    if (too_large == setting.most) return largest;
    too_large = too_large > setting.most / 2 ? setting.most : 2 * too_large;
  }
  while (too_large - largest.value > setting.unit) {
    const int64_t middle = largest.value + (too_large - largest.value) / setting.unit / 2 * setting.unit;
    if (!fits(middle)) too_large = middle;
  }
  setting.of(config) = largest.next = too_large;
  largest.above = countable_peak(config, processes);
  return largest;
}

// None when the layers of the config refuse other values.
std::optional<LargestFit> try_find_largest(const TrainConfig& config, const Setting& setting, size_t limit_bytes,
                                           const CountedProcesses& processes) {
  try {
    return find_largest(config, setting, limit_bytes, processes);
  } catch (const Error&) {
    return {};
  }
}

// The changes that save memory. A new way to do so is a row here.
std::vector<std::pair<std::string, TrainConfig>> changes_of(const TrainConfig& config) {
  std::vector<std::pair<std::string, TrainConfig>> changes;
  const TrainerConfig& trainer = config.trainer;
  const auto add_to_model = [&](std::string text, const std::function<void(TrainConfig&)>& change) {
    change(changes.emplace_back(std::move(text), config).second);
  };
  const auto add = [&](std::string text, const std::function<void(TrainerConfig&)>& change) {
    add_to_model(std::move(text), [&](TrainConfig& changed) { change(changed.trainer); });
  };
  if (config.model.recompute != Recompute::block) {
    add_to_model("model.recompute=block", [](TrainConfig& changed) { changed.model.recompute = Recompute::block; });
  }
  constexpr int64_t kLossChunk = 1024;
  const bool has_many_logits =
      config.model.vocab_size > 8 * config.model.dim && trainer.batch_size * trainer.sequence_length > kLossChunk;
  if (config.model.loss_chunk == 0 && has_many_logits) {
    add_to_model(fmt::format("model.loss_chunk={}", kLossChunk),
                 [&](TrainConfig& changed) { changed.model.loss_chunk = kLossChunk; });
  }
  if (size_of(trainer.dtype) > 2) {
    add("trainer.dtype=bfloat16", [](TrainerConfig& changed) { changed.dtype = DType::bfloat16; });
  }
  if (trainer.sequence_length > 1) {
    const int64_t half = trainer.sequence_length / 2;
    add(fmt::format("trainer.sequence_length={}", half),
        [&](TrainerConfig& changed) { changed.sequence_length = half; });
  }
  if (trainer.batch_size % 2 == 0) {
    const int64_t half = trainer.batch_size / 2, twice = trainer.accumulate * 2;
    add(fmt::format("trainer.batch_size={} trainer.accumulate={}", half, twice), [&](TrainerConfig& changed) {
      changed.batch_size = half;
      changed.accumulate = twice;
    });
  }
  return changes;
}

// Activations by layer when the last forward pass has ended: outputs of layers and what nodes save.
LayerBytes kept_for_backward(const MemoryReport& report) {
  LayerBytes kept;
  for (const MemoryPhase& phase : report.phases) {
    if (phase.name != "backward") continue;
    kept.clear();
    constexpr auto activation = static_cast<size_t>(MemoryCategory::activation);
    for (const auto& [layer, bytes] : phase.at_begin) {
      if (bytes[activation] > 0) kept[layer][activation] = bytes[activation];
    }
  }
  return kept;
}

}  // namespace

TrainingMemory measure_training(const Device& device, const TrainConfig& config, int threads,
                                const CountedProcesses& processes) {
  check_processes(config, processes.count);
  TrainingMemory memory;
  memory.dtype = config.trainer.dtype;
  memory.batch_size = config.trainer.batch_size;
  memory.sequence_length = config.trainer.sequence_length;
  ContextOptions options = recording_options(threads);
  if (device.type == DeviceType::meta) options.allocator.limit_bytes = kMostCountedBytes;
  Context context(device, options);
  const std::unique_ptr<Communicator> communicator = make_pretended_communicator(0, processes.count);
  Processes pretended(communicator.get());
  TrainStep train_step(context, config, &pretended);
  take_two_steps(train_step, config);
  memory.processes = processes.count;
  memory.parameters = train_step.model().parameters().count();
  memory.report = report_memory(context);
  move_to_layers(memory.report.layers, parts_of_flat_buffers(train_step));
  memory.snapshot = memory_snapshot(context.allocator());
  memory.kept = kept_for_backward(memory.report);
  return memory;
}

std::vector<GridPeak> peak_grid(const TrainConfig& config, const std::vector<int64_t>& batch_sizes,
                                const std::vector<int64_t>& lengths, const CountedProcesses& processes) {
  TrainConfig changed = config;
  const auto or_own = [](const std::vector<int64_t>& values, int64_t own) {
    return values.empty() ? std::vector<int64_t>{own} : values;
  };
  std::vector<GridPeak> grid;
  for (const int64_t batch : or_own(batch_sizes, config.trainer.batch_size)) {
    for (const int64_t length : or_own(lengths, config.trainer.sequence_length)) {
      batch_size(changed) = batch;
      sequence_length(changed) = length;
      check_processes(changed, processes.count);
      const std::string of_batch = batch_sizes.empty() ? "trainer.batch_size" : "--batch";
      const std::string of_length = lengths.empty() ? "trainer.sequence_length" : "--length";
      grid.push_back({batch, length, countable_peak(changed, processes, {of_batch, of_length})});
    }
  }
  return grid;
}

MemoryFit find_fit(const TrainConfig& config, size_t limit_bytes, const CountedProcesses& processes) {
  constexpr size_t kMostBytes = size_t{1} << 50;  // so that what does not fit can be counted
  if (limit_bytes > kMostBytes) {
    throw UsageError(
        fmt::format("--fit: found {}, expected at most {}", format_bytes(limit_bytes), format_bytes(kMostBytes)));
  }
  const Setting batch = batch_size_for(processes);
  MemoryFit fit;
  fit.limit_bytes = limit_bytes;
  fit.batch_size = find_largest(config, batch, limit_bytes, processes);
  fit.sequence_length = try_find_largest(config, kSequenceLength, limit_bytes, processes);
  for (auto& [change, changed] : changes_of(config)) {
    const std::optional<LargestFit> largest = try_find_largest(changed, batch, limit_bytes, processes);
    if (!largest || changed.trainer.batch_size % processes.count != 0) continue;
    fit.savings.push_back({change, countable_peak(changed, processes).allocated, *largest});
  }
  return fit;
}

}  // namespace heddle
