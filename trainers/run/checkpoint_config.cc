#include "trainers/run/checkpoint_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "core/config/config_load.h"

namespace heddle {
namespace {

// Earlier versions wrote this key into every config, though it has no meaning in a model. false took the residual
// stream away: such a model cannot be built any more, and another one must not take its place.
void accept_former_keys(const ConfigNode& config) {
  const ConfigNode norm = config.section("model").section("norm");
  if (!norm.get<bool>("return_residual", true)) {
    norm.fail("return_residual", "found false, expected true: models without a residual stream are not built any more");
  }
}

std::string trimmed(const std::string& line) { return line.substr(std::min(line.size(), line.find_first_not_of(' '))); }

// The first line in which two texts differ; "" when they are equal.
std::string first_difference(const std::string& now, const std::string& then) {
  std::istringstream now_lines(now), then_lines(then);
  for (std::string a, b;;) {
    const bool more_a = static_cast<bool>(std::getline(now_lines, a));
    const bool more_b = static_cast<bool>(std::getline(then_lines, b));
    if (!more_a && !more_b) return "";
    if (!more_a) a = "nothing";
    if (!more_b) b = "nothing";
    if (a == b) continue;
    return fmt::format("now '{}', then '{}'", trimmed(a), trimmed(b));
  }
}

}  // namespace

TrainConfig read_checkpoint_config(const Checkpoint& checkpoint, std::span<const std::string> overrides,
                                   const Registry& registry) {
  const ConfigNode node = parse_config(checkpoint.state.config, "config of " + checkpoint.path.string(), overrides);
  accept_former_keys(node);
  return read_train_config(node, registry);
}

TrainedOn trained_on(const Checkpoint& checkpoint, const TrainConfig& config, const Registry& registry) {
  if (checkpoint.state.trained_on) return *checkpoint.state.trained_on;
  const auto of = [&](const TrainerConfig& trainer) {
    const int64_t sequences = checkpoint.state.step * trainer.accumulate * trainer.batch_size;
    return TrainedOn{sequences, sequences * trainer.sequence_length};
  };
  try {
    return of(read_checkpoint_config(checkpoint, {}, registry).trainer);
  } catch (const ConfigError&) {
    return of(config.trainer);
  }
}

std::string config_difference(const TrainConfig& config, const Checkpoint& checkpoint, const Registry& registry) {
  return first_difference(to_yaml(config, registry),
                          to_yaml(read_checkpoint_config(checkpoint, {}, registry), registry));
}

}  // namespace heddle
