#include "tools/benchmark_step.h"

#include <cstddef>
#include <utility>

#include "tools/median.h"

namespace heddle {
namespace {

// Until everything has its memory; on a GPU the second step is captured as a graph.
constexpr int kWarmupSteps = 2;

}  // namespace

std::vector<int32_t> tokens_in_turn(int64_t vocab_size, int64_t count) {
  std::vector<int32_t> tokens;
  tokens.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(i % vocab_size));
  return tokens;
}

double seconds_per_step(TrainStep& train_step, const TrainConfig& config, int least_steps, double least_seconds) {
  const TrainerConfig& trainer = config.trainer;
  Batch batch{.size = trainer.batch_size, .length = trainer.sequence_length, .tokens = {}, .targets = {}};
  batch.tokens = tokens_in_turn(config.model.vocab_size, batch.size * batch.length);
  batch.targets = batch.tokens;
  if (config.data.pack) batch.segments.resize(batch.tokens.size());  // one document a sequence
  std::vector<double> seconds;
  double sum = 0.0;
  for (int step = 1; seconds.size() < static_cast<size_t>(least_steps) || sum < least_seconds; ++step) {
    std::vector<Batch> batches(static_cast<size_t>(trainer.accumulate), batch);
    const double taken = seconds_of([&] { train_step.step(std::move(batches), step, 0.0); });
    if (step <= kWarmupSteps) continue;
    seconds.push_back(taken);
    sum += taken;
  }
  return median(seconds);
}

}  // namespace heddle
