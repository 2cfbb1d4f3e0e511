// Where golden files are, and what whoever changes their numbers has to do.
#pragma once

#include <cstdlib>
#include <filesystem>

namespace heddle::testing {

// A trace of every test of golden files, so that each failure says it.
inline constexpr const char* kGoldenFailure =
    "Training, or a file that it writes, is not what tests/golden says. If it is meant to be another one now, write "
    "the "
    "golden files anew, as tests/golden/README.md says (HEDDLE_WRITE_GOLDEN=tests/golden), and say in the commit and "
    "in "
    "CHANGELOG.md what has changed and why; else it is a fault.";

inline std::filesystem::path golden_folder() { return std::filesystem::path(HEDDLE_SOURCE_DIR) / "tests" / "golden"; }

// Where new golden files go; empty: what is computed is compared with those that are there.
inline std::filesystem::path new_golden_folder() {
  const char* folder = std::getenv("HEDDLE_WRITE_GOLDEN");
  return folder == nullptr ? "" : folder;
}

}  // namespace heddle::testing
