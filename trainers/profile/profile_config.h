// The section `trainer.profile` of a training config.                                   docs/config.md#trainerprofile
#pragma once

#include <cstdint>
#include <string>

namespace heddle {

class ConfigFields;

// Which steps are measured kernel by kernel.
struct ProfileConfig {
  std::int64_t first = 0, last = 0;  // steps, both included
  std::string trace;                 // file for viewers of traces; empty: none
};

// Reads or writes the section. The steps are checked against the `steps` of the run.
void describe(ConfigFields& fields, ProfileConfig& profile, std::int64_t steps);

}  // namespace heddle
