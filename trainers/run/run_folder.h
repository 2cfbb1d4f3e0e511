// The folder of a training run: config.yaml, metrics.csv, checkpoints/step_N.                      docs/training.md
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "core/runtime/error.h"
#include "trainers/run/checkpoint.h"

namespace heddle {

// A command that cannot be meant as it was given.
class UsageError : public Error {
 public:
  using Error::Error;
};

// Made when missing, and locked: a second process that opens the same folder gets an Error. What a killed run left
// half-written is removed.
class RunFolder {
 public:
  explicit RunFolder(std::filesystem::path path);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path config() const { return path_ / "config.yaml"; }
  std::filesystem::path metrics() const { return path_ / "metrics.csv"; }
  std::filesystem::path checkpoints() const { return path_ / "checkpoints"; }

  // The checkpoint to go on from; nullopt: start anew.
  //   "auto"  the newest whole one, if any. It must be of the same config, so that the run goes on as if it had never
  //           stopped. When there are checkpoints but none is whole: an Error.
  //   "none"  start anew; a UsageError when the folder holds checkpoints already.
  //   PATH    that checkpoint, or the newest of that run folder; the config may differ. A UsageError when it would
  //           leave later checkpoints, or those of another run, behind in this folder.
  std::optional<Checkpoint> choose(const std::string& resume, const std::string& config, const Note& note) const;

 private:
  std::filesystem::path path_;
  int lock_ = -1;
};

}  // namespace heddle
