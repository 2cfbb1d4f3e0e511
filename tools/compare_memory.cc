#include "tools/compare_memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "core/runtime/error.h"
#include "core/runtime/host_memory.h"
#include "trainers/step_memory.h"

namespace heddle {
namespace {

constexpr int64_t kCounted = int64_t{1} << 17;  // tokens from which on the state is taken to grow as it did

// Bytes of the state after as many tokens, at least.
double state_bytes_after(const TrainConfig& config, int64_t length) {
  Context meta(Device{DeviceType::meta}, {.threads = 1});
  TrainStep train_step(meta, config);
  const LanguageModel& model = train_step.model();
  ModelState state = model.initial_state();
  int64_t read = 0;
  const auto read_to = [&](int64_t tokens) {
    while (read < tokens) {
      const Tensor part = Tensor::empty(meta, {1, std::min(kContextPart, tokens - read)}, DType::int32);
      Tape tape(meta, Tape::Mode::inference);
      model.forward(tape, part, &state);
      read += part.size(1);
    }
    return static_cast<double>(bytes_of(meta, state));
  };
  if (length <= kCounted) return read_to(length);
  const double half = read_to(kCounted / 2), whole = read_to(kCounted);
  return whole + (whole - half) * 2.0 / static_cast<double>(kCounted) * static_cast<double>(length - kCounted);
}

// Bytes of a step, at least: the embedded tokens and their gradients. Batches that are larger than the memory need not
// be made to be counted.
double least_step_bytes(const TrainConfig& config) {
  return 2.0 * static_cast<double>(config.trainer.batch_size) * static_cast<double>(config.trainer.sequence_length) *
         static_cast<double>(config.model.dim) * static_cast<double>(size_of(config.trainer.dtype));
}

}  // namespace

TrainConfig at_length(TrainConfig config, int64_t length) {
  TrainerConfig& trainer = config.trainer;
  trainer.batch_size = std::max<int64_t>(1, trainer.batch_size * trainer.sequence_length / length);
  trainer.sequence_length = length;
  trainer.accumulate = 1;
  return config;
}

size_t bytes_of(Context& context, const ModelState& state) {
  size_t bytes = 0;
  for (const auto& mixer_state : state) {
    for (const auto& [name, tensor] : mixer_state->save(context)) {
      bytes += static_cast<size_t>(tensor.numel()) * size_of(tensor.dtype());
    }
  }
  return bytes;
}

void check_memory(const Context& context, std::span<const CompareSubject> subjects, const CompareOptions& options) {
  const size_t there = context.properties().memory_bytes;
  const auto refuse = [&](const char* option, const std::string& what) {
    throw UsageError(fmt::format("{}: {} takes more memory than {} has, {}", option, what, to_string(context.device()),
                                 format_bytes(there)));
  };
  for (const CompareSubject& subject : subjects) {
    for (const int64_t length : options.contexts) {
      if (state_bytes_after(subject.config, length) <= static_cast<double>(there)) continue;
      refuse("--context", fmt::format("the state of {} after {} tokens", subject.name, length));
    }
    for (const int64_t length : options.lengths) {
      const TrainConfig config = at_length(subject.config, length);
      if (least_step_bytes(config) <= static_cast<double>(there) && step_peak(config, there)) continue;
      refuse("--lengths", fmt::format("a training step of {} at length {}", subject.name, length));
    }
  }
}

}  // namespace heddle
