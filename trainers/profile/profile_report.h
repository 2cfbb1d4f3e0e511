// Where the milliseconds of training steps go.                                               docs/watching.md#profile
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/runtime/device.h"
#include "trainers/profile/step_profiler.h"

namespace heddle {

struct Profile {
  Device device;
  bool in_graph = false;                     // the steps were replays of a graph with the marks in it
  std::optional<double> plain_milliseconds;  // a step before these, without marks
  std::vector<ProfiledStep> steps;           // at least one
};

// Three tables, means of the steps: layers by phase, kernels, and the longest rows of layer and kernel together. Blocks
// are counted together: "blocks.*.mixer". The operations per second are those that kernels tell (products of matrices).
std::string profile_tables(const Profile& profile);

// A trace in Chrome's format: phases, layers and kernels as slices, and the bytes by category as counters.
std::string profile_trace(const Profile& profile);

}  // namespace heddle
