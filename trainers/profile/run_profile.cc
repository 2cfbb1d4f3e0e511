#include "trainers/profile/run_profile.h"

#include <fmt/format.h>

#include <string>

#include "core/io/atomic_file.h"
#include "core/runtime/error.h"

namespace heddle {
namespace {

// The first steps open libraries, take memory from the device and capture a graph.
constexpr int64_t kWarmUp = 2;

}  // namespace

void check_trace(const TrainConfig& config) {
  if (!config.trainer.profile) return;
  const std::string& trace = config.trainer.profile->trace;
  if (trace.empty() || is_written_through(trace)) return;
  try {
    const AtomicFile tried(trace);  // not committed
  } catch (const Error& error) {
    config.node.section("trainer").section("profile").fail("trace", error.what());
  }
}

RunProfile::RunProfile(Context& context, TrainStep& train_step, const ProfileConfig& config)
    : train_step_(train_step),
      config_(config),
      profiler_(context),
      profile_{.device = context.device(), .plain_milliseconds = {}, .steps = {}} {}

void RunProfile::before(int64_t step, double seconds) {
  if (step < config_.first || step > config_.last) {
    if (plain_steps_ == kWarmUp) plain_begin_ = seconds;
    ++plain_steps_;
    return;
  }
  if (!profile_.steps.empty()) return;
  if (plain_steps_ > kWarmUp) {
    profile_.plain_milliseconds = 1e3 * (seconds - plain_begin_) / static_cast<double>(plain_steps_ - kWarmUp);
  }
  train_step_.set_profiler(&profiler_);
}

std::optional<ProfileEvent> RunProfile::after(int64_t step) {
  if (step < config_.first || step > config_.last) return {};
  profile_.steps.push_back(profiler_.result(step));
  profile_.in_graph = train_step_.is_captured();
  if (step < config_.last) return {};
  train_step_.set_profiler(nullptr);
  ProfileEvent event{.step = step, .tables = profile_tables(profile_), .trace = config_.trace};
  if (config_.trace.empty()) return event;
  try {
    write_file(config_.trace, profile_trace(profile_));
  } catch (const Error& error) {  // no reason to end the training
    event.tables += fmt::format("\nthere is no trace: {}\n", error.what());
    event.trace.clear();
  }
  return event;
}

}  // namespace heddle
